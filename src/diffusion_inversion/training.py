"""Train a classifier on real images, on synthetic ones, or on both: one recipe, equal optimizer steps."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import augment
from .classifiers import Classifier, choose_architecture
from .config import TrainSettings
from .device import bfloat16_is_fast, resolve_device
from .engine.store import Manifest, claim_run
from .errors import DataError, DinvError, UsageError
from .evaluation import SMALLEST_EFFECT, Evaluation, Verdict, evaluate, score, verdict
from .images import LabelledImages
from .randomness import generator_for


def train(
    images: LabelledImages,
    *,
    synthetic: LabelledImages | None = None,
    settings: TrainSettings | None = None,
    seed: int = 0,
    device: str = "auto",
    on_step: Callable[[int, float], None] | None = None,
) -> Classifier:
    """Train one classifier; return it in eval mode on `device`, as the last step left it.

    With `images` alone every batch comes from them, be they real or synthetic. With `synthetic` too, each batch holds
    `settings.real_fraction` of `images` and the rest of `synthetic`. Both have the same classes and the same side.
    The paper's recipe: SGD with momentum and weight decay, a cosine from `learning_rate` to 0 without warm-up,
    padded crops and horizontal flips. `settings.arms` and `settings.seeds` are not read here.

    The seed fixes the initial weights, the order of the images and their augmentation; equal arguments on one machine
    give equal weights. `on_step(step, loss)` is called after each step, step from 1 to settings.steps.

    Raises DataError for empty or mismatched images, UsageError for an unusable device, DinvError when the loss
    is no longer finite.
    """
    settings = settings or TrainSettings()
    where = resolve_device(device)
    precision = training_precision(where)
    parts = _parts(images, synthetic, settings)

    # Layers draw their initial weights from the global CPU generator; fork_rng gives it back untouched.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator_for("train", seed, "weights").get_state())
        classifier = Classifier(choose_architecture(settings.architecture, where), images.class_names, images.size)
    classifier.to(where).train()

    optimizer = torch.optim.SGD(
        classifier.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=settings.steps)
    moves = generator_for("train", seed, "augmentation")
    # One order per place in the batch: the real images come in the same order in every arm of a seed.
    orders = [
        draw_rows(len(part), count, generator_for("train", seed, "order", k)) for k, (part, count) in enumerate(parts)
    ]

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for step in range(1, settings.steps + 1):
            rows = [next(order) for order in orders]
            batch = torch.cat([part.images[r] for (part, _), r in zip(parts, rows, strict=True)]).to(where)
            labels = torch.cat([part.labels[r] for (part, _), r in zip(parts, rows, strict=True)]).to(where)
            with torch.autocast(where.type, torch.bfloat16, enabled=precision == torch.bfloat16):
                logits = classifier(augment(batch, moves))
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            value = loss.item()
            if not math.isfinite(value):
                raise DinvError(
                    f"loss={value} at step {step}: training diverged. "
                    f"Set learning_rate below {settings.learning_rate:g}."
                )
            if on_step is not None:
                on_step(step, value)

    classifier.provenance = {"seed": seed, **provenance(images, synthetic, settings, where)}
    return classifier.eval()


def training_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where autocast to it was measured faster, float32 elsewhere. Weights and losses stay float32."""
    # ResNet-20, batch 128, 32 px, images/s on one thread of an AVX512-BF16 CPU, forward + backward + SGD:
    # float32 contiguous 393, channels_last 475; bfloat16 contiguous 560-700, channels_last 460-730.
    # So bfloat16, and no memory format of its own. On other CPUs bfloat16 is emulated; GPUs were not measured.
    fast = device.type == "cpu" and bfloat16_is_fast(device)
    return torch.bfloat16 if fast else torch.float32


def real_per_batch(settings: TrainSettings) -> int:
    """Real images in each batch of real+synthetic: real_fraction rounded, at least one image of either kind."""
    return min(max(round(settings.real_fraction * settings.batch_size), 1), settings.batch_size - 1)


