"""How errors fall with the number of images, and what more of them would bring: a piecewise power law, with intervals.

Jain et al. (2023, arXiv 2303.01598) find that the logarithm of the error over that of the number of images bends where
images are few and is straight beyond. With x = log n and x_N = log N, where both meet with one slope,

    log e(n) = a + b (x - x_N) + c min(x - x_N, 0)^2,   b <= 0,

so e(n) is proportional to n^b beyond N. Differs from the paper: N is that of the observed sizes which fits best, not
what a regressor says that was learned from other data sets; and the interval is a bootstrap over images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
PIECEWISE = 5  # sizes from which on there is a bend; with fewer the law is straight
DRAWS = 400  # of the bootstrap
_LEVEL = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law: e(n) = exp(level) (n / bend)^slope beyond the bend."""

    bend: float  # N
    level: float  # a
    slope: float  # b, at most 0
    curvature: float  # c; 0: a plain power law

    def error(self, count: float) -> float:
        """e(n), at most 1."""
        x = math.log(count / self.bend)
        return math.exp(min(self.level + self.slope * x + self.curvature * min(x, 0.0) ** 2, 0.0))


def fit(counts: Sequence[float], errors: Sequence[float]) -> PowerLaw:
    """The law that is nearest to errors (K,) in (0, 1] at counts (K,) > 0 of images: least squares of logarithms.

    With fewer than five counts, and where they are all one, it has no bend; with one count it is flat.
    """
    from scipy.optimize import lsq_linear

    x, y = np.log(np.asarray(counts, np.float64)), np.log(np.asarray(errors, np.float64))
    sizes = np.unique(x)
    # Two sizes lie below the bend, or nothing says how it bends, and one above, or nothing says how it is straight.
    bends = sizes[2:-1] if len(sizes) >= PIECEWISE else sizes[:1]
    best: tuple[float, PowerLaw] | None = None
    for bend in bends:
        away = x - bend
        columns = [np.ones_like(x), away, np.minimum(away, 0.0) ** 2]
        free = 3 if len(sizes) >= PIECEWISE else 2
        bounds = ([-np.inf, -np.inf, -np.inf][:free], [np.inf, 0.0, np.inf][:free])
        if len(sizes) == 1:
            found = np.array([y.mean(), 0.0])
        else:
            found = lsq_linear(np.stack(columns[:free], axis=1), y, bounds, method="bvls").x
        level, slope = found[:2].tolist()
        law = PowerLaw(math.exp(bend), level, slope, float(found[2]) if len(found) > 2 else 0.0)
        rest = float(((np.stack(columns[: len(found)], axis=1) @ found - y) ** 2).sum())
        if best is None or rest < best[0]:
            best = rest, law
    assert best is not None
    return best[1]


@dataclass(frozen=True)
class Gain:
    """What more images would bring: a fall of the error, in [-1, 1], with a 95 % interval."""

    gain: float
    low: float
    high: float


def expected_gain(counts: Sequence[float], correct: NDArray[np.bool_], factor: float, seed: int = 0) -> Gain | None:
    """What `factor` times as many images as the most of `counts` (K,) would bring, by the law of the errors.

    None where all counts are one, which say nothing of a slope.

    correct: (K, n) which of n images were recognised, of each count. The interval is of the draw of these images: they
    are resampled, alike for all counts. It does not hold what the law itself is wrong by.
    """
    most = max(counts)
    if min(counts) == most:
        return None

    def gain(part: NDArray[np.bool_]) -> float:
        wrong = (~part).sum(1)
        # As if half an image more were wrong, of one more: an error of 0 has no logarithm.
        law = fit(counts, ((wrong + 0.5) / (part.shape[1] + 1)).tolist())
        return law.error(most) - law.error(factor * most)

    stream = np.random.default_rng(seed)
    images = correct.shape[1]
    drawn = [gain(correct[:, stream.integers(images, size=images)]) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Gain(gain(correct), float(low), float(high))


def sentence(real: Gain | None, synthetic: Gain | None, factor: float) -> str:
    """What more real images, or more synthetic ones, would bring, in points; None: not known, or not asked."""

    def shown(found: Gain) -> str:
        return f"{100 * found.gain:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"

    parts = []
    if real is not None:
        parts.append(f"{factor:g} times as many real images would bring {shown(real)}")
    if synthetic is not None:
        images = "synthetic ones" if parts else "synthetic images would bring"
        parts.append(f"{factor:g} times as many {images} {shown(synthetic)}")
    if parts:
        parts.append("by a power law fitted to what classifiers recognise of held-out training images")
    unknown = "what more real images would bring is not known: too few to leave some out"
    return "; ".join([", ".join(parts)] * bool(parts) + [unknown] * (real is None))
