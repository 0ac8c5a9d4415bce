"""Maximum mean discrepancies: KID (arXiv 1801.01401) and CMMD (arXiv 2401.09603). Both are squared MMDs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ...errors import DataError
from .inputs import checked

Kernel = Callable[[Tensor, Tensor], Tensor]  # (A, D), (B, D) => (A, B)

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
_CHUNK = 1024  # rows of the kernel matrix in memory at once


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / D + 1)^3, the kernel of KID."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x - y|^2 / (2 sigma^2)) with sigma = 10, the kernel of CMMD."""
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T
    return torch.exp(squares / (-2 * CMMD_SIGMA**2))


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """Squared MMD of the whole sets, and of parts of them.

    unbiased: U-statistic, without the pairs of an image with itself; may be below 0.
    biased: V-statistic, with them; at least 0, and too high by about 1/N + 1/M.
    parts: the U-statistic of each part.
    """

    unbiased: float
    biased: float
    parts: Float64[Tensor, " parts"]


def discrepancy(
    kernel: Kernel,
    real: Float64[Tensor, "real dim"],
    generated: Float64[Tensor, "generated dim"],
    real_parts: Float64[Tensor, "real parts"],
    generated_parts: Float64[Tensor, "generated parts"],
    *,
    chunk: int = _CHUNK,
) -> Discrepancy:
    """Squared MMD from one pass over the kernel matrices, `chunk` rows at a time.

    parts: column p is 1 for the images of part p, else 0; two or more of each set. A part costs one column of a
    matrix product, not a kernel matrix of its own.
    """
    # Column 0 is all images, the others are the parts.
    x = torch.cat([torch.ones_like(real[:, :1]), real_parts.to(real.device)], dim=1)
    y = torch.cat([torch.ones_like(generated[:, :1]), generated_parts.to(real.device)], dim=1)
    x_sums, x_diagonals = _sums(kernel, real, real, x, x, chunk)
    y_sums, y_diagonals = _sums(kernel, generated, generated, y, y, chunk)
    cross, _ = _sums(kernel, real, generated, x, y, chunk)
    n, m = x.sum(dim=0), y.sum(dim=0)
    cross = 2 * cross / (n * m)
    unbiased = (x_sums - x_diagonals) / (n * (n - 1)) + (y_sums - y_diagonals) / (m * (m - 1)) - cross
    biased = x_sums / n**2 + y_sums / m**2 - cross
    return Discrepancy(float(unbiased[0]), float(biased[0]), unbiased[1:].cpu())


def _sums(kernel: Kernel, x: Tensor, y: Tensor, x_parts: Tensor, y_parts: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """For each part, the sum of the kernel over its pairs, and for x = y that over its pairs of a row with itself."""
    total = torch.zeros_like(x_parts[0])
    diagonal = torch.zeros_like(total)
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        values = kernel(x[rows], y)
        total += (x_parts[rows] * (values @ y_parts)).sum(dim=0)
        if x is y:
            diagonal += values.diagonal(offset=start) @ x_parts[rows]
    return total, diagonal


def kid(real_features: Tensor, generated_features: Tensor, *, chunk: int = _CHUNK) -> float:
    """Squared MMD with the cubic kernel, unbiased, over all pairs of images (N, D), (M, D); may be below 0.

    It is what the mean over `random_subsets`, the usual protocol, estimates from less data. Raises DataError as
    `checked` does.
    """
    real, generated = checked(real_features, generated_features)
    none = (real.new_zeros(len(real), 0), generated.new_zeros(len(generated), 0))
    return discrepancy(cubic_kernel, real, generated, *none, chunk=chunk).unbiased


def random_subsets(
    n_real: int, n_generated: int, *, subsets: int = 100, size: int = 1000
) -> tuple[Float64[Tensor, "real subsets"], Float64[Tensor, "generated subsets"]]:
    """Parts for `discrepancy`: `subsets` random subsets of `size` images, drawn without replacement.

    The protocol and the subsets of torch-fidelity 0.4 (its defaults: 100 of 1000, seed 2020).
    Raises DataError where a set has fewer than `size` images.
    """
    fewest = min(n_real, n_generated)
    if not 2 <= size <= fewest:
        raise DataError(
            f"KID subsets of {size}: there are {n_real} real and {n_generated} generated images; "
            f"give a size between 2 and {fewest}"
        )
    draw = np.random.RandomState(2020)
    real, generated = np.zeros((n_real, subsets)), np.zeros((n_generated, subsets))
    for column in range(subsets):
        # torch-fidelity draws the subset of its input1 first, and input1 is the generated set.
        generated[draw.choice(n_generated, size, replace=False), column] = 1
        real[draw.choice(n_real, size, replace=False), column] = 1
    return torch.from_numpy(real), torch.from_numpy(generated)


def unit_rows(features: Tensor) -> Tensor:
    """Divide every row by its length, as CMMD does with CLIP's image embeddings. Raises DataError for a zero row."""
    lengths = features.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise DataError("features: a row is zero, so it has no direction and CMMD is not defined; extract them again")
    units: Tensor = features / lengths
    return units


def cmmd(real_features: Tensor, generated_features: Tensor, *, chunk: int = _CHUNK) -> float:
    """1000 x squared MMD with the Gaussian kernel (sigma 10) of unit-length features (N, D), (M, D); at least 0.

    The biased V-statistic, as the authors' code (google-research/cmmd). CMMD is defined on the embeddings of CLIP
    ViT-L/14 at 336 px; on other features the number has another scale. Raises DataError as `checked` does.
    """
    real, generated = checked(real_features, generated_features)
    none = (real.new_zeros(len(real), 0), generated.new_zeros(len(generated), 0))
    found = discrepancy(gaussian_kernel, unit_rows(real), unit_rows(generated), *none, chunk=chunk)
    return CMMD_SCALE * found.biased


def without_direction(zeros: Sequence[int]) -> tuple[str, ...]:
    """Say that CMMD is not defined where so many real and generated rows are zero; nothing where none is."""
    if not any(zeros):
        return ()
    return (f"CMMD is not defined: {zeros[0]} real and {zeros[1]} generated rows are zero and have no direction",)
