"""Finished runs side by side: settings, what each found, and run against run where both have the same test images.

Nothing is computed anew: the predictions of every classifier are on record, and test images are told by their pixels,
so that the data need not be there and may lie elsewhere for each run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..engine.ledger import Ledger
from ..errors import UsageError
from ..sample.synthetic import SyntheticStore
from ..train.arms import ArmResults, ArmRun
from ..train.evaluation import compare, score
from ..train.replicated import Replicated, correct_of, true_labels
from ..train.store import ClassifierStore
from ..train.verdict import measured
from .fidelity.copies import recorded_copies
from .fidelity.stage import recorded_filter
from .images import read_record
from .layout import GENERATOR_FILE, RUN_FILE
from .methods import method_of
from .replicates import replicate_folders
from .report import RunRecord
from .trained import arms_trained
from .verdict_record import comparison_record, units_of

ABSENT = "-"  # a setting that a run does not have


@dataclass(frozen=True)
class Finished:
    """A run that went through; arms are called as they are stored, test images by their pixels and class."""

    name: str
    folder: Path
    record: RunRecord
    replicates: tuple[Replicated, ...]
    shown: Mapping[str, str]  # arm as it is stored => as the report calls it


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """The record of a comparison, JSON data: `runs`, `settings` that differ and those that do not, and `against`.

    Each run against the first, arm by arm: differences paired over test images and seeds or replicates, whose
    intervals (`evaluation.compare`) hold together over all of `against`; or `why` there are none. Raises UsageError
    for fewer than two runs, a folder that is no run or not a finished one, and runs of different classes; DataError
    for damaged files.
    """
    whole = [folder.resolve() for folder in folders]
    if len(whole) < 2 or len({*whole}) < len(whole):
        twice = next((str(one) for one in folders if whole.count(one.resolve()) > 1), None)
        said = "one run" if twice is None else f"{twice} twice"
        raise UsageError(f"dinv compare: {said}; give two or more different run folders")
    for folder in folders:
        _require_finished(folder)
    names = [folder.name for folder in whole]
    first, *others = (
        _read(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    )
    for other in others:
        _require_same_classes(first, other)
    pairs = [(other, *_paired(first, other)) for other in others]
    total = sum(len(_arms_of_both(first, other)) for other, why, _ in pairs if why is None)
    against = [_against(first, other, why, sides, total) for other, why, sides in pairs]
    return {
        "runs": [_described(one) for one in (first, *others)],
        "settings": _settings([first, *others]),
        "reference": first.name,
        "against": against,
    }


def _require_finished(run: Path) -> None:
    if not run.is_dir() or read_record(run) is None:
        raise UsageError(f"{run}: not a run folder, it has no data.json. Name one that `dinv run` made.")
    ledger, missing = Ledger(run), None
    if method_of(run).again is None and not ledger.holds(GENERATOR_FILE):
        missing = "stage 1 (`dinv invert`)"
    elif not SyntheticStore(run, ()).complete():
        missing = "stage 2 (`dinv sample`)"
    elif ClassifierStore(run).manifest.last("complete") is None:
        missing = "training (`dinv train`)"
    elif not ledger.holds(RUN_FILE):
        missing = "the report (`dinv train`)"
    if missing is not None:
        raise UsageError(f"{run}: not a finished run; {missing} is missing. Run the same command again first.")


def _read(run: Path, name: str) -> Finished:
    record: RunRecord = Ledger(run).read_json(RUN_FILE)
    shown = {stored: arm for arm, stored in arms_trained(run).items() if arm in record["arms"]}
    count = len(record.get("replicates", [run]))
    replicates = tuple(_recorded(folder, [*shown]) for folder in replicate_folders(run)[:count])
    found = units_of(replicates)
    if any(tuple(record["arms"][arm]["accuracies"]) != found.get(stored) for stored, arm in shown.items()):
        raise UsageError(
            f"{run}: run.json is of other classifiers than those that are there. This writes it anew: "
            f"{record['command']}"
        )
    return Finished(name, run, record, replicates, shown)


def _recorded(folder: Path, arms: Sequence[str]) -> Replicated:
    """What classifiers were recorded to do on the test images, which come in an order that their pixels alone decide.

    Classes are numbered in the order of their names.
    """
    data, store = read_record(folder), ClassifierStore(folder)
    complete = store.manifest.last("complete")
    assert data is not None and complete is not None  # it is a finished run
    names = sorted(data["class_names"])
    number = torch.tensor([names.index(name) for name in data["class_names"]])
    labels, seen, keys = number[torch.tensor(data["test"]["labels"])], Counter[str](), []
    for digest, label in zip(data["test"]["hashes"], labels.tolist(), strict=True):
        key = f"{digest} {names[label]}"
        seen[key] += 1
        keys.append(f"{key} {seen[key]}")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    current = {arm: store.current(arm) for arm in arms}
    runs = []
    for seed in complete["seeds"]:
        for arm in arms:
            one = current[arm].get(seed)
            if one is None or len(one["predictions"]) != len(keys):
                raise UsageError(f"{folder}: its classifiers are not of its test images. Run `dinv train` again first.")
            evaluation = score(labels[order], number[torch.tensor(one["predictions"])][order], len(names))
            runs.append(ArmRun(arm, seed, evaluation, one["seconds"], None))
    results = ArmResults(tuple(runs), labels[order], tuple(names))
    return Replicated(folder, results, tuple(data["train"]["ids"]), tuple(keys[row] for row in order))


def _require_same_classes(first: Finished, other: Finished) -> None:
    ours, theirs = ({*one.record["data"]["class_names"]} for one in (first, other))
    if ours != theirs:
        apart = ", ".join(sorted(ours ^ theirs)[:5])
        raise UsageError(
            f"{first.folder}, {other.folder}: different classes, of which only one has {apart}. Accuracies over "
            "different classes do not compare; give runs of the same ones."
        )


def _paired(first: Finished, other: Finished) -> tuple[str | None, tuple[Sequence[Replicated], ...]]:
    """Why two runs cannot be paired, None where they can, and the replicates of both that are."""
    count = min(len(first.replicates), len(other.replicates))
    sides: tuple[Sequence[Replicated], ...] = (first.replicates[:count], other.replicates[:count])
    if apart := sum(len({*ours.test_ids} ^ {*theirs.test_ids}) for ours, theirs in zip(*sides, strict=True)):
        return f"not paired: other test images ({apart} are tested in one of the two alone)", sides
    if count > 1:
        return None, sides
    seeds = [{run.seed for run in found.results.runs} for (found,) in sides]
    sides = tuple([_of_seeds(found, seeds[0] & seeds[1])] for (found,) in sides)
    return (None if seeds[0] & seeds[1] else "not paired: no classifier seed in common"), sides


def _arms_of_both(first: Finished, other: Finished) -> list[str]:
    return [arm for arm in first.shown if arm in other.shown]


def _of_seeds(found: Replicated, seeds: set[int]) -> Replicated:
    """With the classifiers of some seeds alone, which ascend."""
    runs = sorted((run for run in found.results.runs if run.seed in seeds), key=lambda run: run.seed)
    return replace(found, results=replace(found.results, runs=tuple(runs)))


def _against(
    first: Finished, other: Finished, why: str | None, sides: tuple[Sequence[Replicated], ...], total: int
) -> dict[str, Any]:
    """A run minus the first one: an arm each, with intervals that hold together with those of all others."""
    if why is not None:
        return {"run": other.name, "why": why, "comparisons": []}
    unit, labels = "seeds" if len(sides[0]) == 1 else "replicates", true_labels(sides[0])
    accuracies, correct = [units_of(side) for side in sides], [correct_of(side) for side in sides]
    found: list[dict[str, Any]] = []
    judged = "accuracy"
    for arm in _arms_of_both(first, other):
        hits = {"first": correct[0][arm], "other": correct[1][arm]}
        ours = {"first": accuracies[0][arm], "other": accuracies[1][arm]}
        judged, classes, values = measured(ours, hits, labels)
        compared = compare(
            "other", values, correct=hits, labels=classes, baseline="first", comparisons=total, unit=unit
        )
        record = {key: one for key, one in comparison_record(compared).items() if key != "outcome"}
        name = " - ".join(dict.fromkeys([other.shown[arm], first.shown[arm]]))
        found.append({**record, "arm": name, "baseline": first.name, "n": len(compared.differences)})
    return {"run": other.name, "why": None, "unit": unit, "measure": judged, "comparisons": found}


def _described(run: Finished) -> dict[str, Any]:
    """What a comparison has of a run; None for what was not measured."""
    record, data, verdict = run.record, run.record["data"], run.record["verdict"]
    inverted = record["stages"].get("invert")
    seconds = {stage: found["seconds"] for stage, found in dict[str, Any](record["stages"]).items()}
    return {
        "name": run.name,
        "folder": str(run.folder),
        "data": {"name": data["name"], "n_train": data["n_train"], "n_test": data["n_test"]},
        "synthetic": record["stages"]["sample"]["images"] + record["stages"]["sample"].get("grown", 0),
        "replicates": len(run.replicates),
        "arms": record["arms"],
        "verdict": {
            "headline": verdict.get("headline", verdict["outcome"]),
            "sentence": verdict["sentence"],
            "measure": verdict.get("measure", "accuracy"),
            "comparisons": verdict["comparisons"],
        },
        "loss": None if inverted is None else [inverted["loss_initial"], inverted["loss_final"]],
        "copies": record["copies"]["copies"] if "copies" in record else None,
        "seconds": {**seconds, "all": sum(seconds.values())},
    }


def _settings(runs: Sequence[Finished]) -> dict[str, dict[str, list[Any]]]:
    """`differ` and `same`: setting => its value in each run, settings of the data and of what made the images too."""
    every: list[dict[str, Any]] = []
    for run in runs:
        data, generator = read_record(run.folder), run.record.get("generator")
        assert data is not None  # it is a run
        parts: dict[str, Mapping[str, Any]] = {"data": data["source"], **run.record["settings"]}
        copies = recorded_copies(run.folder)
        of_images = {
            "filter": recorded_filter(run.folder).filter,
            "copies": "redraw" if copies else "report, refuse or off",
        }
        parts["train"] = {**parts["train"], **of_images}
        parts["generator"] = {} if generator is None else {"name": generator["name"], "hash": generator["hash"]}
        every.append({f"{part}: {key}": value for part, values in parts.items() for key, value in values.items()})
    names = dict.fromkeys(name for one in every for name in one)
    values = {name: [one.get(name, ABSENT) for one in every] for name in names}
    differ = {name: found for name, found in values.items() if any(one != found[0] for one in found)}
    return {"differ": differ, "same": {name: found for name, found in values.items() if name not in differ}}
