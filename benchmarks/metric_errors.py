"""Are the errors of `dinv metrics` right where the generated images are variants of a few sources?

Command:  python benchmarks/metric_errors.py > docs/results/metric-intervals.md
Method:   Features of 12 numbers: a source is a normal draw, a generated image its source, shrunk and moved, plus noise
          of its own. Real images are other draws of the same kind, or the sources themselves. Everything is drawn anew,
          again and again: the standard deviation of a metric over the draws is the truth. Reported: the mean of the
          errors that `measure.metrics.intervals` estimates over it, and the share of 95 % intervals that
          hold the mean over the draws. "as images": every variant counts as an independent image, as before.
Cost:     2 minutes on one core.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_inversion.measure.metrics.frechet import fid, fid_infinity
from diffusion_inversion.measure.metrics.intervals import fid_error, fid_infinity_error, manifold_errors
from diffusion_inversion.measure.metrics.kernel import (
    CMMD_SCALE,
    cubic_kernel,
    discrepancy,
    gaussian_kernel,
    unit_rows,
)
from diffusion_inversion.measure.metrics.manifold import manifold_values
from diffusion_inversion.measure.metrics.units import Units, jackknife, single_units

DIM, K, DRAWS, ERRORS = 12, 5, 400, 40
BALLS = ("precision", "recall", "density", "coverage")
NAMES = ("fid", "fid_infinity", "kid", "cmmd", *BALLS)
Z = 1.96
SAYS = """
A variant says less than an image of its own: errors that count it as one are too small, and intervals that say 95 %
hold less (with real images that are the sources, too wide: what both sides have in common is counted twice). By
source the errors of FID, KID, CMMD, precision, density and coverage are within 0.85 to 1.2 of the truth, and so is that
of recall but where next to no real image is among the generated ones (0.83); that of `fid_infinity` errs on the wide
side where sources are few."""


@dataclass(frozen=True)
class Case:
    """sources x variants generated images against `others` other real images, or against the sources where 0."""

    sources: int
    variants: int
    others: int
    moved: float = 0.2  # how far the generated images lie from the real ones

    @property
    def says(self) -> str:
        real = f"{self.others} others" if self.others else "the sources"
        far = ", moved far" if self.moved > 0.5 else ""
        return f"{self.sources} x {self.variants} against {real}{far}"


CASES = (
    Case(40, 10, 400), Case(40, 10, 400, 0.8), Case(40, 10, 0), Case(100, 4, 400), Case(100, 10, 0), Case(400, 1, 400),
)  # fmt: skip


def draw(case: Case, seed: int) -> tuple[Tensor, Tensor, Units]:
    """Real and generated features of a fresh draw, and what they are units of."""
    stream = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, DIM, generator=stream, dtype=torch.float64)

    sources = normal(case.sources)
    noise = 0.5 * normal(case.sources, case.variants)
    generated = (0.85 * sources[:, None] + case.moved + noise).flatten(0, 1)
    unit = torch.arange(case.sources).repeat_interleave(case.variants)
    if case.others:
        return normal(case.others), generated, Units(torch.arange(case.others) + case.sources, unit)
    return sources, generated, Units(torch.arange(case.sources), unit)


def values(real: Tensor, generated: Tensor, units: Units) -> list[float]:
    balls = manifold_values(real, generated, k=K)
    none = (real.new_zeros(len(real), 0), generated.new_zeros(len(generated), 0))
    found = [
        fid(real, generated),
        fid_infinity(real, generated, units=units),
        discrepancy(cubic_kernel, real, generated, *none).unbiased,
        CMMD_SCALE * discrepancy(gaussian_kernel, unit_rows(real), unit_rows(generated), *none).biased,
    ]
    return found + [float(getattr(balls, name).mean()) for name in BALLS]


def errors(real: Tensor, generated: Tensor, units: Units) -> list[float]:
    sets = jackknife(units, seed=0)
    cubic = discrepancy(cubic_kernel, real, generated, sets.real, sets.generated).parts
    gaussian = discrepancy(gaussian_kernel, unit_rows(real), unit_rows(generated), sets.real, sets.generated).parts
    balls = manifold_errors(real, generated, k=K, seed=0, units=units)
    found = [
        fid_error(real, generated, 0, units),
        fid_infinity_error(real, generated, 0, units),
        sets.error(cubic),
        CMMD_SCALE * sets.error(gaussian),
        *(balls[name] for name in BALLS),
    ]
    return [error or 0.0 for error in found]


def row(case: Case) -> tuple[list[float], list[float], list[float], list[float], list[bool]]:
    """For each metric: estimated over true error as images and by unit, what their intervals hold, if it varies."""
    drawn = [draw(case, seed) for seed in range(DRAWS)]
    found = torch.tensor([values(*one) for one in drawn])
    truth, mean = found.std(dim=0), found.mean(dim=0)
    out: list[list[float]] = []
    held: list[list[float]] = []
    for alone in (True, False):
        estimated = torch.tensor(
            [errors(x, y, single_units(len(x), len(y)) if alone else units) for x, y, units in drawn[:ERRORS]]
        )
        out.append((estimated.mean(dim=0) / truth).tolist())
        held.append(((found[:ERRORS] - mean).abs() < Z * estimated).double().mean(dim=0).tolist())
    return out[0], out[1], held[0], held[1], (truth > 0.002).tolist()


def main() -> None:
    print("# Are the errors of `dinv metrics` right?")
    print()
    print("`python benchmarks/metric_errors.py > docs/results/metric-intervals.md`")
    print()
    print(
        f"Estimated over true error / share in % of 95 % intervals that hold: {DRAWS} draws, {ERRORS} errors, "
        f"k = {K}.\n{CASES[0].sources} x {CASES[0].variants}: sources and variants of each; against other real images, "
        "or against the sources themselves.\nConstant: a metric that varied by less than 0.002."
    )
    print()
    print("| generated against real | resampled | " + " | ".join(NAMES) + " |")
    print("|---" * (2 + len(NAMES)) + "|")
    for case in CASES:
        alone, by_source, alone_holds, holds, varying = row(case)
        for name, ratios, held in (("as images", alone, alone_holds), ("by source", by_source, holds)):
            if case.variants == 1 and case.others and name == "as images":
                continue
            cells = (
                f"{ratio:.2f} / {100 * share:.0f}" if varies else "constant"
                for ratio, share, varies in zip(ratios, held, varying, strict=True)
            )
            print(f"| {case.says} | {name} | " + " | ".join(cells) + " |", flush=True)
    print(SAYS)


if __name__ == "__main__":
    sys.exit(main())
