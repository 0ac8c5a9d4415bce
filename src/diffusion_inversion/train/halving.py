"""Which of several choices is better than the default: successive halving over folds, judged by an interval.

Candidates and the default are tried on the same cells, each a classifier seed and a fold. After every rung the better
half goes on (Jamieson & Talwalkar 2016). What is left in the end is chosen only if its interval against the default
(`evaluation.compare`, paired over folds, Bonferroni-corrected over all that were tried) lies above 0. That holds
whatever the rungs selected, since the intervals of all candidates hold together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .evaluation import Comparison, compare
from .verdict import is_uneven, recalls


@dataclass(frozen=True)
class Cell:
    """One training: its classifier seed, and the fold that is held out."""

    seed: int
    fold: int


@dataclass(frozen=True)
class Trial:
    """What one training recognised of the images that were held out, and what it took."""

    fold: int
    rows: Sequence[int]  # of all real images: those of the fold
    correct: Tensor  # (rows,) bool
    seconds: float  # of the training
    drawing: float = 0.0  # seconds of drawing its images, where that was done for this trial


@dataclass(frozen=True)
class Choice:
    """What was found of each candidate, and which was chosen."""

    chosen: int | None  # place among the candidates; None: the default
    comparisons: tuple[Comparison | None, ...]  # of each candidate with the default; None: not tried
    cells: tuple[int, ...]  # on how many cells each was tried
    trials: int  # of all and the default
    seconds: float  # that these took
    cut_short: bool  # the budget ended it
    measure: str  # accuracy, or balanced accuracy where the classes are uneven


def rungs(candidates: int, cells: int) -> list[tuple[int, int]]:
    """How many candidates are tried up to how many cells, rung by rung; the last has one candidate and all cells."""
    counts = [max(candidates, 1)]
    while counts[-1] > 1:
        counts.append((counts[-1] + 1) // 2)
    last = len(counts) - 1
    return [(count, max(-(-cells // 2 ** (last - rung)), 1)) for rung, count in enumerate(counts)]


def trials_of(candidates: int, cells: int) -> int:
    """How many trainings the rungs have, those of the default among them."""
    total = done = 0
    for count, upto in rungs(candidates, cells):
        total += (count + 1) * (upto - done)
        done = upto
    return total


def halve(
    candidates: int,
    cells: Sequence[Cell],
    try_one: Callable[[int | None, Cell], Trial],
    labels: Tensor,
    *,
    budget: float | None = None,
    longest: tuple[float, float] = (0.0, 0.0),
    comparisons: int | None = None,
) -> Choice:
    """Choose among so many candidates and the default, which `try_one(None, cell)` tries.

    labels: (N,) true classes of the real images, whose rows the trials name.
    budget: seconds that trials may take, None: no end. As many cells are planned as it pays for once every candidate
        was tried on one, and no trial begins that would exceed it if it took as long as the longest before it.
    longest: seconds of the longest training and of the longest drawing before this choice; where there was none, the
        first trial is always done.
    comparisons: how many candidates there are in all, where other choices belong to the same family.
    """
    tried: dict[int | None, list[Trial]] = {one: [] for one in (None, *range(candidates))}
    alive = list(range(candidates))
    uneven = is_uneven(labels)
    family = max(comparisons or candidates, 1)

    def spent() -> float:
        return sum(trial.seconds + trial.drawing for trials in tried.values() for trial in trials)

    def affordable(one: int | None) -> bool:
        every = [trial for trials in tried.values() for trial in trials]
        if budget is None or not (every or any(longest)):
            return True
        expected = max(longest[0], *(trial.seconds for trial in every), 0.0)
        if not tried[one]:  # its images may have to be drawn
            expected += max(longest[1], *(trial.drawing for trial in every), 0.0)
        return spent() + expected <= budget

    def go_on(upto: int) -> bool:
        """Try whatever is alive on the cells up to a number; whether the budget sufficed."""
        for cell in cells[len(tried[None]) : upto]:
            for one in (None, *alive):
                if not affordable(one):
                    return False
                tried[one].append(try_one(one, cell))
        return True

    def found(one: int) -> Comparison | None:
        count = min(len(tried[one]), len(tried[None]))
        if not count:
            return None
        return _compared(tried[one][:count], tried[None][:count], labels, uneven, family)

    def gain(one: int) -> tuple[float, int]:
        compared = found(one)
        return (-2.0 if compared is None else compared.difference, -one)

    whole = bool(candidates) and go_on(1)
    planned = len(cells)
    if budget is not None and whole:
        each = max(longest[0], *(trial.seconds for trials in tried.values() for trial in trials))
        left = (budget - spent()) / each if each else float("inf")
        while planned > 1 and trials_of(candidates, planned) - (candidates + 1) > left:
            planned -= 1
    for count, upto in rungs(candidates, planned):
        alive = sorted(sorted(alive, key=gain, reverse=True)[:count])
        whole = whole and go_on(upto)
        if not whole:
            break
    best = max(alive, key=gain, default=None)
    compared = tuple(found(one) for one in range(candidates))
    won = best is not None and (last := compared[best]) is not None and last.outcome() == "helps"
    return Choice(
        best if won else None,
        compared,
        tuple(len(tried[one]) for one in range(candidates)),
        sum(map(len, tried.values())),
        spent(),
        bool(candidates) and (not whole or planned < len(cells)),
        "balanced accuracy" if uneven else "accuracy",
    )


def _compared(ours: Sequence[Trial], theirs: Sequence[Trial], labels: Tensor, uneven: bool, family: int) -> Comparison:
    """A candidate with the default on the same cells: a fold is a unit, each with images of its own."""
    correct = {"candidate": _by_fold(ours, len(labels)), "default": _by_fold(theirs, len(labels))}
    classes = int(labels.max()) + 1
    rates = {
        name: (recalls(hits, labels, classes) if uneven else hits).nanmean(1).tolist() for name, hits in correct.items()
    }
    return compare(
        "candidate", rates, correct=correct, labels=labels if uneven else None, baseline="default",
        comparisons=family, unit="folds",
    )  # fmt: skip


def _by_fold(trials: Sequence[Trial], images: int) -> Tensor:
    """(folds, images): the share of a fold's classifiers that recognised an image, NaN where it was not held out."""
    folds = list(dict.fromkeys(trial.fold for trial in trials))
    found = torch.full((len(folds), images), torch.nan, dtype=torch.float64)
    for place, fold in enumerate(folds):
        same = [trial for trial in trials if trial.fold == fold]
        found[place, list(same[0].rows)] = torch.stack([trial.correct.double() for trial in same]).mean(0)
    return found
