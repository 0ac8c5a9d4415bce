"""Are the errors of `dinv metrics` right where the generated images are variants of a few sources?

Command:  python benchmarks/metric_errors.py > docs/results/metric-intervals.md
Method:   Features: a source is a normal draw (or one of Student's t), a generated image its source, shrunk and moved,
          plus noise of its own. Real images are other draws of the same kind, or the sources. Everything is drawn anew,
          again and again: the standard deviation of a metric over the draws is the truth. Reported: the mean of
          the errors that `measure.metrics.intervals` estimates over it, and the share of 95 % intervals that hold the
          mean over the draws. "as images": every variant counts as an independent image, as before.
          The estimators were chosen on DEVELOPMENT; HELD_OUT, of other dimensions, clusters, shrinkage and tails, was
          run once, when they were done.
Cost:     8 minutes on one core; `held-out` or `development` as argument prints one of the two tables.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_inversion.measure.metrics.frechet import fid, fid_infinity
from diffusion_inversion.measure.metrics.intervals import fid_error, manifold_errors, student
from diffusion_inversion.measure.metrics.kernel import (
    CMMD_SCALE,
    cubic_kernel,
    discrepancy,
    gaussian_kernel,
    unit_rows,
)
from diffusion_inversion.measure.metrics.manifold import manifold_values
from diffusion_inversion.measure.metrics.units import Units, jackknife, single_units

K, DRAWS, INFINITE, ERRORS, ALONE = 5, 300, 120, 40, 10
BALLS = ("precision", "recall", "density", "coverage")
NAMES = ("fid", "fid_infinity", "kid", "cmmd", *BALLS)
HEAD = f"""# Are the errors of `dinv metrics` right?

`python benchmarks/metric_errors.py > docs/results/metric-intervals.md`

Estimated over true error / share in % of 95 % intervals that hold: {DRAWS} draws ({INFINITE} for
fid_infinity), {ERRORS} errors (as images {ALONE}), k = {K}.
40 x 10: sources and variants of each; against other real images, or against the sources themselves.
Constant: a metric that varied by less than 0.002."""
SAYS = """
A variant says less than an image of its own: errors that count it as one are too small; where the real images are the
sources they are too wide, for what both sides have in common is counted twice. By source:
- FID, KID and CMMD: within 0.85 to 1.2 of the truth where features have ordinary tails, density 0.92 to 1.32.
  `fid_infinity` has the error of FID and varies a little more: 0.82 to 1.08.
- Precision and recall: right, or on the wide side where a side has few units (up to 1.6): there pairs of sources count
  for much, of which not all can be told apart, and an error is not below that of one unit. So is coverage near 1. They
  are left wide knowingly, and `dinv metrics` says so below 100 units. Coverage among few sources far away: 0.83.
- Heavy tails: with 8 degrees of freedom KID has 0.81; with 5 the spread of FID and KID comes from the few draws that
  hold an image far out. No resampling of a draw without one can see it: their errors are far too small beside the
  standard deviation, which for KID's cubic kernel is not even finite. CMMD and the neighbour metrics do not mind.
