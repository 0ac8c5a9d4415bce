"""Standard errors and confidence intervals of the metrics, by resampling the images of both sets.

Estimated error over the true spread of fresh draws, on Lite0 features of CIFAR-10, 400 images a side
(experiments/metric_intervals.py):
  FID, KID, CMMD: delete-a-group jackknife (Shao & Wu 1989), 20 random groups of either set: 0.9-1.2.
  precision, recall, density, coverage: random halves without replacement, whose spread estimates that of the whole
    (it is the delete-d jackknife with d = N / 2): 1.0-1.3.
The bootstrap is not used: copies of an image lower the rank of a covariance (1.7-1.9 for FID) and put zeros among the
nearest neighbours; that of the per-image values leaves out what other balls would change (0.66-0.86).
An interval is value +- z x error. It speaks of other images from the same sources, as many as here. It does not hold
the bias of few images that FID has (`frechet.small_sample_warning`).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float64
from torch import Tensor

from .frechet import fid
from .inputs import checked
from .manifold import manifold_values

GROUPS = 20
HALVES = 20
# A FID's error is taken in this many leading principal components of both sets together: the others add bias to a
# FID but little spread, and most of the cost. The figure for FID above is with this, of 1,280 components.
COMPONENTS = 256


@dataclass(frozen=True)
class Estimate:
    """A metric with its confidence interval and the standard error behind it; all None where there is none.

    The interval is cut to what the metric can be, so the error cannot be read back from it.
    """

    value: float
    low: float | None
    high: float | None
    error: float | None = None


def estimate(
    value: float, error: float | None, confidence: float, *, least: float = -torch.inf, most: float = torch.inf
) -> Estimate:
    """value +- z x error at `confidence` in (0, 1), cut to what the metric can be, [least, most]."""
    if error is None:
        return Estimate(value, None, None)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return Estimate(value, max(value - reach, least), min(value + reach, most), error)


def jackknife_parts(
    n_real: int, n_generated: int, seed: int
) -> tuple[Float64[Tensor, "real parts"], Float64[Tensor, "generated parts"]]:
    """The jackknife's sets as columns of 0 and 1: each real group left out, then each generated group.

    GROUPS columns for either side, fewer for fewer images; needs 3 images a side.
    """
    stream = torch.Generator().manual_seed(seed)
    kept = [_kept(n, stream) for n in (n_real, n_generated)]
    whole = [torch.ones(n_real, kept[1].shape[1]).double(), torch.ones(n_generated, kept[0].shape[1]).double()]
    return torch.cat([kept[0], whole[0]], dim=1), torch.cat([whole[1], kept[1]], dim=1)


def _kept(n: int, stream: torch.Generator) -> Tensor:
    groups = min(GROUPS, n)
    group = torch.randperm(n, generator=stream) % groups
    return (group[:, None] != torch.arange(groups)).double()


def jackknife_error(values: Float64[Tensor, " parts"], n_real: int) -> float:
    """Standard error from the metric's values on the sets of `jackknife_parts`."""
    variance = torch.zeros((), dtype=torch.float64)
    for side in values.tensor_split([min(GROUPS, n_real)]):
        variance += (len(side) - 1) / len(side) * (side - side.mean()).square().sum()
    return float(variance.sqrt())


def fid_error(real_features: Tensor, generated_features: Tensor, seed: int) -> float | None:
    """Standard error of `frechet.fid` by the jackknife, in COMPONENTS dimensions; None below 3 images a side."""
    real, generated = checked(real_features, generated_features)
    if min(len(real), len(generated)) < 3:
        return None
    if real.shape[1] > COMPONENTS:
        both = torch.cat([real, generated])
        axes = torch.linalg.eigh((both - both.mean(dim=0)).T @ (both - both.mean(dim=0))).eigenvectors[:, -COMPONENTS:]
        real, generated = real @ axes, generated @ axes
    real_parts, generated_parts = jackknife_parts(len(real), len(generated), seed)
    values = [
        fid(real[keep_real.bool().to(real.device)], generated[keep_generated.bool().to(real.device)])
        for keep_real, keep_generated in zip(real_parts.T, generated_parts.T, strict=True)
    ]
    return jackknife_error(torch.tensor(values, dtype=torch.float64), len(real))


def manifold_errors(real_features: Tensor, generated_features: Tensor, *, k: int, seed: int) -> dict[str, float | None]:
    """Standard errors of precision, recall, density and coverage by HALVES random halves of both sets.

    All None where half a set has k images or fewer. Costs HALVES / 4 times the metrics themselves.
    """
    names = ("precision", "recall", "density", "coverage")
    n, m = len(real_features), len(generated_features)
    if min(n, m) // 2 <= k:
        return dict.fromkeys(names)
    stream = torch.Generator().manual_seed(seed)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(HALVES):
        real = torch.randperm(n, generator=stream)[: n // 2].to(real_features.device)
        generated = torch.randperm(m, generator=stream)[: m // 2].to(generated_features.device)
        values = manifold_values(real_features[real], generated_features[generated], k=k)
        for name in names:
            found[name].append(float(getattr(values, name).mean()))
    return {name: float(torch.tensor(values, dtype=torch.float64).std()) for name, values in found.items()}
