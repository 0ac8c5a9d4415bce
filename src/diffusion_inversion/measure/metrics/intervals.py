"""Standard errors and confidence intervals of the metrics, by resampling the units of both sets (`units`).

Estimated error over the true spread of fresh draws: docs/results/metric-intervals.md, in settings that were held out.
  FID, KID, CMMD: delete-a-group jackknife (Shao & Wu 1989), 20 random groups of either set; that of FID less what
    halves show it to see twice (with few units a FID is mostly made of pairs).
  fid_infinity: the error of FID. Both are sums over units and over pairs of them (Hoeffding 1948) with the same terms,
    but for those of a unit with itself, which the line through the halves takes away and which vary by a lower order.
  precision, recall, density, coverage: of two parts, see `manifold_errors`. What was used before, the spread of random
    halves, is right for a mean; but a recall to which every source adds a share of its own is half as large in halves,
    and so is its spread. The jackknife errs on the wide side alone (Efron & Stein 1981).
The bootstrap is not used: copies of an image lower the rank of a covariance (1.7-1.9 for FID) and put zeros among the
nearest neighbours; that of the per-image values leaves out what other balls would change (0.66-0.86).
An interval is value +- t x error with the degrees of freedom of the groups, one less than there are. It speaks of other
images of the same kind, from other sources where there are sources, as many as here. It does not hold the bias of few
images that FID has (`frechet.small_sample_warning`).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from .frechet import fid
from .inputs import checked
from .manifold import left_out_values, manifold_values
from .units import Units, deal, jackknife, part, single_units

PARTS = 20
FEW_UNITS = 100
BALLS = ("precision", "recall", "density", "coverage")
# A FID's error is taken in this many leading principal components of both sets together: the others add bias to a
# FID but little spread, and most of the cost. The figure for FID above is with this, of 1,280 components.
COMPONENTS = 256


@dataclass(frozen=True)
class Estimate:
    """A metric with its confidence interval and the standard error behind it; all None where there is none.

    The interval is cut to what the metric can be, so the error cannot be read back from it. freedom: degrees of freedom
    of the error; None where it is taken to be known.
    """

    value: float
    low: float | None
    high: float | None
    error: float | None = None
    freedom: int | None = None


def estimate(
    value: float,
    error: float | None,
    confidence: float,
    *,
    least: float = -torch.inf,
    most: float = torch.inf,
    freedom: int | None = None,
) -> Estimate:
    """value +- t x error at `confidence` in (0, 1), cut to what the metric can be, [least, most]."""
    if error is None:
        return Estimate(value, None, None)
    reach = student((1 + confidence) / 2, freedom) * error
    return Estimate(value, max(value - reach, least), min(value + reach, most), error, freedom)


def wide_intervals(units: Units, dim: int) -> list[str]:
    """Say which intervals err on the wide side where there are few units, for themselves or for `dim` features.

    How much by: docs/results/metric-intervals.md.
    """
    found: list[str] = []
    if not units.enough:
        return found
    if min(units.counts) < FEW_UNITS:
        found.append(
            f"of {units.counts[0]:,} real and {units.counts[1]:,} generated units, fewer than {FEW_UNITS}: intervals "
            "of precision, recall and coverage are up to 1.6 times as wide as they should be, near 0 and 1 more"
        )
    if units.shared and min(units.counts) < 2 * dim:
        found.append(
            f"the real images are the sources of the generated ones, {min(units.counts):,} units in {dim:,} dimensions "
            f"(fewer than {2 * dim:,}): the interval of FID can be 1.5 times as wide as it should be, that of FID "
            "infinity near 0 four times"
        )
    return found


def student(place: float, freedom: int | None) -> float:
    """Quantile of Student's t, the normal's without `freedom` (Abramowitz & Stegun 26.7.5).

    At 0.975: 1 % too small for 2 degrees of freedom, the largest error for 2 and more, 0.01 % from 10 on. Farther out
    more: at 0.995 4 % for 2.
    """
    z = NormalDist().inv_cdf(place)
    if freedom is None:
        return z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))


def fid_error(real_features: Tensor, generated_features: Tensor, seed: int, units: Units | None = None) -> float | None:
    """Standard error of `frechet.fid` by the jackknife, in COMPONENTS dimensions; None below 3 units a side."""
    real, generated = checked(real_features, generated_features)
    units = units or single_units(len(real), len(generated))
    if not units.enough:
        return None
    real, generated = _leading(real, generated)
    sets = jackknife(units, seed)

    def distance(keep_real: Tensor, keep_generated: Tensor) -> float:
        return fid(real[keep_real.to(real.device)], generated[keep_generated.to(real.device)])

    groups = [distance(a == 1, b == 1) for a, b in zip(sets.real.T, sets.generated.T, strict=True)]
    variance = sets.error(torch.tensor(groups, dtype=torch.float64)) ** 2
    stream = torch.Generator().manual_seed(seed)
    drawn = [part(units, stream) for _ in range(PARTS)]
    if min(int(side.sum()) for both in drawn for side in both) >= 2:
        # Of the variance that two units have together the jackknife sees twice as much as there is, halves three times.
        halves = float(torch.tensor([distance(*both) for both in drawn], dtype=torch.float64).var())
        variance = max(2 * variance - halves, variance / 2)
    return float(variance**0.5)


def _leading(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in their COMPONENTS leading principal components."""
    if real.shape[1] <= COMPONENTS:
        return real, generated
    both = torch.cat([real, generated])
    axes = torch.linalg.eigh((both - both.mean(dim=0)).T @ (both - both.mean(dim=0))).eigenvectors[:, -COMPONENTS:]
    return real @ axes, generated @ axes


