"""Labels of images that were blended from two classes, or that a classifier was asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """What goes with the labels (N,) of N images to make targets: a second class each, or answers over all classes."""

    second: Tensor  # (N,) int64: the other class
    weight: Tensor  # (N,) float32 in [0, 1]: of the image's own label; the second class, or the answers, have the rest
    answers: Tensor | None = None  # (N, classes) float32, rows sum to 1; in place of `second`

    @classmethod
    def hard(cls, labels: Tensor) -> SoftLabels:
        """Those of images of one class each, labels (N,) int64."""
        return cls(labels, torch.ones(len(labels)))

    @classmethod
    def cat(cls, parts: Sequence[SoftLabels]) -> SoftLabels:
        """Those of several sets of images, one after the other."""
        classes = next((part.answers.shape[1] for part in parts if part.answers is not None), None)
        return cls(
            torch.cat([part.second for part in parts]),
            torch.cat([part.weight for part in parts]),
            None if classes is None else torch.cat([part._rest(classes) for part in parts]),
        )

    def rows(self, index: Tensor) -> SoftLabels:
        """Those of some images, index (M,) int64, in this order."""
        answers = None if self.answers is None else self.answers[index]
        return SoftLabels(self.second[index], self.weight[index], answers)

    def renumbered(self, number: Tensor, classes: int) -> SoftLabels:
        """The same where class k has the number `number[k]`, int64, of so many classes."""
        answers = None
        if self.answers is not None:
            answers = self.answers.new_zeros(len(self.answers), classes).index_copy_(1, number, self.answers)
        return SoftLabels(number[self.second], self.weight, answers)

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Targets (N, classes) float32, rows sum to 1, for labels (N,) int64."""
        weight = self.weight[:, None]
        return weight * F.one_hot(labels, classes) + (1 - weight) * self._rest(classes)

    def _rest(self, classes: int) -> Tensor:
        return F.one_hot(self.second, classes).float() if self.answers is None else self.answers
