"""What run.json has of the arms and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from torch import Tensor

from ..train.evaluation import Comparison
from ..train.replicated import Replicated, by_replicate, correct_of, scope, true_labels, verdict_over
from ..train.verdict import Fall, majority, recalls
from .report.record import ArmRecord, ComparisonRecord, FallRecord, MeasureRecord, VerdictRecord


def arms_of(replicates: Sequence[Replicated]) -> dict[str, ArmRecord]:
    """Every arm over what the verdict counts: seeds, or replicates, each the mean over its seeds."""
    labels, classes = true_labels(replicates), len(replicates[0].results.class_names)
    accuracies, correct, areas = units_of(replicates), correct_of(replicates), _areas(replicates)
    return {
        arm: _arm(found, recalls(correct[arm], labels, classes), areas.get(arm)) for arm, found in accuracies.items()
    }


def units_of(replicates: Sequence[Replicated]) -> dict[str, tuple[float, ...]]:
    """Accuracies of each arm by what the verdict counts: seeds of one replicate, else replicates."""
    if len(replicates) == 1:
        return replicates[0].results.accuracies()
    return {arm: tuple(statistics.fmean(one) for one in found) for arm, found in by_replicate(replicates).items()}


def _areas(replicates: Sequence[Replicated]) -> dict[str, tuple[float, ...]]:
    found = [replicate.results.auroc() for replicate in replicates]
    if len(replicates) == 1:
        return found[0]
    return {arm: tuple(statistics.fmean(one[arm]) for one in found) for arm in found[0] if all(arm in o for o in found)}


def _arm(accuracies: Sequence[float], rates: Tensor, areas: Sequence[float] | None) -> ArmRecord:
    plain = _measure(accuracies)
    of_class = rates.nanmean(0)
    record: ArmRecord = {
        "accuracies": plain["values"],
        "mean": plain["mean"],
        "std": plain["std"],
        "n": len(accuracies),
        "balanced_accuracy": _measure(rates.nanmean(1).tolist()),
        "recall": [None if rate != rate else rate for rate in of_class.tolist()],
    }
    if areas:
        record["auroc"] = _measure(areas)
    return record


def _measure(values: Sequence[float]) -> MeasureRecord:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"values": list(values), "mean": statistics.fmean(values), "std": spread}


def verdict_of(replicates: Sequence[Replicated]) -> VerdictRecord:
    """The verdict, what it rests on and what it speaks of."""
    found = verdict_over(replicates)
    line, class_names = majority(true_labels(replicates)), replicates[0].results.class_names
    record: VerdictRecord = {
        "outcome": found.outcome,
        "headline": found.headline,
        "sentence": found.reason,
        "measure": found.measure,
        "comparisons": [comparison_record(c) for c in found.comparisons],
        "falls": [_fall(fall) for fall in found.falls],
        "majority": {
            "class_name": class_names[line.label],
            "accuracy": line.accuracy,
            "balanced_accuracy": line.balanced_accuracy,
        },
        "scope": scope(replicates),
    }
    if found.arm is not None:
        record["arm"] = found.arm
    if found.beside:
        record["beside"] = [comparison_record(c) for c in found.beside]
    if found.shrinking is not None:
        record["shrinking"] = comparison_record(found.shrinking)
        record["too_coarse"] = found.too_coarse
    return record


def comparison_record(compared: Comparison) -> ComparisonRecord:
    """A comparison as run.json has it."""
    low, high = compared.interval or (None, None)
    return {
        "arm": compared.arm,
        "baseline": compared.baseline,
        "difference": compared.difference,
        "low": low,
        "high": high,
        "confidence": compared.simultaneous_confidence,
        "outcome": compared.outcome(),
    }


def _fall(fall: Fall) -> FallRecord:
    assert fall.comparison.interval is not None
    low, high = fall.comparison.interval
    return {
        "arm": fall.comparison.arm,
        "class_name": fall.class_name,
        "difference": fall.comparison.difference,
        "low": low,
        "high": high,
        "confidence": fall.comparison.simultaneous_confidence,
    }
