"""Coloured toys that a classifier learns at once, and small trainings of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.train import training
from diffusion_inversion.train.arms import train_arms
from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.training import train

TINY = TrainSettings(architecture="resnet20", steps=3, batch_size=8, seeds=(0, 1))


def toy(n: int, seed: int, *, size: int = 8, name: str = "toy", noise: int = 120, signal: int = 100) -> LabelledImages:
    """Three classes told apart by which colour is brighter by `signal`: linearly separable whatever the crop or flip.

    With noise 200 and signal 16 it takes hundreds of images to learn.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, noise, (n, 3, size, size), generator=generator)
    images[torch.arange(n), labels] += signal
    ids = tuple(f"{name}/{i:06d}" for i in range(n))
    return LabelledImages(name, ids, ids, labels, ("red", "green", "blue"), images.to(torch.uint8), size)


def pair() -> tuple[LabelledImages, LabelledImages]:
    """12 real images whose first pixel is 1, and 36 synthetic ones with 0 there, three of each source.

    The variants of a source are ever farther from it, and a judge is ever less sure of them.
    """
    real = toy(12, 0)
    real.images[:, 0, 0, 0] = 1
    source = torch.arange(36) % 12
    strength = torch.arange(36)
    images = (real.images[source].int() + strength[:, None, None, None]).to(torch.uint8)
    images[:, 0, 0, 0] = 0
    ids = tuple(f"synthetic/{row:02d}" for row in range(36))
    return real, LabelledImages(
        "synthetic", ids, ids, real.labels[source], real.class_names, images, 8,
        source_ids=tuple(real.ids[row] for row in source), confidence=1 - strength / 40,
    )  # fmt: skip


def equal(one: Classifier, other: Classifier) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def batches_seen(
    settings: TrainSettings, images: LabelledImages, synthetic: LabelledImages | None = None
) -> list[Tensor]:
    """The uint8 batches that `train` draws; `settings` augment nothing."""
    seen: list[Tensor] = []

    def look(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, Classifier):
            seen.append(inputs[0].clone())

    hook = register_module_forward_pre_hook(look)
    try:
        train(images, synthetic=synthetic, settings=settings, device="cpu")
    finally:
        hook.remove()
    return seen


def run_toy(folder: Path | None, settings: TrainSettings = TINY, **arguments: object) -> training.ArmResults:
    arms = (toy(20, 0), toy(30, 1, name="synthetic"), toy(12, 2, name="test"))
    return train_arms(*arms, settings=settings, device="cpu", folder=folder, **arguments)  # type: ignore[arg-type]
