"""What the batches of a training are made of: pools of images, and how many each step draws from which."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.training import TrainSettings
from ..data.images import LabelledImages
from ..data.soft_labels import SoftLabels
from ..errors import DataError, UsageError
from ..randomness import generator_for
from .recipes import resolve


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
    ) -> None:
        """With `soft` the labels that are drawn are targets of so many classes."""
        self.images, self.labels = images, labels  # (N, 3, S, S) uint8 and (N,) int64; those given, then copies
        self.soft, self.classes = soft, classes
        self.given = len(labels)
        self.order = RowOrder(self.given, generator)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """The next images (count, 3, S, S) uint8 and their labels, see `targets`."""
        rows = self.order.draw(count)
        return self.images[rows], self.targets(rows)

    def targets(self, rows: Tensor) -> Tensor:
        """Labels of rows (M,): (M,) int64, or (M, classes) float32 where there are soft ones."""
        return self.labels[rows] if self.soft is None else self.soft.rows(rows).targets(self.labels[rows], self.classes)

    def add(self, copies: Tensor, labels: Tensor, soft: SoftLabels | None = None) -> None:
        """Let copies (M, 3, S, S) uint8 with labels (M,) take part from the next epoch on."""
        self.images = torch.cat([self.images, copies])
        self.labels = torch.cat([self.labels, labels])
        if self.soft is not None:
            self.soft = SoftLabels.cat([self.soft, soft or SoftLabels.hard(labels)])
        self.order.population = len(self.labels)

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
    images: LabelledImages, synthetic: LabelledImages | None, settings: TrainSettings, seed: int
) -> list[Pool]:
    """The pools of a training, after `check_images`. One order per pool: real images come alike in every arm of a seed.

    With `synthetic` there are two, `images` first; with mixing="concatenate" one that holds all images. Where some
    images have soft labels, all pools draw targets of all classes.
    """
    check_images(images, synthetic)
    parts = [images] if synthetic is None else [images, synthetic]
    pixels, labels = [part.images for part in parts], [part.labels for part in parts]
    soft: list[SoftLabels] = []
    if any(part.soft is not None for part in parts):
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
        )
        for place, (own, theirs) in enumerate(zip(pixels, labels, strict=True))
    ]


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


def counts_at(step: int, settings: TrainSettings, pools: int) -> list[int]:
    """How many images step `step` (from 1) draws from each of the pools; they sum to the batch size."""
    whole = resolve(settings).batch_size
    if pools == 1:
        return [whole]
    if settings.mixing == "sequential":
        return [0, whole] if step <= settings.steps - real_steps(settings) else [whole, 0]
    real = real_per_batch(settings)
    return [real, whole - real]


def real_per_batch(settings: TrainSettings) -> int:
    """Real images in each batch of real+synthetic: real_fraction rounded, at least one image of either kind."""
    whole = resolve(settings).batch_size
    return min(max(round(_share(settings) * whole), 1), whole - 1)


def real_steps(settings: TrainSettings) -> int:
    """Steps on real images where they follow synthetic ones: real_fraction rounded, at least one step of either kind.

    The learning rate goes through its schedule once, so the real steps are those of the low rates.
    """
    return max(min(round(_share(settings) * settings.steps), settings.steps - 1), 1)


def _share(settings: TrainSettings) -> float:
    if settings.real_fraction == "auto":
        raise UsageError("real_fraction=auto: not chosen yet. Train through a run folder, or give a number.")
    return settings.real_fraction