def manifold_errors(
    real_features: Tensor, generated_features: Tensor, *, k: int, seed: int, units: Units | None = None
) -> dict[str, float | None]:
    """Standard errors of precision, recall, density and coverage; all None where a side has too few units or images.

    Too few: under 3 units, 2 k images, or without one group of units k images.

    Each is a mean of values of one side's images (`manifold_values`). Its variance has two parts: that of the values
    among the units of this side, and that by which units of the other side are there, from the jackknife (of coverage
    both, since real images make its balls too). What two units have together the jackknife sees twice, once from
    either: what one does to the values of the other is known for each image, and taken off once. A share is never held
    for surer than one unit of this side would change it. Costs about as much as five times the metrics.
    """
    units = units or single_units(len(real_features), len(generated_features))
    if not units.enough or min(len(real_features), len(generated_features)) <= 2 * k:
        return dict.fromkeys(BALLS)
    real_group, generated_group, groups = deal(units, seed)
    if min(len(group) - int(group.bincount().max()) for group in (real_group, generated_group)) <= k:
        return dict.fromkeys(BALLS)
    whole = manifold_values(real_features, generated_features, k=k)
    without = left_out_values(real_features, generated_features, real_group, generated_group, groups, k=k)
    sides = {"real": (units.real, real_group), "generated": (units.generated, generated_group)}
    errors: dict[str, float | None] = {}
    for name in BALLS:
        unit, group = sides["real" if name in ("recall", "coverage") else "generated"]
        values, others = getattr(whole, name).cpu(), getattr(without, name).cpu()
        if units.shared:
            joint = without.coverage_both.cpu() if name == "coverage" else others
            variance = _jackknife(values, joint, unit, group)
        elif name == "coverage":
            variance = _jackknife(values, without.coverage_real.cpu(), unit, group)
            variance += _jackknife(values, others, unit, None)
        else:
            variance = _variance_of_mean(values, unit) + _jackknife(values, others, unit, None)
        least = 0.0 if name == "density" else 1 / len(unit.unique())
        errors[name] = max(variance**0.5, least)
    return errors


def _jackknife(values: Tensor, without: Tensor, unit: Tensor, group: Tensor | None) -> float:
    """Variance of the mean of values (N,) by what they are without each group (N, groups), pairs counted once.

    group: that of each value, where with a group its own values are left out; None where they are of the other side.
    """
    groups = without.shape[1]
    scale = (groups - 1) / groups
    means, pairs = [], 0.0
    for out in range(groups):
        left = torch.ones_like(unit, dtype=torch.bool) if group is None else group != out
        means.append(float(without[left, out].mean()))
        pairs += scale**2 * _variance_of_mean((without[:, out] - values)[left], unit[left])
    found = torch.tensor(means, dtype=torch.float64)
    variance = scale * float((found - found.mean()).square().sum())
    return max(variance - pairs, 0.0 if group is None else variance / 2)


def _variance_of_mean(values: Tensor, unit: Tensor) -> float:
    """Variance of a mean over images, of which those of one unit vary together."""
    number, place = unit.unique(return_inverse=True)
    sums = torch.zeros(len(number), dtype=torch.float64).index_add_(0, place, values - values.mean())
    return float(sums.square().sum()) / len(values) ** 2 * len(number) / (len(number) - 1)
