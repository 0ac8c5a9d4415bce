"""Features of images by CLIP, kept on disk: of the images as they are, and of augmented views of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...config.few_shot import FewShotSettings
from ...data.images import LabelledImages
from ...engine.progress import track
from ...measure.extractors.cache import cached_features
from ...measure.extractors.extractor import Extractor, Preprocessing
from ...randomness import generator_for
from ...train.few_shot.clip import Clip
from ...train.few_shot.examples import Encoded
from ...train.few_shot.views import random_view

_AT_ONCE = 512  # views in memory: 77 MB at 224 px


def image_encoder(clip: Clip) -> Extractor:
    """CLIP's image side as an extractor; features are projected, not of length 1."""
    prepare = Preprocessing(clip.image_size, "bicubic", clip.mean, clip.std)

    def embed(images: Tensor) -> Tensor:
        return clip.image_features(prepare(images))

    return Extractor("clip", "_clip", clip.width, str(prepare), clip.hash, clip.device, embed)


def clean_features(images: LabelledImages, clip: Clip, cache: Path) -> Tensor:
    """Features (N, D) float32 of the images as they are, on CLIP's device."""
    with track(f"CLIP features of {images.name}", len(images)) as advance:
        return cached_features(image_encoder(clip), images.images, cache, advance=advance).to(clip.device)


def encode(
    images: LabelledImages,
    targets: Tensor,
    made_from: Sequence[frozenset[str]],
    clip: Clip,
    settings: FewShotSettings,
    cache: Path,
    *,
    views: bool,
) -> Encoded:
    """Features of images and, where learners need them, of `settings.views` views of each.

    A view depends on the image's content and its own number alone.
    """
    count = settings.views if views else 0
    if not len(images):  # zero-shot alone learns from none
        none = torch.empty(count, 0, clip.width, device=clip.device)
        return Encoded(torch.empty(0, clip.width, device=clip.device), none, targets.to(clip.device), ())
    found = torch.empty(count, len(images), clip.width)
    clean = clean_features(images, clip, cache)
    if count:
        with track(f"CLIP features of views of {images.name}", count * len(images)) as advance:
            for view in range(count):
                for start in range(0, len(images), _AT_ONCE):
                    rows = range(start, min(start + _AT_ONCE, len(images)))
                    pixels = _views(images, rows, view, clip.image_size, settings.smallest_crop)
                    found[view, rows.start : rows.stop] = cached_features(
                        image_encoder(clip), pixels, cache, advance=advance
                    )
    return Encoded(clean, found.to(clip.device), targets.to(clip.device), tuple(made_from))


def _views(images: LabelledImages, rows: range, view: int, side: int, smallest: float) -> Tensor:
    """One view of each of these images, uint8 (len(rows), 3, side, side)."""
    return torch.stack(
        [
            random_view(images.images[row], side, smallest, generator_for("few-shot", "view", images.hashes[row], view))
            for row in rows
        ]
    )
