"""Labels of images that were blended from two classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """What goes with the labels (N,) of N images to make targets of two classes each."""

    second: Tensor  # (N,) int64: the other class
    weight: Tensor  # (N,) float32 in [0, 1]: of the image's own label; the second class has the rest

    @classmethod
    def hard(cls, labels: Tensor) -> SoftLabels:
        """Those of images of one class each, labels (N,) int64."""
        return cls(labels, torch.ones(len(labels)))

    @classmethod
    def cat(cls, parts: Sequence[SoftLabels]) -> SoftLabels:
        """Those of several sets of images, one after the other."""
        return cls(torch.cat([part.second for part in parts]), torch.cat([part.weight for part in parts]))

    def rows(self, index: Tensor) -> SoftLabels:
        """Those of some images, index (M,) int64, in this order."""
        return SoftLabels(self.second[index], self.weight[index])

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Targets (N, classes) float32, rows sum to 1, for labels (N,) int64."""
        weight = self.weight[:, None]
        return weight * F.one_hot(labels, classes) + (1 - weight) * F.one_hot(self.second, classes)
