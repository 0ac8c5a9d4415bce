"""Train one classifier on real images, on synthetic ones, or on both."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import augment
from .classifier_store import SCHEMA
from .classifiers import Classifier, choose_architecture
from .config import TrainSettings
from .device import bfloat16_is_fast, resolve_device
from .engine.state import UnitState
from .errors import DataError, DinvError
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
    state: UnitState | None = None,
) -> Classifier:
    """Train one classifier; return it in eval mode on `device`, as the last step left it.

    With `images` alone every batch comes from them, be they real or synthetic. With `synthetic` too, each batch holds
    `settings.real_fraction` of `images` and the rest of `synthetic`. Both have the same classes and the same side.
    The paper's recipe: SGD with momentum and weight decay, a cosine from `learning_rate` to 0 without warm-up,
    padded crops and horizontal flips. `settings.arms` and `settings.seeds` are not read here.

    The seed fixes the initial weights, the order of the images and their augmentation; equal arguments on one machine
    give equal weights. `on_step(step, loss)` is called after each step, step from 1 to settings.steps. With `state` a
    long training is saved now and then, and goes on from there with the same bits.

    Raises DataError for empty or mismatched images, UsageError for an unusable device, DinvError when the loss
    is no longer finite.
    """
    settings = settings or TrainSettings()
    where = resolve_device(device)
    precision = training_precision(where)
    parts = batch_parts(images, synthetic, settings)

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
    orders = [RowOrder(len(part), generator_for("train", seed, "order", k)) for k, (part, _) in enumerate(parts)]
    first = 0
    if state is not None and (saved := state.load()) is not None:
        first = _restore(saved, classifier, optimizer, schedule, moves, orders)

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for step in range(first + 1, settings.steps + 1):
            rows = [order.draw(count) for order, (_, count) in zip(orders, parts, strict=True)]
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
            if state is not None and step < settings.steps:
                state.offer(partial(_progress, step, classifier, optimizer, schedule, moves, orders))

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


class RowOrder:
    """Row numbers in 0..population-1 for ever: shuffled epochs end to end, so every batch is full."""

    def __init__(self, population: int, generator: torch.Generator) -> None:
        self.population, self.generator = population, generator
        self.queue = torch.empty(0, dtype=torch.int64)

    def draw(self, count: int) -> Tensor:
        """The next `count` row numbers (count,) int64."""
        while len(self.queue) < count:
            self.queue = torch.cat([self.queue, torch.randperm(self.population, generator=self.generator)])
        rows, self.queue = self.queue[:count], self.queue[count:]
        return rows


def _progress(
    step: int,
    classifier: Classifier,
    optimizer: torch.optim.SGD,
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR,
    moves: torch.Generator,
    orders: list[RowOrder],
) -> dict[str, Tensor]:
    """All that a training needs to go on after `step` steps."""
    momentum = {
        f"momentum.{place:04d}": optimizer.state[parameter]["momentum_buffer"]
        for place, parameter in enumerate(classifier.parameters())
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    return {
        "step": torch.tensor(step),
        "rate": torch.tensor(schedule.get_last_lr(), dtype=torch.float64),
        "moves": moves.get_state(),
        **{f"network.{name}": value for name, value in classifier.network.state_dict().items()},
        **momentum,
        **{f"queue.{place}": order.queue for place, order in enumerate(orders)},
        **{f"order.{place}": order.generator.get_state() for place, order in enumerate(orders)},
    }


def _restore(
    saved: dict[str, Tensor],
    classifier: Classifier,
    optimizer: torch.optim.SGD,
    schedule: torch.optim.lr_scheduler.CosineAnnealingLR,
    moves: torch.Generator,
    orders: list[RowOrder],
) -> int:
    """Put back what `_progress` took; return the steps that are done."""
    step = int(saved["step"])
    names = classifier.network.state_dict()
    classifier.network.load_state_dict({name: saved[f"network.{name}"] for name in names})
    for place, parameter in enumerate(classifier.parameters()):
        if (buffer := saved.get(f"momentum.{place:04d}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)
    (rate,) = saved["rate"].tolist()
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": step, "_step_count": step + 1, "_last_lr": [rate]})
    for group in optimizer.param_groups:
        group["lr"] = rate
    moves.set_state(saved["moves"])
    for place, order in enumerate(orders):
        order.queue = saved[f"queue.{place}"]
        order.generator.set_state(saved[f"order.{place}"])
    return step


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
        **recipe(settings, device),
        "images": describe(images),
        "synthetic": None if synthetic is None else describe(synthetic),
    }


def recipe(settings: TrainSettings, device: torch.device) -> dict[str, Any]:
    """Describe, as JSON, how a classifier is trained, whatever it is trained on: settings and arithmetic."""
    return {
        "schema": SCHEMA,
        "settings": settings.model_dump(mode="json", exclude={"architecture", "arms", "seeds"}),
        "architecture": choose_architecture(settings.architecture, device),
        "device": device.type,
        "precision": str(training_precision(device)).removeprefix("torch."),
    }


def batch_parts(
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
