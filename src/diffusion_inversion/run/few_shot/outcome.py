"""What learners scored: accuracies by method, addition and shots, and paired differences with their intervals.

As for a verdict, balanced accuracy counts where the test classes are uneven.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...train.evaluation import Comparison, compare
from ...train.few_shot.tip_adapter import Choice
from ...train.verdict import is_uneven, measured
from .additions import NONE

ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Training:
    """One learner at one seed, or zero-shot classification, which has neither shots nor a seed of its own."""

    method: str
    shots: int  # 0: zero-shot
    seed: int
    addition: str
    synthetic_images: int
    accuracy: float  # in [0, 1]
    balanced_accuracy: float
    correct: Tensor  # (n_test,) bool
    labels: Tensor  # (n_test,) int64: true classes
    choice: Choice | None


@dataclass(frozen=True)
class Row:
    """A learner with one addition at one number of shots: one training for each seed."""

    method: str
    addition: str
    shots: int
    trainings: tuple[Training, ...]

    @property
    def accuracies(self) -> tuple[float, ...]:
        return tuple(training.accuracy for training in self.trainings)

    @cached_property
    def measure(self) -> str:
        """What mean, spread and differences are of."""
        return "balanced accuracy" if is_uneven(self.trainings[0].labels) else "accuracy"

    @property
    def values(self) -> tuple[float, ...]:
        """In the row's measure, one for each training."""
        return tuple(t.accuracy if self.measure == "accuracy" else t.balanced_accuracy for t in self.trainings)

    @property
    def correct(self) -> Tensor:
        """(seeds, n_test) bool."""
        return torch.stack([training.correct for training in self.trainings])

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if len(self.trainings) > 1 else None

    @property
    def label(self) -> str:
        return self.method if self.addition == NONE else f"{self.method} + {self.addition}"


@dataclass(frozen=True)
class Difference:
    """An arm minus another at the same shots, paired over seeds."""

    shots: int
    comparison: Comparison


@dataclass(frozen=True)
class FewShotResult:
    """All that was measured. unknown: additions of which nobody knows what real images they were made from."""

    data: str
    clip: str
    n_test: int
    class_names: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    unknown: tuple[str, ...]

    @property
    def measure(self) -> str:
        """`Row.measure`: all rows have the same test images."""
        return self.rows[0].measure


def rows_of(trainings: Sequence[Training]) -> tuple[Row, ...]:
    """The trainings by method, addition and shots, methods and additions in the order in which they come first."""
    methods = list(dict.fromkeys(training.method for training in trainings))
    additions = list(dict.fromkeys(training.addition for training in trainings))
    groups: dict[tuple[str, str, int], list[Training]] = {}
    for training in trainings:
        groups.setdefault((training.method, training.addition, training.shots), []).append(training)
    ordered = sorted(groups, key=lambda key: (methods.index(key[0]), additions.index(key[1]), key[2]))
    return tuple(Row(*key, tuple(groups[key])) for key in ordered)


def differences_of(rows: Sequence[Row]) -> tuple[Difference, ...]:
    """Each addition against none, and each learner without additions against zero-shot classification.

    Intervals of one kind of difference hold together at 95 % (Bonferroni). Zero-shot classification is the same at
    every seed.
    """
    place = {(row.method, row.addition, row.shots): row for row in rows}
    fixed = next((row for row in rows if row.method == ZERO_SHOT), None)
    added = [
        (row, plain)
        for row in rows
        if row.addition != NONE and (plain := place.get((row.method, NONE, row.shots))) is not None
    ]
    learned = [(row, fixed) for row in rows if row.addition == NONE and row is not fixed] if fixed else []
    found = []
    for pairs in (added, learned):
        for row, other in pairs:
            times = len(row.trainings) // len(other.trainings)
            correct = {row.label: row.correct, other.label: other.correct.repeat(times, 1)}
            accuracies = {row.label: row.accuracies, other.label: other.accuracies * times}
            _, classes, values = measured(accuracies, correct, row.trainings[0].labels)
            compared = compare(
                row.label, values, correct=correct, labels=classes, baseline=other.label, comparisons=len(pairs)
            )
            found.append(Difference(row.shots, compared))
    return tuple(found)


def record(found: FewShotResult) -> dict[str, Any]:
    """All of it as JSON data; `measure` is there where it is not accuracy."""
    return {
        "data": found.data,
        "clip": found.clip,
        "n_test": found.n_test,
        "class_names": list(found.class_names),
        "seeds": list(found.seeds),
        **({} if found.measure == "accuracy" else {"measure": found.measure}),
        "rows": [
            {
                "method": row.method, "with": row.addition, "shots": row.shots, "accuracies": row.accuracies,
                "mean": row.mean, "std": row.std, "n": len(row.trainings),
                "balanced_accuracies": [training.balanced_accuracy for training in row.trainings],
                "synthetic_images": [training.synthetic_images for training in row.trainings],
                "chosen": [
                    None if (choice := training.choice) is None else vars(choice) for training in row.trainings
                ],
            }
            for row in found.rows
        ],
        "differences": [
            {
                "shots": one.shots, "arm": one.comparison.arm, "baseline": one.comparison.baseline,
                "difference": one.comparison.difference, "interval": one.comparison.interval,
                "confidence": one.comparison.simultaneous_confidence, "n": len(one.comparison.differences),
                "outcome": one.comparison.outcome(),
            }
            for one in found.differences
        ],
        "sources_unknown": list(found.unknown),
    }  # fmt: skip
