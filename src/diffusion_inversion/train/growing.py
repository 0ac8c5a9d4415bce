"""Which images a growing set gets: how many of each class, and which of the candidates. Pure functions."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .folds import Split, in_order


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


def at_one_rate(
    parts: Sequence[Split], labels: Sequence[int], origins: Sequence[int], ids: Sequence[str]
) -> list[Split]:
    """Parts with as many synthetic images for each real one of a class as the smallest has, or all that there are.

    parts: of one fold, each within the next. labels: the class of each real row. origins, ids: of each synthetic
    row the real row around which it was drawn, and its name. Each part keeps what the one before kept; the rest is
    taken in turn from the sources that have fewest, in the order of hashes of the ids.
    """
    kept = list(parts[0].synthetic)
    real = Counter(labels[row] for row in parts[0].training)
    made = Counter(labels[origins[row]] for row in kept)
    found = [parts[0]]
    for part in parts[1:]:
        sizes = Counter(labels[row] for row in part.training)
        has = Counter(origins[row] for row in kept)
        rest: dict[int, list[int]] = {label: [] for label in real}
        for row in {*part.synthetic}.difference(kept):
            rest[labels[origins[row]]].append(row)
        own = Counter(labels[origins[row]] for row in kept)
        for label in sorted(real):
            wanted = round(made[label] * sizes[label] / real[label]) - own[label]
            kept += _in_turn(rest[label], has, origins, ids, wanted)
        found.append(replace(part, synthetic=tuple(sorted(kept))))
    return found


def _in_turn(
    rest: Sequence[int], has: Counter[int], origins: Sequence[int], ids: Sequence[str], wanted: int
) -> list[int]:
    """`wanted` of the synthetic rows `rest`, or all, each next one of a source that has fewest."""
    waiting: dict[int, list[int]] = {}
    for row in sorted(rest, key=lambda row: in_order(ids[row]), reverse=True):
        waiting.setdefault(origins[row], []).append(row)
    queue = [(has[source], in_order(ids[rows[-1]]), source) for source, rows in waiting.items()]
    heapq.heapify(queue)
    taken: list[int] = []
    while queue and len(taken) < wanted:
        count, _, source = heapq.heappop(queue)
        taken.append(waiting[source].pop())
        if waiting[source]:
            heapq.heappush(queue, (count + 1, in_order(ids[waiting[source][-1]]), source))
    return taken
