"""The judges of a run: each says what images show whose source it never saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...data.images import LabelledImages
from ...engine.progress import track
from ...errors import DataError
from ...generator.features import LITE0_SHA256
from ...measure.extractors.extractor import Extractor, extract
from ...measure.extractors.lite0 import open_lite0
from ...train.fidelity import doubts
from ...train.folds import fold_of
from ...train.judge import FEWEST, STRENGTH, Judge, cross_fitted, hold_outs

SCHEMA = 1
_DECIMALS = 6  # of answers: below them rounding differs by how many images are looked at side by side


@dataclass(frozen=True, eq=False)
class Opinion:
    """What judges say of N images."""

    answers: Tensor  # (N, C) float64: calibrated probabilities, to 6 decimals; zeros where there is no judge
    judged: Tensor  # (N,) bool: whether there is a judge for the source, and a threshold for the label
    failed: Tensor  # (N,) bool: which show another class than their label


class Judges:
    """The judges of a run's real training images, given at the side of the synthetic ones; learned when first asked."""

    def __init__(self, real: LabelledImages, device: torch.device) -> None:
        """Raises DataError where there are too few images."""
        self.real, self.device, self.folds = real, device, fold_of(real)
        if not hold_outs(real.labels, self.folds):
            raise DataError(
                f"{real.name}: {len(real)} training images are too few to judge labels by: it takes two classes, each "
                f"in three folds, and {FEWEST} images outside a fold. Give more images, or neither --filter nor "
                "--noise-strength auto."
            )

    @cached_property
    def key(self) -> str:
        """sha256 hex of all that their answers depend on."""
        made_from = [SCHEMA, LITE0_SHA256, STRENGTH, self.real.digest, self.real.size, self.folds]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()

    @cached_property
    def _extractor(self) -> Extractor:
        return open_lite0(self.device)

    @cached_property
    def learned(self) -> tuple[Tensor, dict[int, Judge]]:
        """Features (N, D) of the real images, and the judge of each fold that has one."""
        with track("judge learns", len(self.real)) as advance:
            features = extract(self._extractor, self.real.images, advance=advance)
        return features, cross_fitted(features, self.real.labels, self.folds, len(self.real.class_names))

    def opinion(
        self,
        images: Tensor,
        labels: Tensor,
        sources: Sequence[str],
        second: Tensor | None = None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> Opinion:
        """What the judges of their sources say of images (N, 3, S, S) uint8 with these labels (N,) int64.

        sources: the id of the real image that each was made from. second: as of `doubts`.
        """
        known = dict(zip(self.real.ids, self.folds, strict=True))
        return self._asked(
            extract(self._extractor, images, advance=advance), labels, [known[source] for source in sources], second
        )

    def _asked(self, features: Tensor, labels: Tensor, folds: Sequence[int], second: Tensor | None = None) -> Opinion:
        answers = torch.zeros(len(labels), len(self.real.class_names), dtype=torch.float64)
        judged, failed = torch.zeros(len(labels), dtype=torch.bool), torch.zeros(len(labels), dtype=torch.bool)
        for fold, judge in self.learned[1].items():
            rows = torch.tensor(folds) == fold
            answers[rows] = judge.answers(features[rows]).round(decimals=_DECIMALS)
            judged[rows] = judge.thresholds[labels[rows]].isfinite()
            other = None if second is None else second[rows]
            failed[rows] = doubts(answers[rows], judge.thresholds, labels[rows], other) > judge.margin
        return Opinion(answers, judged, failed)

    def of_real(self) -> Opinion:
        """What they say of the real images, each by the judge of its own fold: what to compare synthetic ones with."""
        return self._asked(self.learned[0], self.real.labels, self.folds)
