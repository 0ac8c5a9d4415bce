"""Where "too near" begins: a threshold that images which copy nothing pass at a stated rate, in finite samples.

Split conformal testing (Vovk, Gammerman and Shafer 2005; Bates et al. 2023, arXiv 2104.08279). The null are the scores
of m images of which none was copied. An image x whose score s is exchangeable with theirs has the p-value

    p = (1 + number of null scores <= s) / (m + 1),    P(p <= rate) <= rate,

whatever the distribution. p <= rate means s < the j-th smallest null score, j = floor(rate (m + 1)). With j = 0 the
null is too small for the rate: m + 1 must be at least 1 / rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Threshold:
    """An image is flagged where its score is below `value`. `rate` is what m images can guarantee, at least the asked.

    at_most: the rate that holds with 95 % confidence for this one null. Over all nulls, images that copy nothing are
    flagged at `rate` or less; for one, at a rate that follows Beta(j, m + 1 - j).
    """

    value: float
    rate: float
    asked: float
    images: int  # m

    @property
    def holds(self) -> bool:
        """Whether the null is large enough for the rate that was asked for."""
        return self.rate <= self.asked

    @property
    def at_most(self) -> float:
        from scipy.stats import beta

        place = _place(self.rate, self.images)
        return float(beta.ppf(0.95, place, self.images + 1 - place))

    def flags(self, scores: Tensor) -> Tensor:
        """Which of scores (N,) are too near: bool (N,)."""
        return scores < self.value


def threshold(null: Tensor, rate: float) -> Threshold:
    """The threshold on scores, small = near, that the null scores (m,) give for a false-positive rate in (0, 1).

    Where they are too few for the rate, the smallest of them, with the rate 1 / (m + 1) that it guarantees.
    Raises ValueError for a rate outside (0, 1), for no scores, and for one that is no number.
    """
    count = len(null)
    if not 0 < rate < 1 or not count or bool(null.isnan().any()):
        raise ValueError(f"rate {rate}, {count} null scores: give a rate between 0 and 1 and scores that are numbers")
    place = _place(rate, count)
    value = float(null.sort().values[max(place, 1) - 1])
    return Threshold(value, max(rate, 1 / (count + 1)), rate, count)


def p_values(null: Tensor, scores: Tensor) -> Tensor:
    """(1 + number of null scores (m,) that are not larger) / (m + 1) of each score: float64 (N,) in (0, 1]."""
    below = torch.searchsorted(null.sort().values, scores.to(null.dtype), right=True)
    return (1 + below).double() / (len(null) + 1)


def _place(rate: float, images: int) -> int:
    """j = floor(rate (m + 1)); the tiny addition keeps 0.01 x 100 from being 0.999..."""
    return math.floor(rate * (images + 1) + 1e-9)
