"""What a sweep found: one row for each cell and arm, paired differences, and what became of every claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..train.choosing import ChoiceRecord
from ..train.evaluation import MIN_UNITS, OWN_SIZE, compare
from ..train.replicated import Components, components, recognised
from ..train.verdict import is_uneven
from .claims import Difference, Outcome
from .elsewhere import made_by
from .pairing import require_pairable, require_paired
from .plan import Cell, Claim, Side, SweepPlan
from .work import CellJobs, Workshop
from .worst import WORST, difference, of_worst_class

METRICS = ("fid", "fid_infinity", "kid", "cmmd", "precision", "recall", "density", "coverage")


@dataclass(frozen=True, eq=False)
class RowDraw:
    """One replicate of a row: an accuracy for each classifier seed."""

    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]  # in [0, 1], in the order of the seeds
    balanced: tuple[float, ...]
    ece: tuple[float, ...]
    correct: Tensor  # (seeds, n_test) bool
    test_ids: tuple[str, ...]
    labels: Tensor  # (n_test,) int64: true classes
    real_fraction: float | None  # where it was chosen
    chosen: tuple[ChoiceRecord, ...] = ()  # what else was, as `dinv run --tune` does
    run: str | None = None  # its run folder below that of the sweep, where it has one


@dataclass(frozen=True, eq=False)
class Row:
    """An arm with the settings that make a difference to it."""

    at: Mapping[str, Any]  # the varied values it depends on
    cells: tuple[int, ...]  # every cell that shares it
    arm: str
    draws: tuple[RowDraw, ...]  # the replicates
    n_train: int
    images: int  # synthetic ones it could see
    side: int | None = None  # px, of the arm "real (own size)"

    @cached_property
    def measure(self) -> str:
        """What it is judged by, as a verdict is: balanced accuracy where the test classes are uneven."""
        return "balanced accuracy" if is_uneven(self.labels) else "accuracy"

    @cached_property
    def labels(self) -> Tensor:
        """True classes of the test images (n,), in the order of `correct`'s columns."""
        found = {i: k for draw in self.draws for i, k in zip(draw.test_ids, draw.labels.tolist(), strict=True)}
        return torch.tensor(list(found.values()), dtype=torch.int64)

    @property
    def of_seeds(self) -> tuple[tuple[float, ...], ...]:
        """In the row's measure, of each replicate one for each seed."""
        return tuple(draw.accuracies if self.measure == "accuracy" else draw.balanced for draw in self.draws)

    @property
    def unit(self) -> str:
        """What differences are paired over."""
        return "seeds" if len(self.draws) == 1 else "replicates"

    @property
    def units(self) -> tuple[float, ...]:
        """In the row's measure: of one replicate's seeds, or of the replicates, each the mean over its seeds."""
        found = self.of_seeds
        return found[0] if len(found) == 1 else tuple(map(statistics.fmean, found))

    @property
    def correct(self) -> Tensor:
        """(units, test images): which were recognised, or by what share of a replicate; NaN: not tested on."""
        if len(self.draws) == 1:
            return self.draws[0].correct
        return recognised([draw.correct for draw in self.draws], [draw.test_ids for draw in self.draws])

    @cached_property
    def worst_of_seeds(self) -> tuple[tuple[float, ...], ...]:
        """Accuracy of the worst class, of each replicate one for each seed."""
        return tuple(of_worst_class(draw.correct, draw.labels) for draw in self.draws)

    @property
    def worst_units(self) -> tuple[float, ...]:
        """As `units`, of the worst class."""
        found = self.worst_of_seeds
        return found[0] if len(found) == 1 else tuple(map(statistics.fmean, found))

    @property
    def mean(self) -> float:
        return statistics.fmean(self.units)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.units) if len(self.units) > 1 else None

    @property
    def spread(self) -> Components:
        return components(self.of_seeds)


Found = Mapping[str, Mapping[str, float | None]]  # metric's name => value, low, high, error, freedom


