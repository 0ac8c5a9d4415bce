"""Standard errors and confidence intervals of the metrics, by resampling the units of both sets (`units`).

Estimated error over the true spread of fresh draws: with variants of sources in docs/results/metric-intervals.md; with
units of one image, on Lite0 features of CIFAR-10, 400 images a side (experiments/metric_intervals.py):
  FID, KID, CMMD: delete-a-group jackknife (Shao & Wu 1989), 20 random groups of either set: 0.9-1.2; that of FID less
    what halves show it to see twice (with few units a FID is mostly made of pairs).
  precision, recall, density, coverage: random quarters without replacement, whose spread estimates that of the whole
    (it is the delete-d jackknife with d = 3 N / 4), halves where there are few units: too few leave a ball metric
    another one. Larger parts err on the wide side (halves of 400 images: 1.0-1.3), the usual jackknife more so.
The bootstrap is not used: copies of an image lower the rank of a covariance (1.7-1.9 for FID) and put zeros among the
nearest neighbours; that of the per-image values leaves out what other balls would change (0.66-0.86).
An interval is value +- z x error. It speaks of other images of the same kind, from other sources where there are
sources, as many as here. It does not hold the bias of few images that FID has (`frechet.small_sample_warning`).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from .frechet import fid
from .inputs import checked
from .manifold import manifold_values
from .units import Units, deal, jackknife, part, single_units

PARTS = 20
FEWEST_OF_A_PART = 50  # units
BALLS = ("precision", "recall", "density", "coverage")
SPLITS = 4  # of the groups in two, for the error of `fid_infinity`
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


def fid_infinity_error(
    real_features: Tensor, generated_features: Tensor, seed: int, units: Units | None = None
) -> float | None:
    """Standard error of `frechet.fid_infinity` by the jackknife, in COMPONENTS dimensions.

    The halves are made of the jackknife's groups, the same SPLITS of them in each of its sets: the draw of the halves
    cancels. None where a side has fewer than 4 units, or a half fewer than 2 images.
    """
    real, generated = checked(real_features, generated_features)
    units = units or single_units(len(real), len(generated))
    if min(units.counts) < 4:
        return None
    real, generated = _leading(real, generated)
    real_group, generated_group, groups = deal(units, seed)
    stream = torch.Generator().manual_seed(seed)
    splits = []
    for _ in range(SPLITS):
        order = torch.randperm(groups, generator=stream)
        other = order if units.shared else torch.randperm(groups, generator=stream)
        for taken in (slice(None, groups // 2), slice(groups // 2, None)):
            splits.append((torch.isin(real_group, order[taken]), torch.isin(generated_group, other[taken])))
    for place, group in enumerate((real_group, generated_group)):
        if min(int(split[place].sum()) for split in splits) - int(group.bincount().max()) < 2:
            return None

    def distance(keep_real: Tensor, keep_generated: Tensor) -> float:
        return fid(real[keep_real.to(real.device)], generated[keep_generated.to(real.device)])

    whole = [distance(*split) for split in splits]

    def without(out_real: Tensor, out_generated: Tensor) -> float:
        halves = [
            distance(a & ~out_real, b & ~out_generated)
            if bool((a & out_real).any()) or bool((b & out_generated).any())
            else found
            for (a, b), found in zip(splits, whole, strict=True)
        ]
        return 2 * distance(~out_real, ~out_generated) - sum(halves) / len(halves)

    sets = jackknife(units, seed)
    values = [without(a == 0, b == 0) for a, b in zip(sets.real.T, sets.generated.T, strict=True)]
    return sets.error(torch.tensor(values, dtype=torch.float64))


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
    """Standard errors of precision, recall, density and coverage by PARTS random parts of both sets.

    Quarters, or halves where a quarter has few units (FEWEST_OF_A_PART) or k images of a side or fewer; all None where
    a half has, or where there are fewer than 3 units a side. Costs 1 to 5 times the metrics themselves.
    """
    units = units or single_units(len(real_features), len(generated_features))
    shares = [0.5] if min(units.counts) < 4 * FEWEST_OF_A_PART else [0.25, 0.5]
    for share in shares if units.enough else ():
        found = _part_errors(real_features, generated_features, k, seed, units, share)
        if found is not None:
            return {**found}
    return dict.fromkeys(BALLS)


def _part_errors(
    real_features: Tensor, generated_features: Tensor, k: int, seed: int, units: Units, share: float
) -> dict[str, float] | None:
    """Errors by random parts of this share without replacement; None where one has k images of a side or fewer."""
    stream = torch.Generator().manual_seed(seed)
    drawn = [part(units, stream, share) for _ in range(PARTS)]
    if min(int(side.sum()) for both in drawn for side in both) <= k:
        return None
    values = [
        manifold_values(real_features[a.to(real_features.device)], generated_features[b.to(real_features.device)], k=k)
        for a, b in drawn
    ]
    # Their spread is what the units that are left out would change: that of all units is less by share / (1 - share).
    taken = sum(int(share * len(members)) for members in units.strata()) / sum(map(len, units.strata()))
    scale = (taken / (1 - taken)) ** 0.5
    means = {name: torch.stack([getattr(value, name).mean() for value in values]) for name in BALLS}
    return {name: scale * float(found.std()) for name, found in means.items()}
