"""What a sweep found: one row for each cell and arm, paired differences, and what became of every claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..evaluation import MIN_SEEDS, compare
from .plan import Cell, Claim, Side, SweepPlan
from .work import CellJobs, Workshop

METRICS = ("fid", "fid_infinity", "kid", "cmmd", "precision", "recall", "density", "coverage")
Outcome = Literal["holds", "does not hold", "too noisy to say"]


@dataclass(frozen=True, eq=False)
class Row:
    """An arm with the settings that make a difference to it."""

    at: Mapping[str, Any]  # the varied values it depends on
    cells: tuple[int, ...]  # every cell that shares it
    arm: str
    accuracies: tuple[float, ...]  # in [0, 1], in the order of the seeds
    balanced: tuple[float, ...]
    ece: tuple[float, ...]
    correct: Tensor  # (seeds, n_test) bool
    n_train: int
    images: int  # synthetic ones it could see
    real_fraction: float | None  # where it was chosen

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class MetricsRow:
    """The metrics of one set of synthetic images."""

    at: Mapping[str, Any]
    cells: tuple[int, ...]
    metrics: Mapping[str, Mapping[str, float | None]]  # name => value, low, high
    n_real: int
    n_generated: int


@dataclass(frozen=True)
class Checked:
    """A claim, each of its differences with the interval that decides, and what became of it."""

    claim: Claim
    differences: tuple[tuple[float, float | None, float | None], ...]  # of each pair: value, low, high
    outcome: Outcome


@dataclass(frozen=True)
class SweepResult:
    """All that a sweep found, rows in the order of the cells."""

    plan: SweepPlan
    generator: str  # name, hash of the weights and precision
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]
    metrics: tuple[MetricsRow, ...]
    claims: tuple[Checked, ...]

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """The seeds of a row's classifiers, in the order of its accuracies."""
        return self.cells[row.cells[0]].train.seeds


def gather(workshop: Workshop, cells: Sequence[Cell], jobs: Sequence[CellJobs]) -> SweepResult:
    """Read the results of all jobs, which are done, and judge the claims."""
    groups: dict[tuple[str, ...], tuple[str, list[int]]] = {}
    for place, found in enumerate(jobs):
        for arm, names in found.classifiers.items():
            groups.setdefault((arm, *names), (arm, []))[1].append(place)
    rows = [_row(workshop, cells, jobs, arm, names[1:], members) for names, (arm, members) in groups.items()]
    drawn: dict[str, list[int]] = {}
    for place, found in enumerate(jobs):
        if found.metrics is not None:
            drawn.setdefault(found.metrics, []).append(place)
    metrics = []
    for name, members in drawn.items():
        record = workshop.read(name)
        at = _shared(cells, members)
        metrics.append(MetricsRow(at, tuple(members), record["metrics"], record["n_real"], record["n_generated"]))
    plan = workshop.plan
    claims = tuple(_check(claim, cells, rows, metrics) for claim in plan.claims)
    made_with = workshop.generator
    generator = f"{made_with.name}, weights {made_with.hash[:12]}, {made_with.record['dtype']} on {workshop.device}"
    return SweepResult(plan, generator, tuple(cells), tuple(rows), tuple(metrics), claims)


def require_answerable(plan: SweepPlan, cells: Sequence[Cell], jobs: Sequence[CellJobs], suffix: str) -> None:
    """Raise UsageError for a claim that does not name one result, or metrics that nobody measures."""
    known = [f"{name}{suffix}" for name in METRICS] if plan.metrics is not None else []
    asked = [*(plan.figure.y if plan.figure is not None else ()), *(claim.of for claim in plan.claims)]
    if unknown := [name for name in asked if name not in ("accuracy", *known)]:
        raise UsageError(f"{plan.title}: {unknown[0]} is not measured here; these are: accuracy {' '.join(known)}")
    for claim in plan.claims:
        for side in (side for pair in claim.pairs for side in (pair.greater, pair.less)):
            fitting = [found for cell, found in zip(cells, jobs, strict=True) if _fits(cell, side)]
            if claim.of == "accuracy":
                named = {found.classifiers[side.arm] for found in fitting if side.arm in found.classifiers}
            else:
                named = {(found.metrics,) for found in fitting if found.metrics is not None}
            if len(named) != 1:
                raise UsageError(
                    f"claim {claim.says!r}: {claim.of} of {side.arm} at {side.at} is {len(named)} results of this "
                    "sweep; name one, with all the keys that matter to it."
                )