@dataclass(frozen=True)
class MetricsRow:
    """The metrics of one set of synthetic images, or of that of each replicate."""

    at: Mapping[str, Any]
    cells: tuple[int, ...]
    draws: tuple[Found, ...]
    n_real: int
    n_generated: int

    @property
    def metrics(self) -> Found:
        """Of one set as it was measured; of several their mean, with an interval over the replicates and the images."""
        if len(self.draws) == 1:
            return self.draws[0]
        return {name: _over_replicates(name, [draw[name] for draw in self.draws]) for name in self.draws[0]}


@dataclass(frozen=True)
class Checked:
    """A claim, each of its differences with the interval that decides, and what became of it."""

    claim: Claim
    measure: str  # what the differences are of: a metric, accuracy, or balanced accuracy
    differences: tuple[tuple[float, float | None, float | None], ...]  # of each pair: value, low, high
    outcome: Outcome
    errors: tuple[Difference, ...] = ()  # the same differences with their errors, from which any level follows


@dataclass(frozen=True)
class SweepResult:
    """All that a sweep found, rows in the order of the cells."""

    plan: SweepPlan
    generator: str  # name, hash of the weights and precision
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]
    metrics: tuple[MetricsRow, ...]
    claims: tuple[Checked, ...]


def gather(workshop: Workshop, cells: Sequence[Sequence[Cell]], jobs: Sequence[Sequence[CellJobs]]) -> SweepResult:
    """Read the results of all jobs, which are done, and judge the claims; cells and jobs by cell and replicate."""
    groups: dict[tuple[str, ...], tuple[str, list[int]]] = {}
    for place, found in enumerate(jobs):
        for arm in found[0].classifiers:
            names = [name for one in found for name in one.classifiers[arm]]
            groups.setdefault((arm, *names), (arm, []))[1].append(place)
    first = [drawn[0] for drawn in cells]
    rows = [_row(workshop, first, cells, jobs, arm, members) for arm, members in groups.values()]
    drawn: dict[tuple[str, ...], list[int]] = {}
    for place, found in enumerate(jobs):
        if names := [one.metrics for one in found if one.metrics is not None]:
            drawn.setdefault(tuple(names), []).append(place)
    metrics = []
    for measured, members in drawn.items():
        records = [workshop.read(name) for name in measured]
        at, metric = shared(first, members), tuple(record["metrics"] for record in records)
        metrics.append(MetricsRow(at, tuple(members), metric, records[0]["n_real"], records[0]["n_generated"]))
    plan = workshop.plan
    claims = tuple(_check(claim, first, rows, metrics) for claim in plan.claims)
    made_with = workshop.generator
    generator = f"{made_with.name}, weights {made_with.hash[:12]}, {made_with.record['dtype']} on {workshop.device}"
    generator += made_by(first, workshop.device)
    return SweepResult(plan, generator, tuple(first), tuple(rows), tuple(metrics), claims)


def require_answerable(workshop: Workshop, cells: Sequence[Sequence[Cell]], jobs: Sequence[Sequence[CellJobs]]) -> None:
    """Raise UsageError for a claim that names no two results of equal test images, or metrics that nobody measures."""
    plan = workshop.plan
    known = [f"{name}{workshop.suffix}" for name in METRICS] if plan.metrics is not None else []
    claimed = [claim.of for claim in plan.claims if claim.of != WORST]
    asked = [*(plan.figure.y if plan.figure is not None else ()), *claimed]
    if unknown := [name for name in asked if name not in ("accuracy", *known)]:
        raise UsageError(f"{plan.title}: {unknown[0]} is not measured here; these are: accuracy {' '.join(known)}")
    for claim, pair in ((one, pair) for one in plan.claims for pair in one.pairs):
        sides: list[Sequence[Cell]] = []
        for side in (pair.greater, pair.less):
            fitting = [(drawn, found[0]) for drawn, found in zip(cells, jobs, strict=True) if _fits(drawn[0], side)]
            if claim.of in ("accuracy", WORST):
                named = {
                    found.classifiers[side.arm]: drawn for drawn, found in fitting if side.arm in found.classifiers
                }
            else:
                named = {(found.metrics,): drawn for drawn, found in fitting if found.metrics is not None}
            if len(named) != 1:
                raise UsageError(
                    f"claim {claim.says!r}: {claim.of} of {side.arm} at {side.at} is {len(named)} results of this "
                    "sweep; name one, with all the keys that matter to it."
                )
            sides += named.values()
        if claim.of in ("accuracy", WORST):
            require_pairable(claim, workshop, *sides)


