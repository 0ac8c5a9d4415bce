"""Settings of a run chosen on folds of its training images: every training kept as a unit, every choice once."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from typing_extensions import NotRequired, TypedDict

from ..config.settings import Settings
from ..config.training import TrainSettings
from ..config.tuning import Axis, Model, Tuning, changed
from ..data.images import LabelledImages
from ..engine.ledger import Ledger
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest
from ..engine.progress import track
from ..engine.state import UnitState, clear_states
from ..engine.units import each_unit, unit_name
from ..errors import DataError
from ..generator.device import resolve_device
from .classifiers import Classifier
from .evaluation import MIN_UNITS, Comparison, predict
from .folds import FOLDS, Split, fold_of, in_order, split
from .halving import Cell, Trial, halve, trials_of
from .training import fingerprint, recipe, train

FOLDER, SCRATCH = "tuning", "images"  # below a run; below that, images that are there until the choice is made
SAMPLE_FILE, TRAIN_FILE = "sample.tuning.json", "train.tuning.json"  # what was chosen, for a stage each
SCHEMA = 1


class CandidateRecord(TypedDict):
    """A value that was tried against the default; differences in [-1, 1], 0.01 = one point."""

    value: Any
    trainings: int
    difference: float | None  # None: not tried
    low: float | None  # None: on fewer than two folds
    high: float | None
    confidence: float | None  # of the interval, in (0, 1)


class ChoiceRecord(TypedDict):
    """One setting: what was chosen, over what, by how much, at which cost; JSON data."""

    setting: str  # as sample.interpolation
    arm: NotRequired[str]  # that scored; records of earlier versions were scored by real+synthetic
    default: Any  # what it was before
    chosen: Any
    candidates: list[CandidateRecord]
    measure: str  # accuracy, or balanced accuracy
    images: int  # real ones that were held out, each in one fold
    folds: int
    trainings: int  # those of the default among them; some may have served a choice before
    seconds: float  # that were spent for this choice: of the CPU, on a GPU on the clock
    budget: float | None  # that there was for it
    cut_short: bool  # it was planned or stopped for the budget
    sentence: str


@dataclass(frozen=True, eq=False)
class Material:
    """Synthetic images, and for each the ids of the real ones that it was made from."""

    synthetic: LabelledImages
    sources: Sequence[Collection[str]]

    @cached_property
    def key(self) -> str:
        """sha256 hex of both."""
        made = [fingerprint(self.synthetic), [list(one) for one in self.sources]]
        if self.synthetic.confidence is not None:
            made.append(self.synthetic.confidence.tolist())
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()


@dataclass(frozen=True)
class Candidate:
    """How a classifier of real+synthetic is trained, and on which synthetic images; or of real, on none."""

    settings: TrainSettings
    key: Callable[[], str]  # that of its material; makes it where it is not there
    material: Callable[[], Material | None]
    drawing: Callable[[], float] = lambda: 0.0  # seconds that making it took, where that was for this choice
    arm: str = "real+synthetic"


Describe = Callable[[Any], dict[str, Any]]  # of settings all that a choice beside them depends on, but the images
Make = Callable[[Any, str], Candidate]  # of settings, for a purpose


class Folds:
    """The folds of a run's real training images, and in RUN/tuning what classifiers recognised of them.

    real: training images at the side of the synthetic ones; test images have no place here.
    """

    def __init__(self, run: Path, real: LabelledImages, device: str = "auto") -> None:
        self.run, self.real, self.device = run, real, resolve_device(device)
        self.folds = fold_of(real)
        self.manifest = Manifest(run / FOLDER / MANIFEST)
        self.numbers = [number for number in range(FOLDS) if number in self.folds]
        if len(self.numbers) < MIN_UNITS:
            held = sum(fold in self.numbers for fold in self.folds)
            raise DataError(
                f"{real.name}: {held} of {len(real)} images to validate on, in {len(self.numbers)} folds of the at "
                f"least {MIN_UNITS} that a choice needs. Give more images, or give the setting itself."
            )

    def cells(self, seeds: Sequence[int]) -> list[Cell]:
        """Every fold at the first seed, then at the next."""
        return [Cell(seed, number) for seed in seeds for number in self.numbers]

    def split(self, material: Material | None, number: int) -> Split:
        """What a fold trains and measures on. Raises DataError where of its material no image is left to train on."""
        found = split(self.real, self.folds, () if material is None else material.sources, number)
        if material is not None and not found.synthetic:
            raise DataError(
                f"{self.real.name}: {len(found.held_out)} of {len(self.real)} images to validate on and 0 synthetic "
                "ones that were made without them. Give more images, or give the setting itself."
            )
        return found

    def check(self, material: Material | None) -> None:
        """Raise what a trial raises for material that a fold cannot be trained on."""
        for number in self.numbers:
            self.split(material, number)

    def part(self, material: Material, number: int, share: float) -> Split | None:
        """`split` with this share of the training images of each class, at least one, and what was made of them alone.

        A larger share holds a smaller one. None where no synthetic image is left.
        """
        whole = self.split(material, number)
        labels = self.real.labels.tolist()
        ordered = sorted(whole.training, key=lambda row: in_order(self.real.ids[row]))
        taken: list[int] = []
        for label in {*labels}:
            own = [row for row in ordered if labels[row] == label]
            taken += own[: math.ceil(share * len(own))]
        known = {self.real.ids[row] for row in taken}
        synthetic = tuple(row for row in whole.synthetic if known.issuperset(material.sources[row]))
        return Split(tuple(sorted(taken)), whole.held_out, synthetic) if synthetic else None

    def learn(
        self, candidate: Candidate, cell: Cell, found: Split | None = None, state: UnitState | None = None
    ) -> Classifier:
        """Train a candidate on what its cell may see, all of it unless a part was `found`."""
        material = candidate.material()
        found = found or self.split(material, cell.fold)
        return train(
            self.real.subset(found.training),
            synthetic=None if material is None else material.synthetic.subset(found.synthetic),
            settings=candidate.settings,
            seed=cell.seed,
            device=str(self.device),
            state=state,
        )

    def trial(
        self,
        candidate: Candidate,
        cell: Cell,
        purpose: str,
        *,
        part: Split | None = None,
        on_trained: Callable[[Classifier], None] = lambda _: None,
    ) -> Trial:
        """Train and measure one candidate in one cell, or read what was kept of it.

        Seconds are those that were spent for this `purpose`; what was done for another is there for nothing. `part`:
        what is trained on in place of all of it. `on_trained` hears of a classifier that is trained now.
        """
        described = recipe(candidate.settings, self.device)
        made_from = [SCHEMA, candidate.key(), fingerprint(self.real), self.folds, described, cell.seed, cell.fold]
        if part is not None:
            made_from += [part.training, part.synthetic]
        unit = unit_name([json.dumps(made_from, sort_keys=True)])

        def learn(_: tuple[str, ...]) -> None:
            found = part or self.split(candidate.material(), cell.fold)
            state = UnitState(self.manifest.path.parent, (unit,), made_from)
            clock = seconds_of(self.device)
            classifier = self.learn(candidate, cell, part, state)
            held = self.real.subset(found.held_out)
            correct = predict(classifier, held)[0] == held.labels
            self.manifest.commit(
                unit,
                [unit],
                purpose=purpose,
                seed=cell.seed,
                fold=cell.fold,
                correct="".join(map(str, correct.int().tolist())),
                seconds=round(clock(), 3),
            )
            state.clear()
            on_trained(classifier)

        each_unit(self.run, [unit], self.manifest, 1, learn)
        record = self.manifest.units()[unit]
        return Trial(
            cell.fold,
            [row for row, fold in enumerate(self.folds) if fold == cell.fold],
            torch.tensor([one == "1" for one in record["correct"]]),
            record["seconds"] if record["purpose"] == purpose else 0.0,
        )

    def longest(self, purpose: str) -> tuple[float, float]:
        """Seconds of the longest training, and of the longest drawing of images, that served another purpose."""
        before = [one for one in self.manifest.units().values() if one["purpose"] != purpose]
        found = [[one["seconds"] for one in before if ("fold" in one) == trained] for trained in (True, False)]
        return max(found[0], default=0.0), max(found[1], default=0.0)


def seconds_of(device: torch.device) -> Callable[[], float]:
    """A clock that begins now: seconds of this process's CPU over all threads; on another device on the wall."""
    read = time.process_time if device.type == "cpu" else time.monotonic
    start = read()
    return lambda: read() - start