def draw_rows(population: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `count` row numbers in 0..population-1 for ever: shuffled epochs end to end, so every batch is full."""
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < count:
            queue = torch.cat([queue, torch.randperm(population, generator=generator)])
        yield queue[:count]
        queue = queue[count:]


def fingerprint(images: LabelledImages) -> str:
    """sha256 hex of what a classifier sees: side, class names, labels and pixels, in order."""
    digest = hashlib.sha256(f"{tuple(images.images.shape)} {images.class_names}".encode())
    digest.update(images.labels.contiguous().numpy().data)
    digest.update(images.images.contiguous().numpy().data)
    return digest.hexdigest()


def provenance(
    images: LabelledImages, synthetic: LabelledImages | None, settings: TrainSettings, device: torch.device
) -> dict[str, Any]:
    """Describe, as JSON, all that decides a classifier's weights but its arm and seed: settings, arithmetic, data."""

    def describe(part: LabelledImages) -> dict[str, Any]:
        return {"name": part.name, "count": len(part), "sha256": fingerprint(part)}

    return {
        "settings": settings.model_dump(mode="json", exclude={"architecture", "arms", "seeds"}),
        "architecture": choose_architecture(settings.architecture, device),
        "device": device.type,
        "precision": str(training_precision(device)).removeprefix("torch."),
        "images": describe(images),
        "synthetic": None if synthetic is None else describe(synthetic),
    }


def _parts(
    images: LabelledImages, synthetic: LabelledImages | None, settings: TrainSettings
) -> list[tuple[LabelledImages, int]]:
    """Check the images; return what each batch is made of and how many of it."""
    for part in (images, synthetic):
        if part is not None and len(part) == 0:
            raise DataError(f"{part.name}: no images to train on; give at least one.")
    if synthetic is None:
        return [(images, settings.batch_size)]
    if (synthetic.class_names, synthetic.size) != (images.class_names, images.size):
        raise DataError(
            f"{synthetic.name} has classes {list(synthetic.class_names)} at {synthetic.size} px, {images.name} has "
            f"{list(images.class_names)} at {images.size} px. Give both the same classes, order and side."
        )
    real = real_per_batch(settings)
    return [(images, real), (synthetic, settings.batch_size - real)]


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

    With `folder` each finished classifier is committed: `classifiers/<arm>-seed<k>.safetensors`, then a record in
    `train.jsonl` with its accuracies and predictions. The same call goes on where a killed one stopped, retraining
    only the classifier it was at; other arms and seeds may be added later. `train.config.json` keeps the settings and
    the hashes of all images.

    `on_step(arm, seed, step, loss)` follows every step that is trained now; `on_run(run)` every finished
    classifier, those found in the folder too (`run.resumed`).

    Raises ConfigMismatchError when the folder was made with other settings or images, UsageError when an arm needs
    synthetic images and there are none, DataError for images that do not fit together, DiskError.
    """
    settings = settings or TrainSettings()
    where = resolve_device(device)
    sources = _sources(real, synthetic, test, settings)
    manifest: Manifest | None = None
    done: dict[tuple[str, int], dict[str, Any]] = {}
    if folder is not None:
        measured_on = {"name": test.name, "count": len(test), "sha256": fingerprint(test)}
        manifest = Manifest(folder / "train.jsonl")
        described = {**provenance(real, synthetic, settings, where), "test": measured_on}
        claim_run(folder, "train", described, begun=bool(manifest.records()))
        done = {(r["arm"], r["seed"]): r for r in manifest.records() if (folder / r["classifier"]).is_file()}

    runs: list[ArmRun] = []
    # Seeds outside, arms inside: whatever a killed run has finished can be compared.
    for seed in settings.seeds:
        for arm, (images, mixed_with) in sources.items():
            record = done.get((arm, seed))
            name = f"classifiers/{arm}-seed{seed}.safetensors"
            if record is not None:
                evaluation = score(test.labels, torch.tensor(record["predictions"]), len(test.class_names))
                run = ArmRun(arm, seed, evaluation, record["seconds"], folder and folder / name, resumed=True)
            else:
                start = time.monotonic()
                report = None if on_step is None else _bind(on_step, arm, seed)
                classifier = train(
                    images, synthetic=mixed_with, settings=settings, seed=seed, device=device, on_step=report
                )
                seconds = time.monotonic() - start
                evaluation = evaluate(classifier, test)
                if folder is not None and manifest is not None:
                    sha256 = classifier.save(folder / name)
                    manifest.append(
                        {
                            "arm": arm,
                            "seed": seed,
                            "classifier": name,
                            "sha256": sha256,
                            "accuracy": evaluation.accuracy,
                            "balanced_accuracy": evaluation.balanced_accuracy,
                            "per_class": evaluation.per_class,
                            "seconds": seconds,
                            "predictions": evaluation.predictions.tolist(),
                        }
                    )
                run = ArmRun(arm, seed, evaluation, seconds, folder and folder / name, resumed=False)
            runs.append(run)
            if on_run is not None:
                on_run(run)
    return ArmResults(tuple(runs), test.labels)


def _bind(on_step: Callable[[str, int, int, float], None], arm: str, seed: int) -> Callable[[int, float], None]:
    return lambda step, loss: on_step(arm, seed, step, loss)


def _sources(
    real: LabelledImages, synthetic: LabelledImages | None, test: LabelledImages, settings: TrainSettings
) -> dict[str, tuple[LabelledImages, LabelledImages | None]]:
    """What `train` gets in each arm, after checking everything that could fail only after hours."""
    if len(set(settings.seeds)) < len(settings.seeds):
        raise UsageError(f"seeds={list(settings.seeds)}: a repeated seed is one result counted twice. Give each once.")
    needy = [arm for arm in settings.arms if arm != "real"]
    if synthetic is None and needy:
        raise UsageError(
            f"arms={needy}: they need synthetic images and there are none. "
            "Run `dinv sample` first, or keep to the arm real."
        )
    _parts(real, synthetic, settings)
    if len(test) == 0 or (test.class_names, test.size) != (real.class_names, real.size):
        raise DataError(
            f"{test.name}: {len(test)} test images of classes {list(test.class_names)} at {test.size} px; {real.name} "
            f"has {list(real.class_names)} at {real.size} px. Give test images of the same classes, order and side."
        )
    every: dict[str, tuple[LabelledImages, LabelledImages | None]] = {"real": (real, None)}
    if synthetic is not None:
        every |= {"synthetic": (synthetic, None), "real+synthetic": (real, synthetic)}
    return {arm: every[arm] for arm in settings.arms}
