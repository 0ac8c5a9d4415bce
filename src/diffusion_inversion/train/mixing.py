"""What the batches of a training are made of: pools of images, and how many each step draws from which."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..config.training import Mixing, TrainSettings
from ..data.images import LabelledImages
from ..data.soft_labels import SoftLabels
from ..errors import DataError, UsageError
from ..randomness import generator_for
from .recipes import resolve

LAST = 0.1  # share of the steps that see real images alone with mixing="real-last"


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


@dataclass(frozen=True)
class Window:
    """Which images of a pool can be drawn at a step: some of them, which those next in order replace, up to the last.

    It depends on the step alone. What is replaced leaves its slot to what comes, the others keep theirs.
    """

    order: Tensor  # all rows (N,) int64, as they come
    slots: int  # images at a time
    at_once: int = 1  # images that are replaced together

    def rows(self, slots: Tensor, step: int, steps: int) -> Tensor:
        """The rows (M,) int64 in these slots (M,), 0 to `self.slots` - 1, at step `step` of 1 to `steps`.

        The first begins with the first `self.slots` rows of the order; from there the changes are evenly spread.
        """
        gone = self.gone(step, steps)
        turns = (gone - slots + self.slots - 1) // self.slots  # how often a slot has changed its image
        return self.order[slots + turns * self.slots]

    def gone(self, step: int, steps: int) -> int:
        """How many images of the order were replaced before step `step` of 1 to `steps`."""
        to_come = len(self.order) - self.slots
        changes = math.ceil(to_come / self.at_once)
        return min((step - 1) * (changes + 1) // steps * self.at_once, to_come)


def queue(order: Tensor, epoch: int) -> Window:
    """A queue of one epoch of images: the oldest tenth gives way to what comes next in the order (N,)."""
    return Window(order, epoch, math.ceil(epoch / 10))


class Pool:
    """Images that a training draws from, in the order that its generator gives. Copies of them may join."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        soft: SoftLabels | None = None,
        classes: int = 0,
        *,
        weights: Tensor | None = None,
        window: Window | None = None,
    ) -> None:
        """With `soft` the labels that are drawn are targets of so many classes.

        weights: (N,) float32, of each image in the loss, beside `soft`: its targets sum to its weight.
        window: which images can be drawn when; nothing can be added then.
        """
        self.images, self.labels = images, labels  # (N, 3, S, S) uint8 and (N,) int64; those given, then copies
        self.soft, self.classes = soft, classes
        self.weights, self.window = weights, window
        self.given = len(labels)
        self.order = RowOrder(self.given if window is None else window.slots, generator)

    def draw(self, count: int, step: int = 1, steps: int = 1) -> tuple[Tensor, Tensor]:
        """The next images (count, 3, S, S) uint8 and their labels, see `targets`, at step `step` of 1 to `steps`."""
        rows = self.order.draw(count)
        if self.window is not None:
            rows = self.window.rows(rows, step, steps)
        return self.images[rows], self.targets(rows)

    def targets(self, rows: Tensor) -> Tensor:
        """Labels of rows (M,): (M,) int64, or (M, classes) float32 where there are soft ones or weights."""
        if self.soft is None:
            return self.labels[rows]
        found = self.soft.rows(rows).targets(self.labels[rows], self.classes)
        return found if self.weights is None else self.weights[rows, None] * found

    def add(self, copies: Tensor, labels: Tensor, soft: SoftLabels | None = None) -> None:
        """Let copies (M, 3, S, S) uint8 with labels (M,) take part from the next epoch on."""
        self.images = torch.cat([self.images, copies])
        self.labels = torch.cat([self.labels, labels])
        if self.soft is not None:
            self.soft = SoftLabels.cat([self.soft, soft or SoftLabels.hard(labels)])
        self.order.population += len(labels)

    def state(self) -> dict[str, Tensor]:
        """All that changes while a training draws."""
        second = {} if self.soft is None else {"copy_second": self.soft.second, "copy_weight": self.soft.weight}
        if self.soft is not None and self.soft.answers is not None:
            second["copy_answers"] = self.soft.answers
        return {
            "queue": self.order.queue,
            "order": self.order.generator.get_state(),
            "copies": self.images[self.given :],
            "copy_labels": self.labels[self.given :],
            **{name: values[self.given :] for name, values in second.items()},
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` took from an equal pool."""
        soft = None
        if self.soft is not None:
            soft = SoftLabels(state["copy_second"], state["copy_weight"], state.get("copy_answers"))
        self.add(state["copies"], state["copy_labels"], soft)
        self.order.queue = state["queue"]
        self.order.generator.set_state(state["order"])


def make_pools(
    images: LabelledImages,
    synthetic: LabelledImages | None,
    settings: TrainSettings,
    seed: int,
    measured: Tensor | None = None,
    window: Window | None = None,
) -> list[Pool]:
    """The pools of a training, after `check_images`. One order per pool: real images come alike in every arm of a seed.

    With `synthetic` there are two, `images` first; with mixing="concatenate" one that holds all images. `measured` is
    what `measure` says; `window` is that of the last pool, where a part of its images is there. Where some images have
    soft labels or weights, all pools draw targets of all classes.
    """
    parts = [images] if synthetic is None else [images, synthetic]
    pixels, labels = [part.images for part in parts], [part.labels for part in parts]
    weights: tuple[Tensor | None, ...] = (None, None)
    windows: tuple[Window | None, ...] = (None, None) if window is None else (*[None] * (len(parts) - 1), window)
    if measured is not None and settings.mixing == "confidence":
        weights = (torch.ones(len(images)), measured)
    elif measured is not None and settings.mixing == "curriculum":
        windows = (None, Window(far_to_near(measured, labels[1]), math.ceil(len(measured) / 2)))
    elif measured is not None:
        windows = (None, queue(measured.argsort(stable=True), int((measured == 0).sum())))
    soft: list[SoftLabels] = []
    if weights[0] is not None or any(part.soft is not None for part in parts):
        soft = [part.soft or SoftLabels.hard(part.labels) for part in parts]
    if settings.mixing == "concatenate":
        pixels, labels, soft = [torch.cat(pixels)], [torch.cat(labels)], [SoftLabels.cat(soft)] if soft else []
    return [
        Pool(
            own,
            theirs,
            generator_for("train", seed, "order", place),
            soft[place] if soft else None,
            len(images.class_names),
            weights=weights[place],
            window=windows[place],
        )
        for place, (own, theirs) in enumerate(zip(pixels, labels, strict=True))
    ]


def measure(real: LabelledImages, synthetic: LabelledImages, mixing: Mixing) -> Tensor | None:
    """What a mixing reads of each synthetic image, (N,) float32; None where it reads nothing.

    confidence: the judge's in the image's label, in [0, 1]. curriculum: the image's distance to its source, the root
    mean square of the differences of their pixels, in [0, 255]. queue: how many images of its source come before it.

    Raises DataError for images without a confidence or a source, and where a distance is asked for to no real image.
    """
    if mixing == "confidence":
        if synthetic.confidence is None:
            raise DataError(
                f"mixing=confidence: {synthetic.name}: not every image has a confidence of a judge in its label. Let "
                "one judge them by --filter drop or soft, or give another mixing."
            )
        return synthetic.confidence
    if mixing not in ("curriculum", "queue"):
        return None
    if not synthetic.source_ids:
        raise DataError(f"mixing={mixing}: {synthetic.name}: no image has a source on record. Give another mixing.")
    if mixing == "queue":
        before: Counter[str] = Counter()
        places = []
        for source in synthetic.source_ids:
            places.append(float(before[source]))
            before[source] += 1
        return torch.tensor(places)
    if lost := [source for source in synthetic.source_ids if source not in real.row_of]:
        raise DataError(
            f"mixing=curriculum: {synthetic.name}: {len(lost)} of {len(synthetic)} images have no source among the "
            f"real ones, as {lost[0]}. Give another mixing."
        )
    pairs = zip(synthetic.images, (real.images[real.row_of[source]] for source in synthetic.source_ids), strict=True)
    return torch.stack([(image.float() - source.float()).square().mean().sqrt() for image, source in pairs])


def refuse_unjudged(settings: TrainSettings) -> None:
    """Raise UsageError, before images are drawn, for a mixing that reads a judge's confidence where none is asked."""
    if settings.mixing == "confidence" and "real+synthetic" in settings.arms:
        raise UsageError(
            "mixing=confidence: images are drawn without a judge's confidence in their labels. Let one judge them by "
            "--filter drop or soft, or give another mixing."
        )


def far_to_near(distance: Tensor, labels: Tensor) -> Tensor:
    """Rows (N,) int64 by falling distance (N,), each stretch of them with the classes (N,) in their proportions."""
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        falling = rows[distance[rows].argsort(descending=True, stable=True)]
        place[falling] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    return place.argsort(stable=True)


def check_images(images: LabelledImages, synthetic: LabelledImages | None) -> None:
    """Raise DataError for images that are none, or that differ in classes or side."""
    for part in (images, synthetic):
        if part is not None and len(part) == 0:
            raise DataError(f"{part.name}: no images to train on; give at least one.")
    if synthetic is not None and (synthetic.class_names, synthetic.size) != (images.class_names, images.size):
        raise DataError(
            f"{synthetic.name} has classes {list(synthetic.class_names)} at {synthetic.size} px, {images.name} has "
            f"{list(images.class_names)} at {images.size} px. Give both the same classes, order and side."
        )


def batches_at(step: int, settings: TrainSettings, pools: list[Pool]) -> list[tuple[Tensor, Tensor]]:
    """Images and labels of step `step` (from 1): one batch of all pools, or with mixing="two-losses" one of each."""
    counts = counts_at(step, settings, len(pools))
    drawn = [pool.draw(count, step, settings.steps) for pool, count in zip(pools, counts, strict=True)]
    if settings.mixing == "two-losses":
        return drawn
    images, labels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    return [(images, labels)]


def shares_of(settings: TrainSettings, pools: int) -> list[float]:
    """Share of each batch of `batches_at` in the loss of a step; they sum to 1."""
    if settings.mixing == "two-losses" and pools == 2:
        return [_share(settings), 1 - _share(settings)]
    return [1.0]


def counts_at(step: int, settings: TrainSettings, pools: int) -> list[int]:
    """How many images step `step` (from 1) draws from each of the pools; they sum to the batch size."""
    whole = resolve(settings).batch_size
    if pools == 1:
        return [whole]
    if settings.mixing in ("sequential", "real-last") and step > settings.steps - real_steps(settings):
        return [whole, 0]
    if settings.mixing == "sequential":
        return [0, whole]
    if settings.mixing == "two-losses":
        return [whole - whole // 2, whole // 2]
    real = real_per_batch(settings)
    return [real, whole - real]


def real_per_batch(settings: TrainSettings) -> int:
    """Real images in each batch of real+synthetic: real_fraction rounded, at least one image of either kind."""
    whole = resolve(settings).batch_size
    return min(max(round(_share(settings) * whole), 1), whole - 1)


def real_steps(settings: TrainSettings) -> int:
    """Steps on real images alone, the last ones: real_fraction of all where sequential, a tenth where real-last.

    Rounded, at least one step of either kind. The learning rate goes through its schedule once, so they are those of
    the low rates.
    """
    share = LAST if settings.mixing == "real-last" else _share(settings)
    return max(min(round(share * settings.steps), settings.steps - 1), 1)


def _share(settings: TrainSettings) -> float:
    if settings.real_fraction == "auto":
        raise UsageError("real_fraction=auto: not chosen yet. Train through a run folder, or give a number.")
    return settings.real_fraction


def weighted_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """sum_i w_i l_i / sum_i w_i: l_i the cross-entropy of row i of logits (B, classes), w_i the sum of its targets.

    Targets (B, classes) are weights times distributions, and stay so where MixUp or CutMix blends rows of them.
    """
    weights = targets.sum(1)
    distributions = targets / weights.clamp(min=torch.finfo(weights.dtype).tiny)[:, None]
    each = F.cross_entropy(logits, distributions, label_smoothing=label_smoothing, reduction="none")
    return (weights * each).sum() / weights.sum()


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Let batch normalisation go by the batch alone, and leave the averages that it keeps for tests as they are."""
    layers = [one for one in network.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
