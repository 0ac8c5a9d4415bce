"""The real training image that is nearest to each synthetic image that the report shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.images import LabelledImages, to_model_range
from ..generator.features import load_lite0, profile
from .report import Nearest

MOST_SEARCHED = 1000  # training images: every one passes the network when a report is written
MOST_COMPARED = 500  # of them, from which the mean distance between two is taken
_AT_ONCE = 100


def nearest_real(variants: Sequence[Tensor], train: LabelledImages) -> tuple[Nearest, ...] | None:
    """For each of the R sources the training images nearest to its variants, uint8 (V, 3, S, S) each.

    Nearest of all training images, in the profile of Lite0 of images of S px; distances in units of the mean between
    two different training images. None where there are more than 1,000, or fewer than two.
    """
    if not 2 <= len(train) <= MOST_SEARCHED or not variants:
        return None
    real = train.resized(variants[0].shape[-1])
    lite0 = load_lite0()

    def described(images: Tensor) -> Tensor:
        return torch.cat([profile(lite0, to_model_range(part)).double() for part in images.split(_AT_ONCE)])

    known = described(real.images)
    few = min(len(known), MOST_COMPARED)
    apart = torch.pdist(known[[len(known) * k // few for k in range(few)]]).mean().clamp_min(1e-9)
    found = []
    for drawn in variants:
        if not len(drawn):
            found.append(Nearest(real.images[:0], (), ()))
            continue
        least, rows = torch.cdist(described(drawn), known, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        ids = tuple(real.ids[row] for row in rows.tolist())
        found.append(Nearest(real.images[rows], ids, tuple((least / apart).tolist())))
    return tuple(found)
