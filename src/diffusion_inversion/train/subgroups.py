"""What each arm recognises of subgroups of the test images, as an attribute parts them, and how sure it is of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .evaluation import BASELINE, CONFIDENCE, OWN_SIZE, Comparison, calibration_error, compare
from .replicated import Replicated, by_replicate, correct_of, tested_ids

_NOTHING = "nothing"  # an arm that recognises no image: the difference to it is an accuracy


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds or replicates in [0, 1], and its 95 % interval; None with one of them."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Subgroup:
    """The test images with one value of the attribute."""

    value: str
    images: int
    accuracy: Mapping[str, Estimate]  # of each arm; interval over units and over the choice of test images
    ece: Mapping[str, Estimate]  # expected calibration error, interval over units alone; arms where it was measured
    comparisons: tuple[Comparison, ...]  # of every other arm with the baseline; all of all subgroups hold together


@dataclass(frozen=True)
class Subgroups:
    """All of them, in the order of their values."""

    baseline: str | None  # None where no arm of real images alone was trained
    parts: tuple[Subgroup, ...]

    @property
    def worst(self) -> Subgroup | None:
        """The one of which the baseline recognises least."""
        baseline = self.baseline
        return None if baseline is None else min(self.parts, key=lambda part: part.accuracy[baseline].mean)

    @property
    def lowered(self) -> tuple[Comparison, ...]:
        """Of the worst subgroup the comparisons of arms that recognise less of it, beyond the interval."""
        return tuple(one for one in self.worst.comparisons if one.outcome() == "harms") if self.worst else ()


def subgroups(replicates: Sequence[Replicated], value_of: Mapping[str, str]) -> Subgroups:
    """Measure every arm on the test images of each value; `value_of` has the value of every test image, by id.

    Units are seeds, or of several replicates these, each the mean over its seeds. Intervals are those of
    `evaluation.compare`. Of the differences all hold together (Bonferroni over arms and subgroups), so that the
    subgroup which is worst may be looked for after the fact.
    """
    ids = tested_ids(replicates)
    correct = {arm: hits.double() for arm, hits in correct_of(replicates).items()}
    baseline = next((arm for arm in (OWN_SIZE, BASELINE) if arm in correct), None)
    others = [arm for arm in correct if arm not in (OWN_SIZE, BASELINE)] if baseline else []
    values = sorted({value_of[image_id] for image_id in ids})
    unit = "seeds" if len(replicates) == 1 else "replicates"
    parts = []
    for value in values:
        columns = torch.tensor([value_of[image_id] == value for image_id in ids])
        tested = ~next(iter(correct.values()))[:, columns].isnan().all(1)  # replicates may have none of them
        hits = {arm: found[:, columns][tested] for arm, found in correct.items()}
        rates = {arm: found.nanmean(1).tolist() for arm, found in hits.items()}
        compared = [
            compare(arm, rates, correct=hits, baseline=baseline, comparisons=len(others) * len(values), unit=unit)
            for arm in others
            if baseline is not None
        ]
        accuracy = {arm: _accuracy(rates[arm], found) for arm, found in hits.items()}
        ece = _calibration(replicates, value_of, value)
        parts.append(Subgroup(value, int(columns.sum()), accuracy, ece, tuple(compared)))
    return Subgroups(baseline, tuple(parts))


def _accuracy(rates: Sequence[float], hits: Tensor) -> Estimate:
    found = compare(
        "arm",
        {"arm": rates, _NOTHING: [0.0] * len(rates)},
        correct={"arm": hits, _NOTHING: torch.zeros_like(hits)},
        baseline=_NOTHING,
    )
    low, high = found.interval or (None, None)
    return Estimate(found.difference, None if low is None else max(low, 0.0), high)


def _calibration(replicates: Sequence[Replicated], value_of: Mapping[str, str], value: str) -> dict[str, Estimate]:
    by_arm: dict[str, list[list[float]]] = {arm: [] for arm in by_replicate(replicates)}
    for replicate in replicates:
        rows = torch.tensor([value_of[image_id] == value for image_id in replicate.test_ids])
        if not rows.any():
            continue
        correct = {arm: hits[:, rows] for arm, hits in replicate.results.correct().items()}
        for arm, errors in by_arm.items():
            found = [run.evaluation.confidences for run in replicate.results.runs if run.arm == arm]
            errors.append(
                [
                    calibration_error(one[rows], hits)
                    for one, hits in zip(found, correct[arm], strict=True)
                    if one is not None
                ]
            )
    measured = {arm: found for arm, found in by_arm.items() if all(found)}
    return {
        arm: _over_units(found[0] if len(replicates) == 1 else [statistics.fmean(one) for one in found])
        for arm, found in measured.items()
    }


def _over_units(values: Sequence[float]) -> Estimate:
    """The mean with its t interval, cut to [0, 1]."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * error
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0))
