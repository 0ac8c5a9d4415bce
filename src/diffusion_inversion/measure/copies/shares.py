"""A share with an interval that knows which images came about together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """`count` of `n` images; the interval is at `confidence`, in [0, 1]."""

    count: int
    n: int
    low: float
    high: float
    confidence: float = 0.95

    @property
    def value(self) -> float:
        return self.count / self.n

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def share(flags: Tensor, units: Tensor | None = None, confidence: float = 0.95) -> Share:
    """Share of true entries of bool (N,), N >= 1, with the interval of Clopper and Pearson (1934).

    units: int64 (N,), the same number for images that came about together, such as the variants of a source. The
    interval is then that of as many independent images as tell as much (Korn and Graubard 1998): N over the design
    effect, the variance of the share between units over that of a binomial. Where all or none are true, that cannot be
    seen, and a unit counts as one image.
    """
    count, n = int(flags.sum()), len(flags)
    effective = float(n)
    if units is not None:
        number, place = units.unique(return_inverse=True)
        p = count / n
        if 0 < count < n and len(number) > 1:
            sums = torch.zeros(len(number), dtype=torch.float64).index_add_(0, place, flags.double() - p)
            variance = float(sums.square().sum()) * len(number) / (len(number) - 1) / n**2
            effective = min(n, p * (1 - p) / variance) if variance > 0 else float(n)
        else:
            effective = float(len(number))
    return Share(count, n, *interval(count / n, effective, confidence), confidence)


def interval(value: float, images: float, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share in [0, 1] of independent images, whose number need not be whole."""
    from scipy.stats import beta

    hits, tail = value * images, (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, images - hits + 1)) if value > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, images - hits)) if value < 1 else 1.0
    return low, high
