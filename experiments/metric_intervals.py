"""Are the standard errors of the metrics right? (The figures in src/diffusion_inversion/measure/metrics/intervals.py.)

Command:  python experiments/metric_intervals.py cifar10 [draws]      (or other DATA)
Method:   8,000 images, Lite0 features, parted at random into a real and a generated pool of 4,000. 400 are drawn of
          either pool, again and again: the standard deviation of a metric over the draws, corrected for the finite
          pools, is the truth. Printed: mean estimated error over 12 draws / truth. "same": the pools as they are;
          "other": the generated pool shrunk to 0.9 about its mean and moved by 0.2 standard deviations.
          Lines "bootstrap": the same for what was rejected, FID on images drawn with replacement and the per-image
          values of the ball metrics with the balls held fixed.
Cost:     5 minutes on one core, 2 of them for the features the first time.
Measured: (150 draws, 12 errors; FID by the plain jackknife, ball metrics by halves; with today's errors: not measured)
          error / truth    fid   kid  cmmd  prec   rec  dens   cov
          same            0.90  1.18  1.18  1.19  1.08  1.03  1.32
            bootstrap     1.86              0.86  0.75  0.72  0.66
          other           1.04  1.18  1.22  1.03  1.03  1.06  1.10
            bootstrap     1.69              0.73  0.81  0.68  0.73
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.sources import default_root
from diffusion_inversion.measure.extractors.cache import cached_features
from diffusion_inversion.measure.extractors.catalog import open_extractor
from diffusion_inversion.measure.metrics.frechet import fid
from diffusion_inversion.measure.metrics.intervals import fid_error, manifold_errors
from diffusion_inversion.measure.metrics.kernel import cmmd, cubic_kernel, discrepancy, gaussian_kernel, kid, unit_rows
from diffusion_inversion.measure.metrics.manifold import manifold_values
from diffusion_inversion.measure.metrics.units import jackknife, single_units

POOL, N, ERRORS, K = 4000, 400, 12, 5
BALLS = ("precision", "recall", "density", "coverage")


def values(real: Tensor, generated: Tensor) -> list[float]:
    balls = manifold_values(real, generated, k=K)
    found = [fid(real, generated), kid(real, generated), cmmd(real, generated)]
    return found + [float(getattr(balls, name).mean()) for name in BALLS]


def errors(real: Tensor, generated: Tensor) -> list[float]:
    sets = jackknife(single_units(N, N), seed=0)
    parts = (sets.real, sets.generated)
    cubic = discrepancy(cubic_kernel, real, generated, *parts).parts
    gaussian = discrepancy(gaussian_kernel, unit_rows(real), unit_rows(generated), *parts).parts
    balls = manifold_errors(real, generated, k=K, seed=0)
    found = [fid_error(real, generated, 0) or 0.0, sets.error(cubic), 1000 * sets.error(gaussian)]
    return found + [balls[name] or 0.0 for name in BALLS]


def rejected(real: Tensor, generated: Tensor, stream: torch.Generator) -> list[float]:
    """The plain bootstrap's error of FID, and those of the per-image values with the balls held fixed."""
    replicates = [
        fid(*(side[torch.randint(N, (N,), generator=stream)] for side in (real, generated))) for _ in range(20)
    ]
    balls = manifold_values(real, generated, k=K)
    return [float(torch.tensor(replicates).std())] + [float(getattr(balls, n).std()) / N**0.5 for n in BALLS]


def main(data: str, draws: int = 150) -> None:
    images = load_images(data, limit=2 * POOL).images
    extractor = open_extractor("lite0", torch.device("cpu"))
    features = cached_features(extractor, images, default_root() / "features").double()
    stream = torch.Generator().manual_seed(0)
    shuffled = features[torch.randperm(len(features), generator=stream)]
    real, same = shuffled[:POOL], shuffled[POOL : 2 * POOL]
    move = 0.2 * torch.randn(same.shape[1], generator=stream, dtype=torch.float64) * same.std(dim=0)
    other = same.mean(dim=0) + 0.9 * (same - same.mean(dim=0)) + move
    print("error / truth    fid   kid  cmmd  prec   rec  dens   cov")
    for name, generated in (("same", same), ("other", other)):

        def draw(generated: Tensor = generated) -> tuple[Tensor, Tensor]:
            return tuple(pool[torch.randperm(POOL, generator=stream)[:N]] for pool in (real, generated))

        truth = torch.tensor([values(*draw()) for _ in range(draws)]).std(dim=0) / (1 - N / POOL) ** 0.5
        estimated = torch.tensor([errors(*draw()) for _ in range(ERRORS)]).mean(dim=0)
        print(f"{name:13}", *(f"{ratio:5.2f}" for ratio in (estimated / truth).tolist()))
        others = torch.tensor([rejected(*draw(), stream) for _ in range(ERRORS)]).mean(dim=0)
        shares = (others / truth[[0, 3, 4, 5, 6]]).tolist()
        print(f"  bootstrap   {shares[0]:5.2f}", " " * 11, *(f"{share:5.2f}" for share in shares[1:]), "(fixed balls)")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