def _row(
    workshop: Workshop, cells: Sequence[Cell], jobs: Sequence[CellJobs], arm: str, names: tuple[str, ...],
    members: list[int],
) -> Row:  # fmt: skip
    found = [workshop.read(name) for name in names]
    first = members[0]
    splits = workshop.splits(cells[first].data)
    predictions = torch.tensor([record["predictions"] for record in found])
    chosen = jobs[first].fraction if arm == "real+synthetic" else None
    drawn = jobs[first].images
    images = 0 if arm == "real" or drawn is None else _of_variants(workshop, drawn, cells[first].sample.variants)
    return Row(
        at=_shared(cells, members),
        cells=tuple(members),
        arm=arm,
        accuracies=tuple(record["accuracy"] for record in found),
        balanced=tuple(record["balanced_accuracy"] for record in found),
        ece=tuple(record["ece"] for record in found),
        correct=predictions == splits.test.labels,
        n_train=len(splits.train),
        images=images,
        real_fraction=None if chosen is None else workshop.read(chosen)["real_fraction"],
    )


def _of_variants(workshop: Workshop, job: str, variants: int) -> int:
    """How many images the first variants are, of the vectors that were learned; the job may have drawn more."""
    return int(workshop.read(job)["images"]) // int(job.rpartition("-")[2]) * variants


def _shared(cells: Sequence[Cell], members: Sequence[int]) -> dict[str, Any]:
    """The varied values that cells have in common: those that make no difference to what they share are left out."""
    first, *others = [cells[place].at for place in members]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def _fits(cell: Cell, side: Side) -> bool:
    return all(cell.at.get(key) == value for key, value in side.at.items())


def _find(side: Side, cells: Sequence[Cell], rows: Sequence[Any]) -> Any:
    wanted = {place for place, cell in enumerate(cells) if _fits(cell, side)}
    return next(row for row in rows if wanted & set(row.cells) and getattr(row, "arm", side.arm) == side.arm)


def _check(claim: Claim, cells: Sequence[Cell], rows: Sequence[Row], metrics: Sequence[MetricsRow]) -> Checked:
    """Compare each pair at a level that makes all intervals of the claim hold together at 95 % (Bonferroni)."""
    count = len(claim.pairs)
    differences: list[tuple[float, float | None, float | None]] = []
    enough = True
    for pair in claim.pairs:
        if claim.of == "accuracy":
            more, less = _find(pair.greater, cells, rows), _find(pair.less, cells, rows)
            enough &= len(more.accuracies) >= MIN_SEEDS
            found = compare(
                "greater",
                {"greater": more.accuracies, "less": less.accuracies},
                correct={"greater": more.correct, "less": less.correct},
                baseline="less",
                comparisons=count,
            )
            low, high = found.interval or (None, None)
            differences.append((found.difference, low, high))
        else:
            first, second = _find(pair.greater, cells, metrics), _find(pair.less, cells, metrics)
            differences.append(_difference(first.metrics, second.metrics, claim.of, count))
    return Checked(claim, tuple(differences), judge(differences) if enough else "too noisy to say")


def _difference(
    more: Mapping[str, Mapping[str, float | None]],
    less: Mapping[str, Mapping[str, float | None]],
    name: str,
    pairs: int,
) -> tuple[float, float | None, float | None]:
    """Difference of two metrics with the interval of independent errors; theirs are 95 % intervals of a normal."""
    from scipy.stats import norm

    def bounds(found: Mapping[str, float | None]) -> tuple[float, float | None]:
        """Value and standard error, None where there is no interval."""
        value, low, high = found["value"], found["low"], found["high"]
        if value is None:
            raise DataError(f"{name}: a claim is about it, but it is not defined on these features; take the claim out")
        return value, None if low is None or high is None else (high - low) / (2 * float(norm.ppf(0.975)))

    (first, first_error), (second, second_error) = bounds(more[name]), bounds(less[name])
    if first_error is None or second_error is None:
        return first - second, None, None
    half = float(norm.ppf(1 - 0.025 / pairs)) * math.hypot(first_error, second_error)
    return first - second, first - second - half, first - second + half


def judge(differences: Sequence[tuple[float, float | None, float | None]]) -> Outcome:
    """holds: every interval is above 0; does not hold: one is below 0; else nobody can say."""
    if any(high is not None and high < 0 for _, _, high in differences):
        return "does not hold"
    return "holds" if all(low is not None and low > 0 for _, low, _ in differences) else "too noisy to say"