- Against the sources, with fewer of them than twice the dimensions (60 x 5, 48 dim.): FID and `fid_infinity`, which is
  cut at 0 there, are too wide; `dinv metrics` says so."""


@dataclass(frozen=True)
class Case:
    """sources x variants generated images against `others` other real images, or against the sources where 0."""

    sources: int
    variants: int
    others: int
    moved: float = 0.2  # how far the generated images lie from the real ones
    dim: int = 12
    noise: float = 0.5
    shrink: float = 0.85
    tails: int = 0  # degrees of freedom of a multivariate t; 0: normal

    @property
    def says(self) -> str:
        real = f"{self.others} others" if self.others else "the sources"
        tails = f", tails of t({self.tails})" if self.tails else ""
        return (
            f"{self.sources} x {self.variants} against {real}; {self.dim} dim., moved {self.moved:g}, noise "
            f"{self.noise:g}, shrunk to {self.shrink:g}{tails}"
        )


DEVELOPMENT = (
    Case(40, 10, 400), Case(40, 10, 400, 0.8), Case(40, 10, 0), Case(100, 4, 400), Case(100, 10, 0), Case(400, 1, 400),
    Case(40, 10, 0, 0.5, noise=1.0, shrink=0.5), Case(60, 3, 0, 0.3, noise=1.0, shrink=0.3),
    Case(60, 5, 0, dim=48),
)  # fmt: skip
HELD_OUT = (
    Case(25, 20, 300, dim=6),
    Case(60, 5, 200, 0.5, dim=24, noise=0.3, shrink=0.95),
    Case(150, 2, 600, 1.0, dim=8, noise=0.8, shrink=0.6),
    Case(80, 8, 0, 0.5, dim=8, noise=1.0, shrink=0.6),
    Case(200, 3, 0, 0.3, dim=24, noise=0.5, shrink=0.9),
    Case(300, 1, 500, 0.3, dim=20, tails=5),
    Case(50, 10, 500, 0.3, tails=8),
    Case(30, 10, 400, 1.0, dim=16, noise=0.4, shrink=0.9),
    Case(60, 6, 120, dim=40, noise=0.6, shrink=0.8),
    Case(500, 1, 150, 0.6, dim=10, shrink=0.7),
)


def draw(case: Case, seed: int) -> tuple[Tensor, Tensor, Units]:
    """Real and generated features of a fresh draw, and what they are units of."""
    stream = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    def image(count: int) -> Tensor:
        drawn = normal(count, case.dim)
        if not case.tails:
            return drawn
        return drawn / (normal(count, case.tails).square().mean(dim=1, keepdim=True)).sqrt()

    sources = image(case.sources)
    noise = case.noise * normal(case.sources, case.variants, case.dim)
    generated = (case.shrink * sources[:, None] + case.moved + noise).flatten(0, 1)
    unit = torch.arange(case.sources).repeat_interleave(case.variants)
    if case.others:
        return image(case.others), generated, Units(torch.arange(case.others) + case.sources, unit)
    return sources, generated, Units(torch.arange(case.sources), unit)


def values(real: Tensor, generated: Tensor, units: Units, infinite: bool = True) -> list[float]:
    balls = manifold_values(real, generated, k=K)
    none = (real.new_zeros(len(real), 0), generated.new_zeros(len(generated), 0))
    found = [
        fid(real, generated),
        fid_infinity(real, generated, units=units) if infinite else float("nan"),
        discrepancy(cubic_kernel, real, generated, *none).unbiased,
        CMMD_SCALE * discrepancy(gaussian_kernel, unit_rows(real), unit_rows(generated), *none).biased,
    ]
    return found + [float(getattr(balls, name).mean()) for name in BALLS]


def errors(real: Tensor, generated: Tensor, units: Units) -> list[float]:
    sets = jackknife(units, seed=0)
    cubic = discrepancy(cubic_kernel, real, generated, sets.real, sets.generated).parts
    gaussian = discrepancy(gaussian_kernel, unit_rows(real), unit_rows(generated), sets.real, sets.generated).parts
    balls = manifold_errors(real, generated, k=K, seed=0, units=units)
    of_fid = fid_error(real, generated, 0, units)
    found = [
        of_fid,
        of_fid,
        sets.error(cubic),
        CMMD_SCALE * sets.error(gaussian),
        *(balls[name] for name in BALLS),
    ]
    return [error or 0.0 for error in found]


def row(case: Case) -> tuple[list[str], list[str]]:
    """Cells of a case for each metric: estimated over true error as images; by unit, with what its intervals hold."""
    drawn = [draw(case, seed) for seed in range(DRAWS)]
    found = torch.tensor([values(*one, infinite=place < INFINITE) for place, one in enumerate(drawn)])
    columns = [column[~column.isnan()] for column in found.T]
    truth, mean = (torch.stack([getattr(column, what)() for column in columns]) for what in ("std", "mean"))
    alone = torch.tensor([errors(x, y, single_units(len(x), len(y))) for x, y, _ in drawn[:ALONE]]).mean(dim=0) / truth
    estimated = torch.tensor([errors(*one) for one in drawn[:ERRORS]])
    reach = student(0.975, drawn[0][2].groups - 1) * estimated
    held = ((found[:ERRORS] - mean).abs() < reach).double().mean(dim=0)
    varies = (truth > 0.002).tolist()
    shares = zip((estimated.mean(dim=0) / truth).tolist(), held.tolist(), strict=True)
    by_source = [f"{ratio:.2f} / {100 * share:.0f}" for ratio, share in shares]

    def shown(cells: list[str]) -> list[str]:
        return [cell if ok else "constant" for cell, ok in zip(cells, varies, strict=True)]

    return shown([f"{ratio:.2f}" for ratio in alone.tolist()]), shown(by_source)


def table(cases: tuple[Case, ...]) -> None:
    print("| generated against real | resampled | " + " | ".join(NAMES) + " |")
    print("|---" * (2 + len(NAMES)) + "|")
    for case in cases:
        alone, by_source = row(case)
        if case.variants > 1 or not case.others:
            print(f"| {case.says} | as images | " + " | ".join(alone) + " |")
        print(f"| {case.says} | by source | " + " | ".join(by_source) + " |", flush=True)


def main(asked: str = "") -> None:
    if not asked:
        print(HEAD)
    for name, title, cases in (("held-out", "Held out", HELD_OUT), ("development", "Development", DEVELOPMENT)):
        if asked in ("", name):
            print(f"\n## {title}\n")
            table(cases)
    if not asked:
        print(SAYS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
