"""Which images do not show their label, and what is trained on in their place: pure functions of a judge's answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Source = TypeVar("Source")


def doubts(answers: Tensor, thresholds: Tensor, labels: Tensor, second: Tensor | None = None) -> Tensor:
    """How much more each image shows another class than its label: (N,) float64 in [-2, 2]; -inf where not known.

        max over j other than the label of (p(j; x) - t_j), less p(label; x) - t_label

    with t_j of confident learning (Northcutt et al. 2021, arXiv 1911.00068, eq. 2), how confident of class j one is on
    average for its own images: so a class that is recognised with little confidence has its say too. Differs from the
    paper: eq. 1 there asks p(j; x) >= t_j of j, which about half of the clearest images of a class miss, the mean being
    the mean; here how far they are from it is compared.

    answers: (N, C), p. thresholds: (C,), t, inf for a class of which nothing is known. labels: (N,) int64. second: (N,)
    int64, another class that an image may show because it was blended from it.
    """
    excess = answers - thresholds
    own = torch.zeros_like(excess, dtype=torch.bool).scatter_(1, labels[:, None], True)
    if second is not None:
        own.scatter_(1, second[:, None], True)
    found = excess.masked_fill(own, -math.inf).amax(1) - excess.masked_fill(~own, -math.inf).amax(1)
    return torch.where(thresholds[labels].isfinite(), found, -math.inf)


def margin(real: Tensor, share: float) -> float:
    """What a doubt must exceed, at least 0, so that an image like the real ones, of doubts (N,), rarely does.

    The k-th largest of them, k = floor(share (N + 1)): of another image from where they came the doubt is larger with
    a probability of at most `share`, whatever their distribution (split conformal, Vovk et al. 2005). inf where they
    are too few for that.
    """
    rank = int(share * (len(real) + 1))
    return math.inf if rank == 0 else max(float(real.sort(descending=True).values[rank - 1]), 0.0)


def rivals(answers: Tensor, labels: Tensor) -> Tensor:
    """The class (N,) int64 beside its label that each image is most confident of, by answers (N, C)."""
    return answers.scatter(1, labels[:, None], -1.0).argmax(1)


def in_label(answers: Tensor, labels: Tensor, second: Tensor | None = None) -> Tensor:
    """How confident a judge is that each image shows what its label says: (N,) of answers (N, C).

    Of an image that was blended from two classes the label names both: the probability of either. second: the other
    class (N,) int64, the label itself where there is none.
    """
    own = answers.gather(1, labels[:, None])[:, 0]
    if second is None:
        return own
    return own + torch.where(second == labels, 0.0, answers.gather(1, second[:, None])[:, 0])


def replaced(usable: Sequence[bool], labels: Sequence[int], sources: Sequence[Source]) -> list[int]:
    """For each image (N) the row of the one to train on: itself where it is usable, else another of its class.

    So every class keeps the number of images that it had. In place of what is left out come, in turn, the usable
    images of its source, those of its class where the source has none, and itself where the class has none.
    """
    by_source: dict[tuple[int, Source], list[int]] = {}
    by_class: dict[int, list[int]] = {}
    for row, (good, label, source) in enumerate(zip(usable, labels, sources, strict=True)):
        if good:
            by_source.setdefault((label, source), []).append(row)
            by_class.setdefault(label, []).append(row)
    rows = []
    for row, good in enumerate(usable):
        stock = by_source.get((labels[row], sources[row])) or by_class.get(labels[row])
        if good or stock is None:
            rows.append(row)
            continue
        rows.append(stock[0])
        stock.append(stock.pop(0))
    return rows
