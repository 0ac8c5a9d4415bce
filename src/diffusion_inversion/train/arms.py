"""The downstream task: every arm (real, synthetic, both) at every seed, with equal optimizer steps."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from ..config.training import TrainSettings
from ..data.images import LabelledImages
from ..engine.frozen_settings import freeze_settings
from ..engine.lock import run_lock
from ..engine.progress import already
from ..engine.state import UnitState, clear_states
from ..engine.units import each_unit
from ..errors import DataError, UsageError
from ..generator.device import resolve_device
from .ahead import Ahead, Stretch, go_side_by_side
from .architectures import form_of
from .augment import make_augmentation
from .classifiers import Classifier, choose_architecture
from .evaluation import OWN_SIZE, Evaluation, evaluate, score
from .mixing import check_images, measure
from .recipes import check_steps
from .store import ClassifierStore
from .training import digest_of, fingerprint, recipe, train
from .verdict import Verdict, verdict

VERSION = 8  # hex digits of the hash of all images that name a unit
WITH_SYNTHETIC = ("synthetic", "real+synthetic")  # arms


@dataclass(frozen=True)
class ArmRun:
    """One classifier, trained and measured on the test images."""

    arm: str
    seed: int
    evaluation: Evaluation
    seconds: float  # training time
    classifier: Path | None  # its file; None where no folder was given


@dataclass(frozen=True)
class ArmResults:
    """Every arm at every seed; seeds in the order of the settings, and in each seed the arms in theirs."""

    runs: tuple[ArmRun, ...]
    labels: Tensor  # (n_test,) int64: true classes of the test images
    class_names: tuple[str, ...] = ()

    def accuracies(self) -> dict[str, tuple[float, ...]]:
        """Test accuracies in [0, 1] of each arm, in seed order."""
        arms = dict.fromkeys(run.arm for run in self.runs)
        return {arm: tuple(run.evaluation.accuracy for run in self.runs if run.arm == arm) for arm in arms}

    def auroc(self) -> dict[str, tuple[float, ...]]:
        """Area under the ROC curve of each arm, in seed order; without arms where it was not measured."""
        found: dict[str, list[float | None]] = {}
        for run in self.runs:
            found.setdefault(run.arm, []).append(run.evaluation.auroc)
        measured = {arm: tuple(v for v in values if v is not None) for arm, values in found.items()}
        return {arm: values for arm, values in measured.items() if len(values) == len(found[arm])}

    def correct(self) -> dict[str, Tensor]:
        """Which test images each arm recognised: (seeds, n_test) bool, in seed order."""
        arms = dict.fromkeys(run.arm for run in self.runs)
        return {
            arm: torch.stack([run.evaluation.predictions == self.labels for run in self.runs if run.arm == arm])
            for arm in arms
        }

    def verdict(self) -> Verdict:
        """Say whether synthetic images helped, over seeds and over the choice of test images (`verdict.verdict`)."""
        return verdict(self.accuracies(), correct=self.correct(), labels=self.labels, class_names=self.class_names)


def train_arms(
    real: LabelledImages,
    synthetic: LabelledImages | None,
    test: LabelledImages,
    *,
    own_size: tuple[LabelledImages, LabelledImages] | None = None,
    settings: TrainSettings | None = None,
    device: str = "auto",
    folder: Path | None = None,
    on_step: Callable[[str, int, int, float], None] | None = None,
    on_run: Callable[[ArmRun], None] | None = None,
    ahead: Ahead | None = None,
) -> ArmResults:
    """Train and test one classifier per arm and seed of the settings, all with the same number of optimizer steps.

    The arms of a seed start from the same weights and see the real images in the same order. Images of `real`,
    `synthetic` and `test` have the same classes and the same side. `test` is only ever measured on. `own_size` are the
    images of `real` and `test` at another side: where the settings have the arm "real" there is then an arm
    "real (own size)", trained and tested on them, at the same seeds in the same way.

    With `folder` each finished classifier is committed: `classifiers/<arm>-seed<k>-<data>.safetensors`, then a record
    with its accuracies and predictions in `classifiers/manifest.jsonl`. The same call goes on where a killed one
    stopped; other arms and seeds may be added later. `train.config.json` keeps the settings. <data> is 8 hex digits of
    the hash of all images: where images were added since, every classifier is trained anew, beside the old one.

    `on_step(arm, seed, step, loss)` follows every step that is trained now; `on_run(run)` every finished
    classifier, those found in the folder too.

    With `ahead`, which takes a folder, the synthetic images are those of its queue: all classifiers go through it side
    by side, stretch by stretch, so that each image is drawn once.

    Raises ConfigMismatchError when the folder was made with other settings, UsageError when an arm needs
    synthetic images and there are none, DataError for images that do not fit together, LockedError, DiskError.
    """
    settings = settings or TrainSettings()
    where = resolve_device(device)
    sources = check_arms(real, synthetic, test, settings, own_size)
    data = {arm: data_version(real, synthetic, test, source.measured) for arm, source in sources.items()}
    if OWN_SIZE in sources:  # synthetic images that come or go make no difference to it
        data[OWN_SIZE] = data_version(sources[OWN_SIZE].images, None, sources[OWN_SIZE].test)
    if ahead is not None:
        parts = [fingerprint(real), ahead.version, fingerprint(test)]
        queued = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        data |= {arm: queued for arm in sources if arm in WITH_SYNTHETIC}
    # Seeds outside, arms inside: whatever a killed run has finished can be compared.
    units = {unit_of(arm, seed, data[arm]): (arm, seed) for seed in settings.seeds for arm in sources}
    store = None if folder is None else ClassifierStore(folder)
    described = recipe(settings, where)
    tell = on_run or (lambda run: None)
    runs: list[ArmRun] = []

    def state_of(unit: str) -> UnitState | None:
        return None if store is None else UnitState(store.folder, (unit,), [described, data])

    def go_on(unit: str, state: UnitState | None, stretch: Stretch | None) -> Classifier:
        arm, seed = units[unit]
        images, mixed, part = sources[arm].images, sources[arm].mixed_with, None
        if ahead is not None and stretch is not None and arm in WITH_SYNTHETIC:
            drawn, part = ahead.images(stretch.generations), ahead.part(stretch)
            images, mixed = (drawn, None) if mixed is None else (images, drawn)
        tell_step = None if on_step is None else partial(on_step, arm, seed)
        return train(
            images, synthetic=mixed, settings=settings, seed=seed, device=device, on_step=tell_step, state=state,
            part=part,
        )  # fmt: skip

    stretches = [] if ahead is None else ahead.stretches(settings.steps)

    def learn(unit: str) -> None:
        arm, seed = units[unit]
        source = sources[arm]
        start = time.monotonic()
        state = state_of(unit)
        classifier = go_on(unit, state, stretches[-1] if stretches else None)
        found = evaluate(classifier, source.test)
        run = ArmRun(arm, seed, found, time.monotonic() - start, None)
        if store is not None and state is not None:
            _commit(store, unit, classifier, run)
            state.clear()
            run = _arm_run(store, unit, test)
        runs.append(run)
        tell(run)

    if folder is None or store is None:
        for unit in units:
            learn(unit)
        return ArmResults(tuple(runs), test.labels, test.class_names)
    with run_lock(folder):
        freeze_settings(folder, "train", described, begun=store.manifest.last("commit") is not None)
        before = [unit for unit in units if unit in store.manifest.units()]
        already("train", len(before), len(units), "classifiers")
        for unit in before:
            tell(_arm_run(store, unit, test))
        if ahead is not None:
            left = {unit: state_of(unit) for unit, (arm, _) in units.items() if arm in WITH_SYNTHETIC}
            left = {unit: state for unit, state in left.items() if unit not in store.manifest.units()}
            form = form_of(choose_architecture(settings.architecture, where), real.size)
            go_side_by_side(ahead, stretches, left, go_on, form)
        each_unit(folder, list(units), store.manifest, 1, lambda jobs: learn(*jobs))
        if ahead is not None:
            ahead.release(ahead.count)
        store.finish(settings, {arm: version[:VERSION] for arm, version in data.items()}, OWN_SIZE in sources)
        clear_states(store.folder)
        # Read again: in a shared run others trained some of them.
        done = tuple(_arm_run(store, unit, test) for unit in units)
        return ArmResults(done, test.labels, test.class_names)


def _commit(store: ClassifierStore, unit: str, classifier: Classifier, run: ArmRun) -> None:
    found = run.evaluation
    measured = {
        "accuracy": found.accuracy,
        "balanced_accuracy": found.balanced_accuracy,
        "per_class": found.per_class,
        "ece": found.ece,
        "predictions": found.predictions.tolist(),
        "confidences": None if found.confidences is None else found.confidences.tolist(),
        **({} if found.auroc is None else {"auroc": found.auroc}),
    }
    store.commit(unit, run.arm, run.seed, classifier, measured, run.seconds)


def _arm_run(store: ClassifierStore, unit: str, test: LabelledImages) -> ArmRun:
    record = store.record(unit)
    confidences = record.get("confidences")  # not in the records of earlier versions
    if confidences is not None:
        confidences = torch.tensor(confidences, dtype=torch.float64)
    predictions, classes = torch.tensor(record["predictions"]), len(test.class_names)
    evaluation = score(test.labels, predictions, classes, confidences, record.get("auroc"))
    (name,) = record["files"]
    return ArmRun(record["arm"], record["seed"], evaluation, record["seconds"], store.folder / name)


def unit_of(arm: str, seed: int, data: str) -> str:
    """The name of the classifier of an arm and seed, trained and tested on the images that `data` identifies."""
    return f"{'real-own-size' if arm == OWN_SIZE else arm}-seed{seed}-{data[:VERSION]}"


def data_version(
    real: LabelledImages, synthetic: LabelledImages | None, test: LabelledImages, measured: Tensor | None = None
) -> str:
    """sha256 hex of all images that a classifier of a run may see, and of what its mixing reads of them (`measure`)."""
    parts = [None if part is None else fingerprint(part) for part in (real, synthetic, test)]
    if measured is not None:
        parts.append(digest_of(measured))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Ingredients:
    """What one arm is made of: the images that `train` gets, and those that test it."""

    images: LabelledImages
    mixed_with: LabelledImages | None
    test: LabelledImages
    measured: Tensor | None = None  # what the mixing reads of each synthetic image, see `measure`


def check_arms(
    real: LabelledImages,
    synthetic: LabelledImages | None,
    test: LabelledImages,
    settings: TrainSettings,
    own_size: tuple[LabelledImages, LabelledImages] | None = None,
) -> dict[str, Ingredients]:
    """What each arm is made of, after checking everything that could fail only after hours.

    Raises UsageError, DataError.
    """
    check_settings(settings, real.class_names, real.size)
    needy = [arm for arm in settings.arms if arm != "real"]
    if synthetic is None and needy:
        raise UsageError(
            f"arms={needy}: they need synthetic images and there are none. "
            "Run `dinv sample` first, or keep to the arm real."
        )
    check_images(real, synthetic)
    for images, tested in ((real, test), *([own_size] if own_size else [])):
        if len(tested) == 0 or (tested.class_names, tested.size) != (images.class_names, images.size):
            raise DataError(
                f"{tested.name}: {len(tested)} test images of classes {list(tested.class_names)} at {tested.size} px; "
                f"{images.name} has {list(images.class_names)} at {images.size} px. Give test images of the same "
                "classes, order and side."
            )
    found: dict[str, Ingredients] = {}
    for arm in settings.arms:
        if arm == "real":
            found[arm] = Ingredients(real, None, test)
            if own_size is not None:
                if (own_size[0].ids, own_size[1].ids) != (real.ids, test.ids):
                    raise DataError(
                        f"{own_size[0].name}: not the images of the arm real. Give the same ones, in order."
                    )
                check_settings(settings, real.class_names, own_size[0].size)
                found[OWN_SIZE] = Ingredients(own_size[0], None, own_size[1])
        elif arm == "synthetic" and synthetic is not None:
            found[arm] = Ingredients(synthetic, None, test)
        elif synthetic is not None:
            found[arm] = Ingredients(real, synthetic, test, measure(real, synthetic, settings.mixing))
    return found


def check_settings(settings: TrainSettings, class_names: Sequence[str], side: int) -> None:
    """Raise UsageError or DataError for settings that images of these classes and this side cannot be trained with."""
    if len(set(settings.seeds)) < len(settings.seeds):
        raise UsageError(f"seeds={list(settings.seeds)}: a repeated seed is one result counted twice. Give each once.")
    check_steps(settings)
    make_augmentation(settings.augmentations, len(class_names))
    _check_network(choose_architecture(settings.architecture, torch.device("cpu")), tuple(class_names), side)


@cache
def _check_network(architecture: str, class_names: tuple[str, ...], side: int) -> None:
    """Build it without weights and run it on shapes; what could be run once is not run again before every stage."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        classifier = Classifier(architecture, class_names, side)
        try:
            classifier(torch.zeros(2, 3, side, side, dtype=torch.uint8))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, NotImplementedError) or "meta" in str(error):
                # A step that shapes alone cannot take: no kernel for it, or "... on meta tensors", for which torch has
                # no class of its own. Training will tell.
                return
            raise UsageError(
                f"architecture={architecture}: takes no images of {side} px ({error}). Use another network, or load "
                "the images at another --size."
            ) from error
