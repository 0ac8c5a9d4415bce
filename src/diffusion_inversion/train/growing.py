"""Which images a growing set gets: how many of each class, and which of the candidates. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shares(errors: Sequence[float], total: int) -> list[int]:
    """How many of `total` images each class gets, in proportion to its error >= 0; by largest remainders.

    Classes without an error get none, unless all are.
    """
    whole = sum(errors)
    exact = [total * (error / whole if whole else 1 / len(errors)) for error in errors]
    found = [int(one) for one in exact]
    order = sorted(range(len(errors)), key=lambda place: (found[place] - exact[place], place))
    for place in order[: total - sum(found)]:
        found[place] += 1
    return found


def errors_of(correct: Tensor, labels: Tensor, classes: int) -> list[float]:
    """The share that is wrong of each class, as if half an image more were wrong, of one more.

    A class without images, which no fold holds out, has the mean of the others: nothing says that it is easier, or
    harder; 0 where no class has any. correct: (N,) bool, of held-out images. labels: (N,) int64.
    """
    wrong = torch.bincount(labels[~correct], minlength=classes).double()
    count = torch.bincount(labels, minlength=classes)
    measured = ((wrong + 0.5) / (count + 1))[count > 0]
    usual = float(measured.mean()) if len(measured) else 0.0
    found: list[float] = torch.where(count > 0, (wrong + 0.5) / (count + 1), usual).tolist()
    return found


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats of each row of (N, C): float64 (N,)."""
    p = probabilities.double()
    return -(p * p.clamp_min(1e-300).log()).sum(1)


def best(kept: Sequence[bool], doubt: Sequence[float], labels: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Rows of the candidates to finish, ascending: `wanted[k]` of class k, or all that it has.

    Those that keep their label come first, then the others, so that where too few keep it the class gets its number all
    the same; of either those of most doubt come first.
    """
    chosen: list[int] = []
    for label, count in enumerate(wanted):
        own = [row for row, one in enumerate(labels) if one == label]
        own.sort(key=lambda row: (not kept[row], -doubt[row], row))
        chosen += own[:count]
    return sorted(chosen)
