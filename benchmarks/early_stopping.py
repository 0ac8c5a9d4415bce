"""Does it pay to end the inversion of single images early, where their loss on the evaluation bank hardly falls?

    OMP_NUM_THREADS=1 python benchmarks/early_stopping.py DATA [DATA ...] [--images 100]

`mini` learns `--images` training images of each DATA for 100 steps without an early end, and the loss of each image is
measured at POINTS. From these curves follows what `--early-stopping F` would give for runs of 50 and 100 steps, since
an image that ends early has the vector and the loss of that step: the mean steps an image, and the mean loss, beside
the loss of the same number of steps for every image (linear between two points). Prints Markdown.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.inversion import guesses
from diffusion_inversion.invert.optimisation import curve_steps, invert_batch

POINTS = (6, 12, 25, 37, 44, 50, 75)
LOOKS = {50: (12, 25, 37), 100: (25, 50, 75)}  # steps of a run => its quarters
SHARES = (0.01, 0.03, 0.05, 0.08)
CLOSE = 1.02  # of an image's own loss at the end
AT_ONCE = 25


def measured(data: str, images: int) -> tuple[tuple[int, ...], Float32[Tensor, "points images"]]:
    """Steps, and the losses of all images at each."""
    chosen, generator = load_images(data, limit=images), Generator.load("mini", device="cpu")
    settings = InvertSettings(steps=100, keep_steps=POINTS)
    pixels = to_model_range(chosen.resized(generator.resolution).images)
    initial = guesses(chosen, pixels, generator, settings)
    return curve_steps(settings), invert_batch(generator, pixels, initial, chosen.ids, settings, at_once=AT_ONCE).losses


def ended(
    points: tuple[int, ...], losses: Float32[Tensor, "points images"], steps: int, share: float
) -> tuple[list[int], float]:
    """The step at which each image ends, and their mean loss there."""
    ends, found = [], []
    for curve in losses.T:
        at = dict(zip(points, curve.tolist(), strict=True))
        flat = [step for before, step in pairwise((0, *LOOKS[steps])) if at[step] > at[before] * (1 - share)]
        ends.append(min([*flat, steps]))
        found.append(at[ends[-1]])
    return ends, float(np.mean(found))


def shown(name: str, points: tuple[int, ...], losses: Float32[Tensor, "points images"]) -> None:
    """Print what was found for one data set."""
    count, mean = losses.shape[1], losses.mean(1).tolist()
    print(f"\n{name}, n={count} images: mean loss by step")
    print(", ".join(f"{step}: {loss:.4f}" for step, loss in zip(points, mean, strict=True)))
    for steps, looks in LOOKS.items():
        until = points[: points.index(steps) + 1]
        near = losses[: len(until)] <= CLOSE * losses[len(until) - 1]
        first = np.array(until)[near.int().argmax(0).numpy()]
        low, middle, high = np.percentile(first, (10, 50, 90), method="nearest")
        print(f"\nwithin 2 % of its loss at step {steps}: first at {middle} (median; 10 to 90 %: {low} to {high})")
        print(f"\n| F, {steps} steps, looks at {looks} | ended early | mean steps | loss | all that many steps |")
        print("|---|---|---|---|---|")
        for share in SHARES:
            ends, loss = ended(points, losses, steps, share)
            same = np.interp(np.mean(ends), points, mean)
            early = sum(end < steps for end in ends)
            print(f"| {share} | {early} | {np.mean(ends):.1f} | {loss:.4f} | {same:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for data in given.data:
        shown(data, *measured(data, given.images))


if __name__ == "__main__":
    main()
