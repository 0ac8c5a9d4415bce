"""How well a score tells images that were learned from images of the same kind that were not: membership inference.

A score is larger where an image looks more like one that was learned. Two figures (Carlini et al. 2022, arXiv
2112.03570): the area under the ROC curve, which is the chance that a random member scores above a random other image,
and the share of members that are named where a rate of the others, 1 %, is named falsely.

Scores are calibrated, since some images are easy for every model and some for none: what the same score is without the
image is taken off (Watson et al. 2022, arXiv 2111.08440). The references are models, or sets of images, that others
than the image went into.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .copies.conformal import threshold
from .copies.shares import interval, share

FEWEST = 20  # members, and other images: with fewer an interval says nothing
CONFIDENCE = 0.95
_DECIMALS = 9  # of a calibrated score: two that differ by rounding alone are a tie


@dataclass(frozen=True)
class Told:
    """How well members are told; every figure in [0, 1], intervals at 95 %, each image counted as independent."""

    auc: float
    auc_low: float
    auc_high: float
    true_positives: float  # share of the members above the threshold
    true_low: float
    true_high: float
    false_positives: float  # share of fresh others above it, at most, on average (`conformal.Threshold.rate`)
    false_at_most: float  # the same for this threshold, with 95 % confidence
    members: int
    others: int

    def record(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def told(members: Tensor, others: Tensor, rate: float) -> Told:
    """How well scores of members (M,) lie above those of others (N,), with the true positives at a rate in (0, 1).

    The interval of the area is that of Clopper and Pearson for as many images as DeLong's variance (DeLong et al.
    1988) is worth, so it stays in [0, 1] and is not empty where members and others are apart. The threshold is the
    audit's (`copies/conformal.py`), from the others: it holds the rate on average, where N + 1 >= 1 / rate. The
    interval of the true positives is that of the share of members above this threshold, which owes nothing to them.

    Raises ValueError below `FEWEST` scores a side, and for scores that are no finite numbers.
    """
    from sklearn.metrics import roc_auc_score

    if min(len(members), len(others)) < FEWEST or not bool(torch.cat([members, others]).isfinite().all()):
        raise ValueError(f"{len(members)} and {len(others)} scores: at least {FEWEST} a side are needed, all finite")
    members, others = members.double(), others.double()
    truth = torch.cat([torch.ones(len(members)), torch.zeros(len(others))])
    area = float(roc_auc_score(truth.numpy(), torch.cat([members, others]).numpy()))
    variance = _share_below(members, others).var() / len(members) + _share_below(others, members).var() / len(others)
    worth = float(min(len(members), len(others)))
    if variance > 0:
        worth = min(area * (1 - area) / float(variance), float(len(truth)))
    low, high = interval(area, worth, CONFIDENCE)
    limit = threshold(-others, rate)
    above = share(limit.flags(-members), confidence=CONFIDENCE)
    return Told(
        auc=area,
        auc_low=low,
        auc_high=high,
        true_positives=above.value,
        true_low=above.low,
        true_high=above.high,
        false_positives=limit.rate,
        false_at_most=limit.at_most,
        members=len(members),
        others=len(others),
    )


def calibrated(scores: Tensor, references: Tensor, others: Tensor) -> Tensor:
    """Scores (M,) less the mean of what references (R, M) give the same images, NaN where a reference knows an image.

    References differ in what they give to images that none of them knows, `others` bool (M,): that mean is taken off
    each first, so that it makes no difference which of them know an image. Where all know it the result is NaN.
    """
    level = references[:, others].nanmean(dim=1, keepdim=True)
    return (scores - (references - level).nanmean(dim=0)).round(decimals=_DECIMALS)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log p / (1 - p) (N,) float64 of the true class, by logits (N, classes): more normal than the loss -log p."""
    logits = logits.double()
    true = logits.gather(1, labels[:, None])[:, 0]
    return true - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)


def _share_below(scores: Tensor, of: Tensor) -> Tensor:
    """Share of `of` (N,) that lies below each score (M,), ties counted half."""
    ranked = of.sort().values
    below, not_above = (torch.searchsorted(ranked, scores, right=right) for right in (False, True))
    return (below + not_above).double() / (2 * len(of))
