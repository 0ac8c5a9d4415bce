"""Which classes an arm confuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Counts = Sequence[Sequence[int]]  # (classes, classes): row = true class, column = predicted class
MOST_CLASSES = 20  # that a matrix shows legibly
MOST_PAIRS = 20


class ConfusedPair(TypedDict):
    """Images of one class that were taken for another."""

    true: str
    predicted: str
    count: int
    share: float  # of the test images of the class, in (0, 1]


def normalised(counts: Counts, class_names: Sequence[str]) -> NDArray[np.float64]:
    """Each row divided by its sum, (K, K) in [0, 1]; NaN where a class has no test images.

    Raises ValueError where `counts` is not a matrix of counts over the classes.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    if matrix.shape != (len(class_names), len(class_names)) or (matrix < 0).any():
        raise ValueError(f"confusion of shape {matrix.shape} for {len(class_names)} classes: give counts (K, K)")
    sums = matrix.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(matrix, sums, out=np.full_like(matrix, np.nan), where=sums > 0)
    return shares


def most_confused(counts: Counts, class_names: Sequence[str], most: int = MOST_PAIRS) -> list[ConfusedPair]:
    """The pairs of classes with the largest share of the true class's images, largest first, without those at 0.

    Equal shares come in the order of their counts, then of the classes.
    """
    shares = normalised(counts, class_names)
    pairs = [
        (-float(shares[true, predicted]), -int(counts[true][predicted]), int(true), int(predicted))
        for true, predicted in np.argwhere(shares > 0)
        if true != predicted
    ]
    return [
        {"true": class_names[true], "predicted": class_names[predicted], "count": -count, "share": -share}
        for share, count, true, predicted in sorted(pairs)[:most]
    ]
