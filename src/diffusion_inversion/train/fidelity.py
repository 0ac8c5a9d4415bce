"""Which images do not show their label, and what is trained on in their place: pure functions of a judge's answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Source = TypeVar("Source")


def doubts(answers: Tensor, thresholds: Tensor, labels: Tensor, second: Tensor | None = None) -> Tensor:
    """How much more each image shows another class than its label: (N,) float64; -inf where it does not.

    Northcutt et al. 2021 (arXiv 1911.00068, eq. 1) count an image to the class of which it is most confident among
    those of which it is at least as confident as the class's own images are on average, t_j:

        argmax over {j : p(j; x) >= t_j} of p(j; x)

    Where that is another class than the label, the doubt is p(j; x) - p(label; x), by which they rank what to leave
    out. Where no class reaches its threshold nothing is known.

    answers: (N, C), p. thresholds: (C,), t, or (N, C). labels: (N,) int64. second: (N,) int64, another class that an
    image may show because it was blended from it. A label without a threshold (inf) cannot be doubted.
    """
    thresholds = thresholds.expand_as(answers)
    passing = torch.where(answers >= thresholds, answers, torch.zeros_like(answers))
    own = torch.zeros_like(passing, dtype=torch.bool).scatter_(1, labels[:, None], True)
    if second is not None:
        own.scatter_(1, second[:, None], True)
    other = passing.masked_fill(own, 0).amax(1)
    doubted = other > passing.masked_fill(~own, 0).amax(1)
    doubted &= thresholds.gather(1, labels[:, None])[:, 0].isfinite()
    return torch.where(doubted, other - answers.masked_fill(~own, 0).amax(1), -math.inf)


def margin(real: Tensor, share: float) -> float:
    """What a doubt must exceed, so that an image like the real ones, whose doubts (N,) are given, rarely does.

    The k-th largest of them, k = floor(share (N + 1)): of another image from where they came the doubt is larger with
    a probability of at most `share`, whatever their distribution (split conformal, Vovk et al. 2005). inf where they
    are too few for that.
    """
    rank = int(share * (len(real) + 1))
    return math.inf if rank == 0 else float(real.sort(descending=True).values[rank - 1])


def rivals(answers: Tensor, labels: Tensor) -> Tensor:
    """The class (N,) int64 beside its label that each image is most confident of, by answers (N, C)."""
    return answers.scatter(1, labels[:, None], -1.0).argmax(1)


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
