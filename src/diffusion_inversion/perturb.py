"""Perturbations of a conditioning vector (paper, section 3.2): interpolation with a partner, then Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor


def interpolate(embedding: Tensor, partner: Tensor, interpolation: Tensor | float) -> Tensor:
    """alpha * partner + (1 - alpha) * embedding, any shape; alpha in [0, 1], 0 keeps the embedding.

    The paper writes alpha c_1 + (1 - alpha) c_2; with its default 0.1 the source is c_2 (tables 5 and 8: alpha = 0
    is no perturbation).
    """
    return embedding + interpolation * (partner - embedding)


def add_gaussian_noise(embedding: Tensor, noise_strength: float, generator: torch.Generator) -> Tensor:
    """c + lambda * N(0, I) on the CPU, same shape; lambda >= 0 is the noise's standard deviation."""
    return embedding + noise_strength * torch.randn(embedding.shape, generator=generator)


def choose_partner(source: int, labels: list[int], generator: torch.Generator) -> int:
    """Row of a random other vector of the same class; the source's own row where it is alone in its class."""
    candidates = [row for row, label in enumerate(labels) if label == labels[source] and row != source]
    if not candidates:
        return source
    return candidates[int(torch.randint(len(candidates), (1,), generator=generator))]
