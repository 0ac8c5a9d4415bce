"""The downstream task: every arm (real, synthetic, both) at every seed, with equal optimizer steps."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .augment import make_augmentation
from .classifier_store import ClassifierStore
from .classifiers import Classifier, choose_architecture
from .config import TrainSettings
from .device import resolve_device
from .engine.claim import claim_run
from .engine.lock import run_lock
from .engine.state import UnitState, clear_states
from .engine.units import each_unit
from .errors import DataError, UsageError
from .evaluation import SMALLEST_EFFECT, Evaluation, Verdict, evaluate, score, verdict
from .images import LabelledImages
from .mixing import check_images
from .training import fingerprint, recipe, train


@dataclass(frozen=True)
class ArmRun:
    """One classifier, trained and measured on the test images."""

    arm: str
    seed: int
    evaluation: Evaluation
    seconds: float  # training time
    classifier: Path | None  # its file; None where no folder was given
    resumed: bool  # read from the folder, not trained now


@dataclass(frozen=True)
class ArmResults:
    """Every arm at every seed; seeds in the order of the settings, and in each seed the arms in theirs."""

    runs: tuple[ArmRun, ...]
    labels: Tensor  # (n_test,) int64: true classes of the test images

    def accuracies(self) -> dict[str, tuple[float, ...]]:
        """Test accuracies in [0, 1] of each arm, in seed order."""
        arms = dict.fromkeys(run.arm for run in self.runs)
        return {arm: tuple(run.evaluation.accuracy for run in self.runs if run.arm == arm) for arm in arms}

    def correct(self) -> dict[str, Tensor]:
        """Which test images each arm recognised: (seeds, n_test) bool, in seed order."""
        arms = dict.fromkeys(run.arm for run in self.runs)
        return {
            arm: torch.stack([run.evaluation.predictions == self.labels for run in self.runs if run.arm == arm])
            for arm in arms
        }

    def verdict(self, smallest_effect: float = SMALLEST_EFFECT) -> Verdict:
        """Say whether synthetic images helped, over seeds and over the choice of test images (`evaluation.verdict`)."""
        return verdict(self.accuracies(), correct=self.correct(), smallest_effect=smallest_effect)


def train_arms(
    real: LabelledImages,
    synthetic: LabelledImages | None,
    test: LabelledImages,
    *,
    settings: TrainSettings | None = None,
    device: str = "auto",
    folder: Path | None = None,
    on_step: Callable[[str, int, int, float], None] | None = None,
    on_run: Callable[[ArmRun], None] | None = None,
) -> ArmResults:
    """Train and test one classifier per arm and seed of the settings, all with the same number of optimizer steps.

    The arms of a seed start from the same weights and see the real images in the same order. Images of `real`,
    `synthetic` and `test` have the same classes and the same side. `test` is only ever measured on.

    With `folder` each finished classifier is committed: `classifiers/<arm>-seed<k>-<data>.safetensors`, then a record
    with its accuracies and predictions in `classifiers/manifest.jsonl`. The same call goes on where a killed one
    stopped; other arms and seeds may be added later. `train.config.json` keeps the settings. <data> is 8 hex digits of
    the hash of all images: where images were added since, every classifier is trained anew, beside the old one.

    `on_step(arm, seed, step, loss)` follows every step that is trained now; `on_run(run)` every finished
    classifier, those found in the folder too (`run.resumed`).

    Raises ConfigMismatchError when the folder was made with other settings, UsageError when an arm needs
    synthetic images and there are none, DataError for images that do not fit together, LockedError, DiskError.
    """
    settings = settings or TrainSettings()
    where = resolve_device(device)
    sources = check_arms(real, synthetic, test, settings)
    # Seeds outside, arms inside: whatever a killed run has finished can be compared.
    wanted = [(arm, seed) for seed in settings.seeds for arm in sources]
    if folder is None:
        runs = []
        for arm, seed in wanted:
            images, mixed_with = sources[arm]
            start = time.monotonic()
            report = None if on_step is None else _bind(on_step, arm, seed)
            classifier = train(
                images, synthetic=mixed_with, settings=settings, seed=seed, device=device, on_step=report
            )
            runs.append(ArmRun(arm, seed, evaluate(classifier, test), time.monotonic() - start, None, resumed=False))
            if on_run is not None:
                on_run(runs[-1])
        return ArmResults(tuple(runs), test.labels)

    store = ClassifierStore(folder)
    with run_lock(folder):
        described = recipe(settings, where)
        claim_run(folder, "train", described, begun=store.manifest.last("commit") is not None)
        data = data_version(real, synthetic, test)
        units = {unit_of(arm, seed, data): (arm, seed) for arm, seed in wanted}
        before = {unit for unit in units if unit in store.manifest.units()}

        def learn(unit: tuple[str, ...]) -> None:
            arm, seed = units[unit[0]]
            images, mixed_with = sources[arm]
            start = time.monotonic()
            report = None if on_step is None else _bind(on_step, arm, seed)
            state = UnitState(store.folder, unit, [described, data])
            classifier = train(
                images, synthetic=mixed_with, settings=settings, seed=seed, device=device, on_step=report, state=state
            )
            found = evaluate(classifier, test)
            measured = {
                "accuracy": found.accuracy,
                "balanced_accuracy": found.balanced_accuracy,
                "per_class": found.per_class,
                "ece": found.ece,
                "predictions": found.predictions.tolist(),
                "confidences": None if found.confidences is None else found.confidences.tolist(),
            }
            store.commit(unit[0], arm, seed, classifier, measured, time.monotonic() - start)
            state.clear()
            if on_run is not None:
                on_run(_arm_run(store, unit[0], test, False))

        for unit in before:
            if on_run is not None:
                on_run(_arm_run(store, unit, test, True))
        each_unit(folder, list(units), store.manifest, 1, learn)
        store.finish(settings)
        clear_states(store.folder)
        return ArmResults(tuple(_arm_run(store, unit, test, unit in before) for unit in units), test.labels)


def _arm_run(store: ClassifierStore, unit: str, test: LabelledImages, resumed: bool) -> ArmRun:
    record = store.record(unit)
    confidences = record.get("confidences")  # not in the records of earlier versions
    if confidences is not None:
        confidences = torch.tensor(confidences, dtype=torch.float64)
    evaluation = score(test.labels, torch.tensor(record["predictions"]), len(test.class_names), confidences)
    (name,) = record["files"]
    return ArmRun(record["arm"], record["seed"], evaluation, record["seconds"], store.folder / name, resumed)


def unit_of(arm: str, seed: int, data: str) -> str:
    """The name of the classifier of an arm and seed, trained and tested on the images that `data` identifies."""
    return f"{arm}-seed{seed}-{data[:8]}"


def data_version(real: LabelledImages, synthetic: LabelledImages | None, test: LabelledImages) -> str:
    """sha256 hex of all images that a classifier of a run may see."""
    parts = [None if part is None else fingerprint(part) for part in (real, synthetic, test)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _bind(on_step: Callable[[str, int, int, float], None], arm: str, seed: int) -> Callable[[int, float], None]:
    return lambda step, loss: on_step(arm, seed, step, loss)


def check_arms(
    real: LabelledImages, synthetic: LabelledImages | None, test: LabelledImages, settings: TrainSettings
) -> dict[str, tuple[LabelledImages, LabelledImages | None]]:
    """What `train` gets in each arm, after checking everything that could fail only after hours.

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
    if len(test) == 0 or (test.class_names, test.size) != (real.class_names, real.size):
        raise DataError(
            f"{test.name}: {len(test)} test images of classes {list(test.class_names)} at {test.size} px; {real.name} "
            f"has {list(real.class_names)} at {real.size} px. Give test images of the same classes, order and side."
        )
    every: dict[str, tuple[LabelledImages, LabelledImages | None]] = {"real": (real, None)}
    if synthetic is not None:
        every |= {"synthetic": (synthetic, None), "real+synthetic": (real, synthetic)}
    return {arm: every[arm] for arm in settings.arms}


def check_settings(settings: TrainSettings, class_names: Sequence[str], side: int) -> None:
    """Raise UsageError or DataError for settings that images of these classes and this side cannot be trained with."""
    if len(set(settings.seeds)) < len(settings.seeds):
        raise UsageError(f"seeds={list(settings.seeds)}: a repeated seed is one result counted twice. Give each once.")
    make_augmentation(settings.augmentations, len(class_names))
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        Classifier(choose_architecture(settings.architecture, torch.device("cpu")), class_names, side)
