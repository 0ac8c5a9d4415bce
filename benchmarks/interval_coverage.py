"""Do the verdict's intervals hold the truth as often as they say, however the two errors share the variance?

Command:  python benchmarks/interval_coverage.py > docs/results/interval-coverage.md
Method:   A mean difference D over n units (seeds or replicates) and 1,000 test images has variance S + T = 1, S of the
          units and T of the images. Drawn: D normal around the true difference, and the two estimates of S and T, which
          are chi-square with n - 1 and 999 degrees of freedom. Two arms, independent, at the verdict's 97.5 %.
          The bootstrap draws units and images anew, 999 times for each of fewer draws.
Cost:     15 seconds on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from diffusion_inversion.train.evaluation import half_width

Array = NDArray[np.float64]
RATIOS = (1 / 16, 1 / 4, 1, 4, 16)  # S / T
UNITS = (3, 5, 10)
IMAGES = 1000
LEVEL = 0.975  # 95 % for two arms together
GAIN = 4.0  # true difference in the power column, in its standard error
DRAWS, BOOTSTRAP_DRAWS, RESAMPLES = 200_000, 4_000, 999
SAYS = """
Welch-Satterthwaite's degrees of freedom grow where few units happen to agree: coverage falls to 94.8 and "helps"
without reason doubles. The bootstrap over so few units is worse. Both others cover at least what they say; n - 1
degrees of freedom for the whole variance throw away what the test images measured well (3 units, ratio 1/16: 3 %
power where 99 % can be had), so each error has its own quantile: n - 1 degrees of freedom for the units, n_test - 1
for the images (`evaluation.half_width`)."""
NAMES = ("Welch-Satterthwaite (before)", "n - 1 for the sum", "own quantile for each (used)", "bootstrap")


def welch(units: Array, images: Array, n: int) -> Array:
    """Half the interval that was used before: one t quantile, degrees of freedom by Welch-Satterthwaite."""
    total = units + images
    freedom = total**2 / (units**2 / (n - 1) + images**2 / (IMAGES - 1))
    return np.asarray(t.ppf(0.5 + LEVEL / 2, freedom) * np.sqrt(total))


def pooled(units: Array, images: Array, n: int) -> Array:
    """Half the interval with the quantile of the units for the whole variance."""
    return np.asarray(t.ppf(0.5 + LEVEL / 2, n - 1) * np.sqrt(units + images))


def used(units: Array, images: Array, n: int) -> Array:
    """Half the interval of `diffusion_inversion.train.evaluation`."""
    return np.asarray(half_width(units, images, n, IMAGES, LEVEL))


def rates(low: Array, high: Array) -> tuple[float, float, float]:
    """Coverage, "helps" where nothing helps and where both arms gain, from errors (draws, 2 arms) of bounds about 0."""
    covered = float(((low < 0) & (high > 0)).mean())
    return covered, float((low > 0).any(1).mean()), float((low + GAIN > 0).any(1).mean())


def closed(half: Callable[[Array, Array, int], Array], n: int, ratio: float) -> tuple[float, float, float]:
    """Rates of an interval that is a function of the two estimated variances."""
    stream = np.random.default_rng([n, round(16 * ratio)])
    share = ratio / (1 + ratio)
    found = stream.standard_normal((DRAWS, 2))
    units = share * stream.chisquare(n - 1, (DRAWS, 2)) / (n - 1)
    images = (1 - share) * stream.chisquare(IMAGES - 1, (DRAWS, 2)) / (IMAGES - 1)
    reach = half(units, images, n)
    return rates(found - reach, found + reach)


def bootstrap(n: int, ratio: float) -> tuple[float, float, float]:
    """Rates of the percentile bootstrap over units x images (a mean over 1,000 images is drawn as a normal)."""
    stream = np.random.default_rng([n, round(16 * ratio), 1])
    share = ratio / (1 + ratio)
    units = stream.standard_normal((BOOTSTRAP_DRAWS, 2, n)) * np.sqrt(share * n)
    images = stream.standard_normal((BOOTSTRAP_DRAWS, 2)) * np.sqrt(1 - share)
    bounds = []
    for start in range(0, BOOTSTRAP_DRAWS, 500):
        part = units[start : start + 500]
        counts = stream.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n  # how often each unit is drawn
        again = images[start : start + 500, :, None] + np.sqrt(1 - share) * stream.standard_normal((500, 2, RESAMPLES))
        bounds.append(np.quantile(part @ counts.T + again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=2))
    low, high = np.concatenate(bounds, axis=1)
    return rates(low, high)


def table() -> list[list[Any]]:
    """One row for each n and ratio: coverage, null rate and power of every interval, in %."""
    rows = []
    for n in UNITS:
        for ratio in RATIOS:
            found = [closed(half, n, ratio) for half in (welch, pooled, used)] + [bootstrap(n, ratio)]
            name = f"{ratio:g}" if ratio >= 1 else f"1/{round(1 / ratio)}"
            rows.append([n, name, *(" / ".join(f"{100 * value:.1f}" for value in rate) for rate in found)])
    return rows


def main() -> None:
    print("# How often the verdict's intervals hold the truth")
    print()
    print("`python benchmarks/interval_coverage.py > docs/results/interval-coverage.md`")
    print()
    print(
        f'Each cell: coverage of a {100 * LEVEL:g} % interval / "helps" where nothing helps (two arms, at most 2.5 '
        f'asked) /\npower, "helps" where both arms gain {GAIN:g} standard errors; all in %. Ratio: variance from the '
        f"units (seeds or replicates) over\nvariance from the choice of test images. {DRAWS:,} draws (bootstrap: "
        f"{BOOTSTRAP_DRAWS:,}), two arms each, {IMAGES:,} test images."
    )
    print()
    print("| n | ratio | " + " | ".join(NAMES) + " |")
    print("|---" * (2 + len(NAMES)) + "|")
    for row in table():
        print("| " + " | ".join(map(str, row)) + " |")
    print(SAYS)


if __name__ == "__main__":
    sys.exit(main())