def _row(
    workshop: Workshop, first: Sequence[Cell], cells: Sequence[Sequence[Cell]], jobs: Sequence[Sequence[CellJobs]],
    arm: str, members: list[int],
) -> Row:  # fmt: skip
    place = members[0]
    drawn, images = jobs[place][0].images, 0
    if arm not in ("real", OWN_SIZE):
        if drawn is None:  # its run has them
            images = workshop.read(jobs[place][0].classifiers[arm][0])["images"]
        else:
            images = _images_of(workshop, drawn, first[place])
    return Row(
        at=shared(first, members),
        cells=tuple(members),
        arm=arm,
        draws=tuple(_draw(workshop, cell, found, arm) for cell, found in zip(cells[place], jobs[place], strict=True)),
        n_train=len(workshop.splits(first[place].data).train),
        images=images,
        side=jobs[place][0].own if arm == OWN_SIZE else None,
    )


def _draw(workshop: Workshop, cell: Cell, jobs: CellJobs, arm: str) -> RowDraw:
    found = [workshop.read(name) for name in jobs.classifiers[arm]]
    test = workshop.splits(cell.data).test
    chosen = jobs.fraction if arm == "real+synthetic" else None
    return RowDraw(
        seeds=cell.train.seeds,
        accuracies=tuple(record["accuracy"] for record in found),
        balanced=tuple(record["balanced_accuracy"] for record in found),
        ece=tuple(record["ece"] for record in found),
        correct=torch.tensor([record["predictions"] for record in found]) == test.labels,
        test_ids=test.ids,
        labels=test.labels,
        real_fraction=None if chosen is None else workshop.read(chosen)["real_fraction"],
        chosen=tuple(found[0].get("chosen", ())),
        run=found[0].get("run"),
    )


def _images_of(workshop: Workshop, job: str, cell: Cell) -> int:
    """How many images the first variants are, of the vectors that were learned: the job may have drawn more.

    Of images that come otherwise, and where counts are balanced, they are all that the job speaks of.
    """
    images = int(workshop.read(job)["images"])
    if not cell.learns or cell.sample.balance != "none":
        return images
    return images // int(job.rpartition("-")[2]) * cell.sample.variants


def shared(cells: Sequence[Cell], members: Sequence[int]) -> dict[str, Any]:
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
    errors: list[Difference] = []
    enough, measure = True, claim.of
    for pair in claim.pairs:
        if claim.of in ("accuracy", WORST):
            more, less = _find(pair.greater, cells, rows), _find(pair.less, cells, rows)
            require_paired(claim, *([(one.seeds, one.test_ids) for one in side.draws] for side in (more, less)))
        if claim.of == "accuracy":
            enough &= len(more.units) >= MIN_UNITS
            measure = more.measure
            found = compare(
                "greater",
                {"greater": more.units, "less": less.units},
                correct={"greater": more.correct, "less": less.correct},
                labels=None if measure == "accuracy" else more.labels,
                baseline="less",
                comparisons=count,
                unit=more.unit,
            )
            low, high = found.interval or (None, None)
            differences.append((found.difference, low, high))
            errors.append(
                Difference(
                    value=found.difference, units=len(more.units), unit_error=found.unit_error,
                    image_error=found.test_error, images=found.test_images,
                )
            )  # fmt: skip
        elif claim.of == WORST:
            enough &= len(more.worst_units) >= MIN_UNITS
            measure = "accuracy of the worst class"
            apart = difference(more.worst_units, less.worst_units, more.correct, less.correct, more.labels)
            differences.append(_interval(apart, 1 - 0.05 / count, least=-1.0, most=1.0))
            errors.append(apart)
        else:
            first, second = _find(pair.greater, cells, metrics), _find(pair.less, cells, metrics)
            errors.append(_errors(first.draws, second.draws, claim.of))
            differences.append(_difference(first.draws, second.draws, claim.of, count))
    outcome = judge(differences) if enough else "too noisy to say"
    return Checked(claim, measure, tuple(differences), outcome, tuple(errors))


