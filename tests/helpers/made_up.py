"""Vectors and features that come of no image."""

from __future__ import annotations

import torch
from torch import Tensor
from toy import CLASSES, RESOLUTION

from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import Embeddings


def made_up(generator: Generator, vectors: Tensor, labels: list[int]) -> Embeddings:
    """Embeddings with these vectors (steps, images, tokens, width), kept at steps 1, 2, ..."""
    steps, count = vectors.shape[:2]
    return Embeddings(
        ids=tuple(f"{row:03d}" for row in range(count)),
        labels=torch.tensor(labels),
        class_names=CLASSES,
        steps=tuple(range(1, steps + 1)),
        vectors=vectors,
        curve_steps=(0,),
        losses=torch.zeros(1, count),
        null_losses=torch.zeros(count),
        generator_hash=generator.hash,
        resolution=RESOLUTION,
        image_size=RESOLUTION,
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Features (N, D) float64, as little alike as a normal distribution has them."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