def choose(
    folds: Folds, axis: Axis, base: Settings, make: Make, tuning: Tuning, budget: float | None = None
) -> ChoiceRecord:
    """Choose on one axis, beside the settings `base`, within a budget in seconds.

    Values that cannot be beside them, since an axis before this one chose otherwise, are not tried.
    """
    others, ruled_out = axis.beside(base)
    default, candidates = make(base, axis.key), [make(settings, axis.key) for settings in others.values()]
    seeds = default.settings.seeds if budget is not None else default.settings.seeds[: tuning.seeds]
    cells = folds.cells(seeds)
    begun: set[int | None] = set()
    with track(f"choose {axis.key}", trials_of(len(candidates), len(cells)), "trainings") as advance:

        def try_one(one: int | None, cell: Cell) -> Trial:
            candidate = default if one is None else candidates[one]
            found = folds.trial(candidate, cell, axis.key)
            if one not in begun:
                found = replace(found, drawing=candidate.drawing())
                begun.add(one)
            advance(1)
            return found

        found = halve(
            len(candidates), cells, try_one, folds.real.labels, budget=budget, longest=folds.longest(axis.key),
            comparisons=max(tuning.family, len(others)),
        )  # fmt: skip
    values = list(others)
    record: ChoiceRecord = {
        "setting": axis.key,
        "arm": default.arm,
        "default": getattr(base, axis.name),
        "chosen": getattr(base, axis.name) if found.chosen is None else values[found.chosen],
        "candidates": [
            *(_candidate(value, found.comparisons[place], found.cells[place]) for place, value in enumerate(values)),
            *(_candidate(value, None, 0) for value in ruled_out),
        ],
        "measure": found.measure,
        "images": sum(fold in folds.numbers for fold in folds.folds),
        "folds": len(folds.numbers),
        "trainings": found.trials,
        "seconds": round(found.seconds, 1),
        "budget": None if budget is None else round(budget, 1),
        "cut_short": found.cut_short,
        "sentence": "",
    }
    return {**record, "sentence": _sentence(record)}