def _errors(more: Sequence[Found], less: Sequence[Found], name: str) -> Difference:
    """Mean difference of a metric of the same replicates, with its errors; those of both sides are independent."""
    both = list(zip((one[name] for one in more), (one[name] for one in less), strict=True))
    if any(side["value"] is None for pair in both for side in pair):
        raise DataError(f"{name}: a claim is about it, but it is not defined on these features; take the claim out")
    values = [_number(a["value"]) - _number(b["value"]) for a, b in both]
    errors = [None if a["error"] is None or b["error"] is None else math.hypot(a["error"], b["error"]) for a, b in both]
    return _mean(values, errors, [side.get("freedom") for pair in both for side in pair])


def _difference(
    more: Sequence[Found], less: Sequence[Found], name: str, pairs: int
) -> tuple[float, float | None, float | None]:
    """The same with its interval."""
    least, most = _range(name)
    return _interval(_errors(more, less, name), 1 - 0.05 / pairs, least=least - most, most=most - least)


def _over_replicates(name: str, found: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    if any(one["value"] is None for one in found):  # CMMD of a row that is zero
        return {"value": None, "low": None, "high": None}
    least, most = _range(name)
    values = [_number(one["value"]) for one in found]
    mean = _mean(values, [one["error"] for one in found], [one.get("freedom") for one in found])
    value, low, high = _interval(mean, 0.95, least=least, most=most)
    return {"value": value, "low": low, "high": high}


def _mean(values: Sequence[float], errors: Sequence[float | None], freedoms: Sequence[float | None]) -> Difference:
    """Mean over replicates; `errors` are those from the images. The replicates' spread counts too, as that of seeds."""
    count = len(values)
    known = [error for error in errors if error is not None]
    return Difference(
        value=statistics.fmean(values),
        units=count,
        unit_error=math.sqrt(statistics.variance(values) / count) if count > 1 else None,
        # Not less for several: the real images are largely the same.
        image_error=math.sqrt(statistics.fmean(e**2 for e in known)) if len(known) == count else None,
        images=min((freedom + 1 for freedom in freedoms if freedom is not None), default=None),
    )


def _interval(
    found: Difference, confidence: float, *, least: float, most: float
) -> tuple[float, float | None, float | None]:
    """A value and its interval, cut to [least, most]."""
    half = found.half(confidence)
    return (found.value, None, None) if half is None else (
        found.value, max(found.value - half, least), min(found.value + half, most),
    )  # fmt: skip


def _range(name: str) -> tuple[float, float]:
    """What a metric can be."""
    if name.startswith(("precision", "recall", "coverage")):
        return 0.0, 1.0
    return (-math.inf if name.startswith("kid") else 0.0), math.inf


def _number(value: float | None) -> float:
    assert value is not None
    return value


def judge(differences: Sequence[tuple[float, float | None, float | None]]) -> Outcome:
    """holds: every interval is above 0; does not hold: one is below 0; else nobody can say."""
    if any(high is not None and high < 0 for _, _, high in differences):
        return "does not hold"
    return "holds" if all(low is not None and low > 0 for _, low, _ in differences) else "too noisy to say"
