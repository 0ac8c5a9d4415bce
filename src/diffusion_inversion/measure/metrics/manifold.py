"""Metrics on k-nearest-neighbour balls: improved precision and recall (arXiv 1904.06991), density and coverage
(arXiv 2002.09797)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ...errors import DataError
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
    real, generated, noise = _centred(real_features, generated_features, k)
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


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The values of `ManifoldValues` as they would be without one group, a column for each group.

    A group's own images, where it is left out of their set, have values that mean nothing.
    """

    precision: Float64[Tensor, "generated groups"]  # without each group of real images
    recall: Float64[Tensor, "real groups"]  # without each group of generated images
    density: Float64[Tensor, "generated groups"]  # without each group of real images
    coverage: Float64[Tensor, "real groups"]  # without each group of generated images
    coverage_real: Float64[Tensor, "real groups"]  # without each group of real images
    coverage_both: Float64[Tensor, "real groups"]  # without each group of either


def left_out_values(
    real_features: Tensor,
    generated_features: Tensor,
    real_group: Int64[Tensor, " real"],
    generated_group: Int64[Tensor, " generated"],
    groups: int,
    *,
    k: int = 5,
    entries: int = _ENTRIES,
) -> LeftOut:
    """Leave each group 0..groups-1 of either set out in turn; one pass over the distances, as `manifold_values`.

    Balls reach to the k-th nearest of those that are left. Raises DataError as `manifold_values` does, and where
    without a group k images or fewer are left.
    """
    real, generated, noise = _centred(real_features, generated_features, k)
    real_group, generated_group = real_group.to(real.device), generated_group.to(real.device)
    for side, group in (("real", real_group), ("generated", generated_group)):
        left = len(group) - int(group.bincount(minlength=groups).max())
        if left <= k:
            raise DataError(
                f"{side} features: {left} without one group, more than k = {k} are needed; give a smaller k"
            )
    whole_radii = _squared_radii(real, k, entries)
    real_radii = _radii_without(real, real_group, groups, k, entries)
    generated_radii = _radii_without(generated, generated_group, groups, k, entries)
    precision, density = [], []
    recall = torch.zeros(len(real), groups, dtype=torch.bool, device=real.device)
    of_real, of_both = torch.zeros_like(recall), torch.zeros_like(recall)
    hits = torch.zeros(len(real), groups, dtype=torch.float64, device=real.device)
    start = 0
    for distances in _squared_distances(generated, real, entries):
        rows = slice(start, start + len(distances))
        inside = (distances < whole_radii * (1 - _TIE) - noise).double()
        hits += inside.T @ torch.nn.functional.one_hot(generated_group[rows], groups).double()
        some, count = [], []
        for out in range(groups):
            some.append((distances <= real_radii[:, out] * (1 + _TIE) + noise).any(dim=1))
            open_balls = distances < real_radii[:, out] * (1 - _TIE) - noise
            count.append(open_balls.double().sum(dim=1) / k)
            of_real[:, out] |= open_balls.any(dim=0)
            of_both[:, out] |= open_balls[generated_group[rows] != out].any(dim=0)
            recall[:, out] |= (distances <= generated_radii[rows, out, None] * (1 + _TIE) + noise).any(dim=0)
        precision.append(torch.stack(some, dim=1))
        density.append(torch.stack(count, dim=1))
        start = rows.stop
    return LeftOut(
        torch.cat(precision).double(), recall.double(), torch.cat(density),
        (hits.sum(dim=1, keepdim=True) > hits).double(), of_real.double(), of_both.double(),
    )  # fmt: skip


def _centred(real_features: Tensor, generated_features: Tensor, k: int) -> tuple[Tensor, Tensor, float]:
    """Both sets about the real ones' mean, and the rounding of squared distances between them."""
    real, generated = checked(real_features, generated_features, least=k + 1)
    # Distances come from a matrix product, which loses digits far from the origin.
    center = real.mean(dim=0)
    real, generated = real - center, generated - center
    return real, generated, 1e-13 * max(float(side.square().sum(dim=1).max()) for side in (real, generated))


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


def _radii_without(features: Tensor, group: Tensor, groups: int, k: int, entries: int) -> Tensor:
    """Squared radii (N, groups) without each group; -inf, the ball of nothing, for the group's own rows."""
    found, start = [], 0
    for distances in _squared_distances(features, features, entries):
        own = group[start : start + len(distances)]
        without = []
        for number in range(groups):
            left = distances.masked_fill(group == number, torch.inf)
            nearest = left.topk(k + 1, dim=1, largest=False).values[:, -1].clamp(min=0)
            without.append(nearest.masked_fill(own == number, -torch.inf))
        found.append(torch.stack(without, dim=1))
        start += len(distances)
    return torch.cat(found)