def _candidate(value: Any, compared: Comparison | None, trainings: int) -> CandidateRecord:
    low, high = (None, None) if compared is None or compared.interval is None else compared.interval
    return {
        "value": value,
        "trainings": trainings,
        "difference": None if compared is None else compared.difference,
        "low": low,
        "high": high,
        "confidence": None if compared is None else compared.simultaneous_confidence,
    }


def _sentence(choice: ChoiceRecord) -> str:
    """What was chosen over what, by how much, at which cost."""
    name, default = choice["setting"], _shown(choice["default"])
    tried = [f"{_shown(one['value'])} {_gain(one)}" for one in choice["candidates"]]
    if choice["chosen"] == choice["default"]:
        head = f"{name} stays {default}: " + (
            "nothing else was tried" if not tried else "nothing beat it beyond its interval"
        )
    else:
        head = f"{name} {_shown(choice['chosen'])} was chosen over {default}"
    of = "" if choice["measure"] == "accuracy" else f", in {choice['measure']}"
    of += ", by real images alone" if choice.get("arm") == "real" else ""
    short = "; the budget ended it" if choice["cut_short"] else ""
    cost = f"{choice['trainings']} trainings, {choice['seconds']:g} s{short}"
    return (
        f"{head} ({'; '.join([*tried, ''])}{choice['folds']} folds of {choice['images']} training images{of}; {cost})"
    )


def _gain(one: CandidateRecord) -> str:
    if one["difference"] is None:
        return "not tried"
    interval = (
        "" if one["low"] is None or one["high"] is None else f" [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
    )
    return f"{100 * one['difference']:+.1f} points{interval}"


def _shown(value: Any) -> str:
    return "+".join(map(_shown, value)) if isinstance(value, (list, tuple)) else str(value)


Kept = tuple[list[ChoiceRecord], Model]


def chosen_before(run: Path, file: str, axes: Sequence[Axis], base: Model, describe: Describe) -> Kept[Model]:
    """What a run chose on these axes with these settings, and the settings then; as far as it had come."""
    kept = Ledger(run).read_json(file)
    found: list[ChoiceRecord] = []
    for axis, step in zip(axes, [] if kept is None else kept["choices"], strict=False):
        if step["asked"] != _asked(axis, base, describe):
            break
        found.append(step["found"])
        base = changed(base, axis, step["found"]["chosen"])
    return found, base


def _asked(axis: Axis, base: Settings, describe: Describe) -> dict[str, Any]:
    """What a choice depends on, but the images: they may grow and it stands."""
    tried = [getattr(base, axis.name), *axis.beside(base)[0]]
    found: dict[str, Any] = json.loads(json.dumps({"setting": axis.key, "values": tried, "beside": describe(base)}))
    return found


def choose_all(
    folds: Folds,
    file: str,
    base: Model,
    axes: Sequence[Axis],
    make: Make,
    describe: Describe,
    tuning: Tuning,
    *,
    spent: float = 0.0,
) -> Kept[Model]:
    """Choose on one axis after the other, each beside what was chosen before; RUN/`file` has every choice at once.

    A killed call goes on, by the choices and trainings that it finds. `spent` of the budget went to axes before these;
    each axis may spend its share of the rest, by the number of its values.
    """
    run, before = folds.run, base
    found, base = chosen_before(run, file, axes, base, describe)
    later = [axis for axis in tuning.axes if axis.stage > axes[0].stage] if axes else []
    for place, axis in enumerate(axes[len(found) :], start=len(found)):
        budget = None
        if tuning.seconds is not None:
            rest = tuning.seconds - spent - sum(one["seconds"] for one in found)
            values = sum(len(one.values) for one in (*axes[place:], *later))
            budget = max(rest, 0.0) * len(axis.values) / values
        choice = choose(folds, axis, base, make, tuning, budget)
        found = json.loads(json.dumps([*found, choice]))
        _keep(run, file, axes, before, found, describe)
        base = changed(base, axis, choice["chosen"])
    clear_states(run / FOLDER)
    return found, base


def _keep(
    run: Path, file: str, axes: Sequence[Axis], base: Settings, found: Sequence[ChoiceRecord], describe: Describe
) -> None:
    choices = []
    for axis, one in zip(axes, found, strict=False):
        choices.append({"asked": _asked(axis, base, describe), "found": one})
        base = changed(base, axis, one["chosen"])
    Ledger(run).commit_json(file, {"choices": choices}, copied=True, indent=1, allow_nan=False)


def choices_of(run: Path) -> list[ChoiceRecord]:
    """Every choice of a run, in their order."""
    kept = [Ledger(run).read_json(file) for file in (SAMPLE_FILE, TRAIN_FILE)]
    return [one["found"] for record in kept if record is not None for one in record["choices"]]
