"""Perturbations of a conditioning vector (paper, section 3.2): mixing with partners, then Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

NEARLY_PARALLEL = 0.9995  # cosine above which slerp divides by next to nothing
REFERENCE_PARTNERS = 5  # of each image: num_samples of the reference code's di/sample_dataset.py


def interpolate(
    embedding: Float[Tensor, "*shape"], partner: Float[Tensor, "*shape"], interpolation: Tensor | float
) -> Float[Tensor, "*shape"]:
    """alpha * partner + (1 - alpha) * embedding, any shape; alpha in [-1, 1], 0 keeps the embedding.

    The paper writes alpha c_1 + (1 - alpha) c_2; with its default 0.1 the source is c_2 (tables 5 and 8: alpha = 0
    is no perturbation). Below 0 it leads away from the partner, which the paper does not do.
    """
    return embedding + interpolation * (partner - embedding)


def slerp(
    embedding: Float[Tensor, "*shape"], partner: Float[Tensor, "*shape"], interpolation: float
) -> Float[Tensor, "*shape"]:
    """Spherical interpolation of the flattened vectors (Shoemake 1985), alpha in [-1, 1], 0 keeps the embedding.

    sin((1 - alpha) theta) / sin(theta) * embedding + sin(alpha theta) / sin(theta) * partner, theta the angle between
    them: two vectors of one norm keep it. As in diffusers' community pipelines, a straight line where |cos(theta)|
    exceeds 0.9995, and where a vector is zero.
    """
    lengths = embedding.norm() * partner.norm()
    cosine = (embedding * partner).sum() / lengths
    if lengths == 0 or cosine.abs() > NEARLY_PARALLEL:
        return interpolate(embedding, partner, interpolation)
    theta = cosine.acos()
    own, other = ((1 - interpolation) * theta).sin(), (interpolation * theta).sin()
    blended: Tensor = (own * embedding + other * partner) / theta.sin()
    return blended


def circle(
    embedding: Float[Tensor, "*shape"],
    partner: Float[Tensor, "*shape"],
    centre: Float[Tensor, "*shape"] | float,
    interpolation: float,
) -> Float[Tensor, "*shape"]:
    """m + cos(phi) (c - m) + sin(phi) (c_partner - m), phi = alpha pi / 2, any shape; alpha in [-1, 1].

    0 keeps the embedding, 1 is the partner, below 0 leads away from it. Since cos^2 + sin^2 = 1, independent vectors
    of one distribution about its mean m keep its covariance, where a straight line has (1 - alpha)^2 + alpha^2 of it.
    """
    angle = interpolation * math.pi / 2
    return centre + math.cos(angle) * (embedding - centre) + math.sin(angle) * (partner - centre)


def dirichlet_weights(interpolation: float, count: int, generator: torch.Generator) -> tuple[float, ...]:
    """Random weights of `count` >= 2 vectors, the source's first: at least 0, of sum 1; alpha in [0, 1].

    Dirichlet's parameters are count (1 - alpha) for the source and count alpha / (count - 1) for each other, so the
    source's weight is 1 - alpha on average, with variance alpha (1 - alpha) / (count + 1). At alpha = 1 - 1 / count
    all weights are equally likely.
    """
    seed = int(torch.randint(2**32, (1,), generator=generator))
    others = [count * interpolation / (count - 1)] * (count - 1)
    # A stream that numpy promises to keep; torch draws no gamma from a generator of one's own.
    drawn = np.random.RandomState(seed).standard_gamma([count * (1 - interpolation), *others])
    return tuple((drawn / drawn.sum()).tolist())


def mix(vectors: Float[Tensor, " vectors *shape"], weights: Sequence[float]) -> Float[Tensor, "*shape"]:
    """The weighted sum of vectors."""
    return torch.einsum("v...,v->...", vectors, vectors.new_tensor(weights))


def move_to_class(
    embedding: Float[Tensor, "*shape"], mean: Float[Tensor, "*shape"], new_mean: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """What sets a vector apart from the mean of its class, about the mean of another: m_new + (c - m)."""
    return new_mean + (embedding - mean)


def add_gaussian_noise(
    embedding: Float[Tensor, "*shape"], noise_strength: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """c + lambda * N(0, I) on the CPU, same shape; lambda >= 0 is the noise's standard deviation."""
    return embedding + noise_strength * torch.randn(embedding.shape, generator=generator)


def choose_partner(rows: Sequence[int], place: int, own: range, generator: torch.Generator) -> int:
    """A random other row of the class at the places `own` of `rows`, for the row at `place`; itself where alone."""
    if len(own) == 1:
        return rows[place]
    drawn = own.start + int(torch.randint(len(own) - 1, (1,), generator=generator))
    return rows[drawn if drawn < place else drawn + 1]


def choose_several(
    rows: Sequence[int], place: int, own: range, count: int, generator: torch.Generator
) -> tuple[int, ...]:
    """As `choose_partner`, but `count` different ones, every set of them equally likely; all where there are fewer."""
    others = len(own) - 1
    chosen: list[int] = []
    for last in range(max(others - count, 0), others):  # Floyd's sampling (Bentley and Floyd 1987)
        drawn = own.start + int(torch.randint(last + 1, (1,), generator=generator))
        chosen.append(own.start + last if drawn in chosen else drawn)
    return tuple(rows[one if one < place else one + 1] for one in chosen) or (rows[place],)


def choose_outside(rows: Sequence[int], own: range, generator: torch.Generator) -> int:
    """A random row that is not at the places `own` of `rows`; at least one such row must be there."""
    drawn = int(torch.randint(len(rows) - len(own), (1,), generator=generator))
    return rows[drawn if drawn < own.start else drawn + len(own)]


def choose_in_group(rows: Sequence[int], place: int, own: range, generator: torch.Generator) -> int:
    """As the reference code, which draws 5 partners at a time: rows of the class, and where it has fewer than 5 others
    in the group all of these and the rest from outside it.

    Here one is drawn at a time, so with k < 5 others it is one of them with probability k / 5. It is never the row
    itself, which the code can draw where there are 5 others, unless the group holds no other.
    """
    others = len(own) - 1
    if others < REFERENCE_PARTNERS and len(own) < len(rows):
        drawn = int(torch.randint(REFERENCE_PARTNERS, (1,), generator=generator))
        if drawn >= others:
            return choose_outside(rows, own, generator)
    return choose_partner(rows, place, own, generator)
