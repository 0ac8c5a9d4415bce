"""Metrics on k-nearest-neighbour balls: improved precision and recall (arXiv 1904.06991), density and coverage
(arXiv 2002.09797)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from .inputs import checked

_ENTRIES = 1 << 24  # distances in memory at once: 128 MB of float64
# Squared distances that differ by less are equal: rounding must not decide which side of a ball a point lies on.
_TIE = 1e-9


@dataclass(frozen=True, eq=False)
class ManifoldValues:
    """One value per image; each metric is the mean of its values."""

    precision: Float64[Tensor, " generated"]  # 1 where the image lies in some real ball, else 0
    recall: Float64[Tensor, " real"]  # 1 where the image lies in some generated ball, else 0
    density: Float64[Tensor, " generated"]  # number of real balls around the image, over k
    coverage: Float64[Tensor, " real"]  # 1 where the image's own ball holds a generated image, else 0


def manifold_values(
    real_features: Tensor, generated_features: Tensor, *, k: int = 5, entries: int = _ENTRIES
) -> ManifoldValues:
    """Exact precision, recall, density and coverage of features (N, D) and (M, D), k < min(N, M).

    A ball reaches from an image to its k-th nearest neighbour in its own set, itself not counted. Balls are closed
    for precision and recall, as their authors' code and torch-fidelity have them, open for density and coverage, as
    PyPI `prdc`: then two identical sets have density 1. Memory: the features in float64 and `entries` distances;
    the result does not depend on `entries`. Raises DataError as `checked` does, and for sets of k images or fewer.
    """
    real, generated = checked(real_features, generated_features, least=k + 1)
    # Distances come from a matrix product, which loses digits far from the origin.
    center = real.mean(dim=0)
    real, generated = real - center, generated - center
    noise = 1e-13 * max(float(real.square().sum(dim=1).max()), float(generated.square().sum(dim=1).max()))
    real_radii = _squared_radii(real, k, entries)
    generated_radii = _squared_radii(generated, k, entries)

    precision, density = [], []
    recall = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    coverage = torch.zeros_like(recall)
    radii_of_chunks = iter(generated_radii.split(_rows(entries, len(real))))
    for distances in _squared_distances(generated, real, entries):  # (chunk of generated, real)
        inside = distances < real_radii * (1 - _TIE) - noise
        density.append(inside.double().sum(dim=1) / k)
        coverage |= inside.any(dim=0)
        precision.append((distances <= real_radii * (1 + _TIE) + noise).any(dim=1))
        recall |= (distances <= next(radii_of_chunks)[:, None] * (1 + _TIE) + noise).any(dim=0)
    return ManifoldValues(torch.cat(precision).double(), recall.double(), torch.cat(density), coverage.double())


def _rows(entries: int, columns: int) -> int:
    return max(1, entries // columns)


def _squared_distances(x: Tensor, y: Tensor, entries: int) -> Iterator[Tensor]:
    """Squared distances (chunk of x, y), at most `entries` of them at a time (at least one row)."""
    squares = y.square().sum(dim=1)
    for chunk in x.split(_rows(entries, len(y))):
        yield torch.addmm(chunk.square().sum(dim=1)[:, None] + squares, chunk, y.T, alpha=-2)


def _squared_radii(features: Tensor, k: int, entries: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row: the k + 1 smallest hold the row itself."""
    nearest = [
        distances.topk(k + 1, dim=1, largest=False).values[:, -1]
        for distances in _squared_distances(features, features, entries)
    ]
    return torch.cat(nearest).clamp(min=0)
