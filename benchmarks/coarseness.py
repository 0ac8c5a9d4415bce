"""What the check before a run says of a generator on several data sets, and how often its interval holds the truth.

    python benchmarks/coarseness.py mini --data pbc-64=TRAIN.parquet ucmerced-64=TRAIN.parquet ... --per-class 20
    python benchmarks/coarseness.py mini --data cifar10=TRAIN.parquet --limit 200
    python benchmarks/coarseness.py --coverage 300

The first two print a Markdown table, one row for each data set; training images alone. The last one draws sets of
points in which both sides of a comparison are noisy views of one truth, so that the expected loss is 0.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from diffusion_inversion.cli.command import pairs
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.run.coarseness import COARSE, FOLDS, cross_validated, drawn, loss_interval, measure

SHAPES = ((60, 2, 30, 1.0, 0.7), (100, 4, 40, 1.5, 0.7), (400, 4, 40, 1.2, 1.0), (400, 8, 60, 1.5, 0.5))


def of_each_class(images: LabelledImages, count: int | None) -> LabelledImages:
    """At most `count` images of each class, as the check draws them."""
    return images if count is None else drawn(images, count * len(images.class_names))


def table(name: str, data: dict[str, str], limit: int | None, count: int | None) -> None:
    """Print what the check says, a row for each data set."""
    generator = Generator.load(name)
    print("| data | training images | side | measure | as they are | learned after the autoencoder | loss | "
          "classes still in them | said | seconds |\n" + "|---" * 10 + "|")  # fmt: skip
    for label, path in data.items():
        images = of_each_class(load_images(path, limit=limit), count)
        used = min(images.size, generator.resolution)
        found = measure(images, generator, resolution=generator.resolution, used=used)
        rates = [f"{100 * rate:.1f}" for rate in (found.plain, found.through)]
        loss = f"{100 * found.loss:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
        cells = [label, found.images, f"{found.own} px", found.measure, *rates, loss, f"{100 * found.within:.1f}",
                 "keeps too little" if found.too_coarse else "nothing", f"{found.seconds:.0f}"]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def coverage(draws: int) -> None:
    """Print how often the interval holds 0, where 0 is the truth, and how often the check would warn."""
    stream = np.random.default_rng(0)
    print("| images | classes | holds 0, % | warns, % | half width, points |\n" + "|---" * 5 + "|")
    for n, classes, width, apart, noise in SHAPES:
        held = warned = 0
        halves = []
        labels = np.arange(n) % classes
        for _ in range(draws):
            centres = stream.normal(size=(classes, width)) * 2 * apart / width**0.5
            truth = centres[labels] + stream.normal(size=(n, width))
            views = [torch.from_numpy(truth + noise * stream.normal(size=truth.shape)) for _ in range(2)]
            fold = np.arange(n) // classes % FOLDS  # the rows of a class are alike
            both = [cross_validated(view, views[0], torch.from_numpy(labels), fold) for view in views]
            correct = {"plain": both[0], "through": both[1]}
            rates, low, high, _ = loss_interval(correct, torch.from_numpy(labels))
            held += low <= 0 <= high
            warned += low > 0 and rates["plain"] - rates["through"] >= COARSE
            halves.append((high - low) / 2)
        cells = [n, classes, f"{100 * held / draws:.1f}", f"{100 * warned / draws:.1f}", f"{100 * np.mean(halves):.1f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", nargs="?", default="mini", help="mini, a folder or a hub id")
    parser.add_argument("--data", nargs="+", default=[], help="NAME=TRAIN")
    parser.add_argument("--limit", type=int, help="a stratified subset of the training images")
    parser.add_argument("--per-class", type=int, help="at most so many images of each class")
    parser.add_argument("--coverage", type=int, help="how many sets to draw")
    options = parser.parse_args()
    if options.coverage is not None:
        coverage(options.coverage)
    if options.data:
        table(options.generator, pairs(options.data, "--data"), options.limit, options.per_class)


if __name__ == "__main__":
    main()
