"""Perturbations of a conditioning vector (paper, section 3.2): interpolation with a partner, then Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def interpolate(
    embedding: Float[Tensor, "*shape"], partner: Float[Tensor, "*shape"], interpolation: Tensor | float
) -> Float[Tensor, "*shape"]:
    """alpha * partner + (1 - alpha) * embedding, any shape; alpha in [0, 1], 0 keeps the embedding.

    The paper writes alpha c_1 + (1 - alpha) c_2; with its default 0.1 the source is c_2 (tables 5 and 8: alpha = 0
    is no perturbation).
    """
    return embedding + interpolation * (partner - embedding)


def add_gaussian_noise(
    embedding: Float[Tensor, "*shape"], noise_strength: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """c + lambda * N(0, I) on the CPU, same shape; lambda >= 0 is the noise's standard deviation."""
    return embedding + noise_strength * torch.randn(embedding.shape, generator=generator)


def choose_partner(source: int, class_rows: Sequence[int], generator: torch.Generator) -> int:
    """A random other row of `class_rows`, which holds `source`; the source itself where it is alone in its class."""
    if len(class_rows) == 1:
        return source
    drawn = int(torch.randint(len(class_rows) - 1, (1,), generator=generator))
    return class_rows[drawn if drawn < class_rows.index(source) else drawn + 1]
