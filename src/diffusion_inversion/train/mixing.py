"""What the batches of a training are made of: pools of images, and how many each step draws from which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        ranking: Tensor | None = None,
    ) -> None:
        """With `soft` the labels that are drawn are targets of so many classes.

        weights: (N,) float32, of each image in the loss, beside `soft`: its targets sum to its weight.
        ranking: all rows (N,) int64, of which half can be drawn at a time: at the start of the training the first half,
            at its end the second. Nothing can be added then.
        """
        self.images, self.labels = images, labels  # (N, 3, S, S) uint8 and (N,) int64; those given, then copies
        self.soft, self.classes = soft, classes
        self.weights, self.ranking = weights, ranking
        self.given = len(labels)
        self.order = RowOrder(self.given if ranking is None else (self.given + 1) // 2, generator)

    def draw(self, count: int, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        """The next images (count, 3, S, S) uint8 and their labels, see `targets`; training's `progress` in [0, 1]."""
        rows = self.order.draw(count)
        if self.ranking is not None:
            rows = self.ranking[rows + round(progress * (self.given - self.order.population))]
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
) -> list[Pool]:
    """The pools of a training, after `check_images`. One order per pool: real images come alike in every arm of a seed.

    With `synthetic` there are two, `images` first; with mixing="concatenate" one that holds all images. `measured` is
    what `measure` says. Where some images have soft labels or weights, all pools draw targets of all classes.
    """
    parts = [images] if synthetic is None else [images, synthetic]
    pixels, labels = [part.images for part in parts], [part.labels for part in parts]
    weights: tuple[Tensor | None, ...] = (None, None)
    rankings: tuple[Tensor | None, ...] = (None, None)
    if measured is not None and settings.mixing == "confidence":
        weights = (torch.ones(len(images)), measured)
    elif measured is not None:
        rankings = (None, far_to_near(measured, labels[1]))
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
            ranking=rankings[place],
        )
        for place, (own, theirs) in enumerate(zip(pixels, labels, strict=True))
    ]


def measure(real: LabelledImages, synthetic: LabelledImages, mixing: Mixing) -> Tensor | None:
    """What a mixing reads of each synthetic image, (N,) float32; None where it reads nothing.

    confidence: the judge's in the image's label, in [0, 1]. curriculum: the image's distance to its source, the root
    mean square of the differences of their pixels, in [0, 255].

    Raises DataError for images without a confidence, or whose source is not among the real ones.
    """
    if mixing == "confidence":
        if synthetic.confidence is None:
            raise DataError(
                f"mixing=confidence: {synthetic.name}: not every image has a confidence of a judge in its label. Let "
                "one judge them, or give another mixing."
            )
        return synthetic.confidence
    if mixing != "curriculum":
        return None
    row_of = {image_id: row for row, image_id in enumerate(real.ids)}
    lost = [source for source in synthetic.source_ids if source not in row_of]
    if lost or not synthetic.source_ids:
        raise DataError(
            f"mixing=curriculum: {synthetic.name}: {len(lost) or len(synthetic)} of {len(synthetic)} images have no "
            f"source among the real ones{f', as {lost[0]}' if lost else ''}. Give another mixing."
        )
    found = []
    for image, source in zip(synthetic.images, synthetic.source_ids, strict=True):
        found.append((image.float() - real.images[row_of[source]].float()).square().mean().sqrt())
    return torch.stack(found)


def refuse_unjudged(settings: TrainSettings) -> None:
    """Raise UsageError, before images are drawn, for a mixing that reads a judge's confidence: drawings have none."""
    if settings.mixing == "confidence" and "real+synthetic" in settings.arms:
        raise UsageError(
            "mixing=confidence: images are drawn without a judge's confidence in their labels. Give another mixing."
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
    progress = (step - 1) / max(settings.steps - 1, 1)
    counts = counts_at(step, settings, len(pools))
    drawn = [pool.draw(count, progress) for pool, count in zip(pools, counts, strict=True)]
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
