"""The class that is recognised least: its accuracy of every classifier, and how much two settings differ in it.

Which class that is may differ between classifiers. A mean over replicates is that of each replicate's worst class, so
neither side of a difference has its class chosen by the other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from ..train.evaluation import balanced_variance
from ..train.verdict import recalls
from .claims import Difference

WORST = "worst_class_accuracy"


def of_worst_class(correct: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Accuracy of the worst class in [0, 1], of each row of correct (classifiers, images); labels (images,) int64."""
    found = recalls(correct, labels, int(labels.max()) + 1)
    return tuple(found.nan_to_num(nan=math.inf).amin(1).tolist())


def difference(
    more: Sequence[float], less: Sequence[float], more_correct: Tensor, less_correct: Tensor, labels: Tensor
) -> Difference:
    """Mean of `more` - `less`, the accuracies of the worst classes of paired units, with its errors.

    The error of the choice of test images is that of the two classes which are worst over all units, as if chosen
    beforehand: paired where they are one class. correct: (units, images), NaN where a unit was not tested.
    """
    pairs = [ours - theirs for ours, theirs in zip(more, less, strict=True)]
    ours, theirs = (_worst(correct, labels) for correct in (more_correct, less_correct))
    classes = labels.eq(ours) | labels.eq(theirs)
    apart = torch.where(labels == ours, more_correct.double(), 0.0) - torch.where(
        labels == theirs, less_correct.double(), 0.0
    )
    variance, images = balanced_variance(apart[:, classes], labels[classes])
    count = len(pairs)
    return Difference(
        value=statistics.fmean(pairs),
        units=count,
        unit_error=statistics.stdev(pairs) / math.sqrt(count) if count > 1 else None,
        image_error=len({ours, theirs}) * math.sqrt(variance),  # a sum over classes, not their mean
        images=images if math.isfinite(images) else None,
    )


def _worst(correct: Tensor, labels: Tensor) -> int:
    found = recalls(correct, labels, int(labels.max()) + 1).nanmean(0)
    return int(found.nan_to_num(nan=math.inf).argmin())
