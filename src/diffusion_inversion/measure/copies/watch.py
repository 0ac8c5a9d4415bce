"""A watch for copies of training images among images that come batch by batch, by the rule of the audit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.images import LabelledImages
from ...randomness import generator_for
from .auditing import LEAST_UNIT, doubles, some_of
from .conformal import threshold
from .nearest import Known
from .views import View


class Watch:
    """Knows training images, given at the side of those that come; they also say what is usual, left out one by one.

    So test images play no part. An image is a copy where it is nearer to a training image than all but a share
    `false_positives` of these are to each other, in the view in which it is nearest.
    """

    def __init__(
        self, real: LabelledImages, views: Sequence[View], *, false_positives: float, neighbours: int, seed: int
    ) -> None:
        """Raises DataError where there are too few images."""
        apart = some_of(real, doubles(real), generator_for(seed, "audit"))
        self._known = [Known(view, real.images, neighbours, apart) for view in views]
        self._units = [max(float(one.left_out.scores.quantile(false_positives)), LEAST_UNIT) for one in self._known]
        null = [one.left_out.scores / unit for one, unit in zip(self._known, self._units, strict=True)]
        self._limit = threshold(torch.stack(null).amin(0), false_positives)

    def copies(self, images: Tensor) -> Tensor:
        """Which of uint8 (Q, 3, S, S) are copies: bool (Q,)."""
        scores = [one.search(images).scores / unit for one, unit in zip(self._known, self._units, strict=True)]
        return self._limit.flags(torch.stack(scores).amin(0))
