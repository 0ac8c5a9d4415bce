"""How often does a set of 47 claims make a false statement, and how many true ones does it find?

Command:  python benchmarks/claim_errors.py > docs/results/claim-errors.md
Method:   47 claims with as many differences as those of docs/results/first-mini. Each is drawn with its two estimated
          variances as in interval_coverage.py, over n seeds and 1,000 test images; a share of the variance of all is in
          common. Judged by `diffusion_inversion.sweep.claims`: alone, with all claims (Holm), by false discovery rate.
Cost:     2 minutes on one core.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from diffusion_inversion.sweep.claims import benjamini_hochberg, combined, holm, tails

Array = NDArray[np.float64]
PAIRS = (1,) * 39 + (2, 3, 3, 3, 3, 5, 8, 8)  # differences of each claim
SEEDS = (3, 5, 10)
RATIOS = (1 / 16, 1, 16)  # variance of the seeds over that of the test images
IMAGES = 1000
DRAWS = 20_000
EFFECTS = (0.0, 5.0, 15.0)  # of every fourth claim, in standard errors of a difference
COMMON = (0.0, 0.5, 1.0)  # share of the variance that all differences have in common
SAYS = """
Alone, 47 claims state something false more often than not, unless all are of the same difference. With all claims the
chance stays below 5 %, also where the differences have much in common, as those of pages that share an arm do. The
price is power: with three seeds a difference has to be many times its error (Student's t with two degrees of freedom),
with five far less. Benjamini-Hochberg keeps the false statements among those made below 5 % on average, which are more
the more is true, and finds more."""


def draw(seeds: int, ratio: float, common: float, effect: float, stream: np.random.Generator) -> tuple[Array, Array]:
    """One-sided p-values (draws, claims, 2) of "holds" and "does not hold", and which claims are true (claims,)."""
    count = sum(PAIRS)
    true = np.arange(len(PAIRS)) % 4 == 0
    share = ratio / (1 + ratio)
    noise = np.sqrt(common) * stream.standard_normal((DRAWS, 1))
    noise = noise + np.sqrt(1 - common) * stream.standard_normal((DRAWS, count))
    found = noise + effect * np.repeat(true, PAIRS)
    units = share * stream.chisquare(seeds - 1, found.shape) / (seeds - 1)
    images = (1 - share) * stream.chisquare(IMAGES - 1, found.shape) / (IMAGES - 1)
    two_sided = tails(found, units, images, seeds, IMAGES)
    ends = np.cumsum(PAIRS)[:-1]
    each = zip(np.split(found, ends, axis=1), np.split(two_sided, ends, axis=1), strict=True)
    return np.stack([np.stack(combined(value, p), axis=-1) for value, p in each], axis=1), true & (effect > 0)


def rates(p: Array, true: Array) -> list[tuple[float, float, float]]:
    """For each way to judge, in %: chance of any false statement, false ones among those made, true claims found."""
    two_sided = np.minimum(1.0, 2 * p.min(axis=-1))
    nearest = p == p.min(axis=-1, keepdims=True)
    ways = (
        p <= 0.025,
        holm(p.reshape(len(p), -1), 0.05).reshape(p.shape),
        benjamini_hochberg(two_sided, 0.05)[..., None] & nearest,
    )
    rows = []
    for said in ways:
        # Where nothing is true, each difference is 0: "holds" is false and so is "does not hold".
        wrong = said.copy()
        wrong[:, true, 0] = False
        made = said.sum(axis=(1, 2))
        among = float((wrong.sum(axis=(1, 2)) / np.maximum(made, 1)).mean())
        power = float(said[:, true, 0].mean()) if true.any() else float("nan")
        rows.append((100 * float(wrong.any(axis=(1, 2)).mean()), 100 * among, 100 * power))
    return rows


def main() -> None:
    print("# False statements among many claims")
    print()
    print("`python benchmarks/claim_errors.py > docs/results/claim-errors.md`")
    print()
    print(
        f"{len(PAIRS)} claims with {sum(PAIRS)} differences, {DRAWS:,} draws of each row. Each cell: chance of any "
        "false statement / false ones among those\nmade, on average / true claims that are found; all in %. Effect: "
        "that of every fourth claim, in standard errors. In common:\nshare of the variance that all have in "
        "common. Ratio: variance of the seeds over that of the test images."
    )
    print()
    print("| seeds | ratio | in common | effect | alone | with all claims | false discovery rate |")
    print("|---" * 7 + "|")
    for seeds in SEEDS:
        for ratio in RATIOS:
            name = f"{ratio:g}" if ratio >= 1 else f"1/{round(1 / ratio)}"
            for common in COMMON:
                for effect in EFFECTS if common == COMMON[0] else EFFECTS[:1]:
                    stream = np.random.default_rng([seeds, round(16 * ratio), round(10 * common), round(effect)])
                    found = rates(*draw(seeds, ratio, common, effect, stream))
                    cells = [" / ".join("-" if value != value else f"{value:.1f}" for value in way) for way in found]
                    print(f"| {seeds} | {name} | {common:g} | {effect:g} | " + " | ".join(cells) + " |", flush=True)
    print(SAYS)


if __name__ == "__main__":
    sys.exit(main())
