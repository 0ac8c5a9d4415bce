"""The pictures of docs/explanation, docs/tutorial.md and examples/.

    python benchmarks/docs_pictures.py vectors DATA --out docs/explanation/vectors.png  # what steps of stage 1 change
    python benchmarks/docs_pictures.py strengths DATA --out docs/explanation/strengths.png  # noise, interpolation
    python benchmarks/docs_pictures.py autoencoder DATA --out docs/explanation/autoencoder.png  # what is lost first
    python benchmarks/docs_pictures.py intervals --out docs/explanation/intervals.png  # verdicts on made-up results
    python benchmarks/docs_pictures.py run RUN --out docs/tutorial/images.png  # sources and variants of a run

Images are drawn at random from DATA's training images, one of each class; nothing is selected.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages, resize
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import Embeddings, read_embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.sample.autoencoding import autoencoded
from diffusion_inversion.sample.sampling import draw_variants, reconstruct
from diffusion_inversion.sample.synthetic import SyntheticStore, read_synthetic
from diffusion_inversion.train.evaluation import half_width

STEPS = (0, 5, 25, 50)
NOISE, INTERPOLATION = (0.0, 0.1, 0.4, 1.0), (0.0, 0.1, 0.4, 0.8)
SHOWN = 8  # images in a row
SIDE, LABEL = 96, 130  # px of an image, and left of the rows
CLASS = 8  # images of one class behind the picture of strengths
RESULTS, SEEDS, TEST_IMAGES = 30, 3, 400
LEVEL = 0.975  # of one of two arms


def board(rows: Sequence[Tensor], names: Sequence[str], columns: Sequence[str] = (), above: str = "") -> Image.Image:
    """Rows of uint8 images (N, 3, side, side) with a name left of each, and names of the columns above."""
    top = 18 * (bool(columns) + bool(above))
    picture = Image.new("RGB", (LABEL + (SIDE + 2) * max(map(len, rows)), top + (SIDE + 2) * len(rows)), "white")
    pen = ImageDraw.Draw(picture)
    if above:
        pen.text((LABEL, 2), above, fill="black")
    for number, name in enumerate(columns):
        pen.text((LABEL + number * (SIDE + 2) + 4, top - 16), name, fill="black")
    for number, (images, name) in enumerate(zip(rows, names, strict=True)):
        down = top + number * (SIDE + 2)
        pen.text((4, down + SIDE // 2 - 6), name, fill="black")
        for column, image in enumerate(images):
            tile = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            picture.paste(tile, (LABEL + column * (SIDE + 2), down))
    return picture


def one_of_each(images: LabelledImages) -> LabelledImages:
    """One image each of the first classes, drawn at random."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    labels = images.labels[order]
    return images.subset([int(order[labels == kind][0]) for kind in range(min(SHOWN, len(images.class_names)))])


def learned(images: LabelledImages, generator: Generator, folder: str, steps: Sequence[int]) -> Embeddings:
    """Vectors of the images after each of some numbers of steps."""
    invert(images, generator, folder, InvertSettings(steps=steps[-1], keep_steps=tuple(steps[:-1])))
    return read_embeddings(folder)


def vectors(data: str) -> Image.Image:
    """What is drawn from the vectors after each of STEPS, from the same noise."""
    generator, images = Generator.load("mini"), one_of_each(load_images(data))
    with tempfile.TemporaryDirectory() as folder:
        embeddings = learned(images, generator, folder, STEPS)
        rows = {embedded: row for row, embedded in enumerate(embeddings.ids)}
        order = [rows[one] for one in images.ids]
        drawn = [reconstruct(embeddings, generator, SampleSettings(kept_steps=(step,)), order) for step in STEPS]
    names = ["the image", "the adapter's guess", *(f"{step} steps" for step in STEPS[1:])]
    return board([resize(images.images, generator.resolution), *drawn], names)


def strengths(data: str) -> Image.Image:
    """One variant of one source at every pair of NOISE and INTERPOLATION; noise, partner and direction are the same."""
    generator, images = Generator.load("mini"), load_images(data)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = images.subset(order[images.labels[order] == 0][:CLASS].tolist())
    first = images.ids[0]
    with tempfile.TemporaryDirectory() as folder:
        embeddings = learned(images, generator, f"{folder}/vectors", (50,))
        rows = []
        for noise in NOISE:
            drawn = []
            for alpha in INTERPOLATION:
                run = Path(folder) / f"{noise} {alpha}"
                draw_variants(
                    embeddings, generator, run, SampleSettings(variants=1, noise_strength=noise, interpolation=alpha)
                )
                synthetic = SyntheticStore(run, embeddings.class_names).read()
                drawn.append(synthetic.images[synthetic.source_ids.index(first)])
            rows.append(torch.stack(drawn))
    source = resize(images.images[:1], generator.resolution)
    names = [f"noise {noise:g}" for noise in NOISE]
    columns = [f"interp. {alpha:g}" for alpha in INTERPOLATION]
    return board([*rows, source], [*names, "the source"], columns)


def autoencoder(data: str) -> Image.Image:
    """Images, the same through the autoencoder alone, and what their vectors draw."""
    generator, images = Generator.load("mini"), one_of_each(load_images(data))
    through = autoencoded(resize(images.images, generator.resolution), generator, generator.resolution)
    with tempfile.TemporaryDirectory() as folder:
        embeddings = learned(images, generator, folder, (50,))
        rows = {embedded: row for row, embedded in enumerate(embeddings.ids)}
        drawn = reconstruct(embeddings, generator, SampleSettings(), [rows[one] for one in images.ids])
    names = ("the image", "autoencoded", "its vector draws")
    return board([resize(images.images, generator.resolution), through, drawn], names)


def of_run(run: Path) -> Image.Image:
    """One source of each class of a run, and its first variants."""
    train = open_splits(run).train
    synthetic = read_synthetic(run, train.class_names)
    sources = one_of_each(train)
    side = max(train.size, synthetic.size)
    found = [[row for row, one in enumerate(synthetic.source_ids) if one == source] for source in sources.ids]
    variants = min(3, *map(len, found))
    rows = [resize(sources.images, side)]
    rows += [resize(synthetic.images[[of[number] for of in found]], side) for number in range(variants)]
    return board(rows, ["real", *(f"variant {number + 1}" for number in range(variants))])


def intervals(path: Path) -> None:
    """Intervals of RESULTS experiments in which synthetic images gain 2 points, with 3 and 10 seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, seeds in zip(figure.subplots(1, 2, sharex=True), (SEEDS, 10), strict=True):
        stream = np.random.default_rng(0)
        gains = 2.0 + stream.normal(0, 1.5, (RESULTS, seeds)) + stream.normal(0, 1.0, (RESULTS, 1))
        reach = half_width(gains.var(1, ddof=1) / seeds, np.full(RESULTS, 1.0), seeds, TEST_IMAGES, LEVEL)
        for row, (mean, half) in enumerate(zip(gains.mean(1), np.asarray(reach), strict=True)):
            colour = "tab:green" if mean - half > 0 else "tab:grey"
            axes.plot([mean - half, mean + half], [row, row], color=colour, linewidth=1.5)
            axes.plot(mean, row, "o", color=colour, markersize=3)
        helps = int((gains.mean(1) - reach > 0).sum())
        axes.axvline(0, color="black", linewidth=0.8)
        axes.axvline(2, color="tab:blue", linewidth=0.8, linestyle=":")
        axes.set(title=f"{seeds} seeds: {helps} of {RESULTS} say that it helps", yticks=[], xlabel="gain in points")
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=["vectors", "strengths", "autoencoder", "intervals", "run"])
    parser.add_argument("source", nargs="?", default="", help="DATA, or a run folder")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.picture == "intervals":
        intervals(given.out)
        return
    draw = {"vectors": vectors, "strengths": strengths, "autoencoder": autoencoder}.get(given.picture)
    picture = of_run(Path(given.source)) if draw is None else draw(given.source)
    picture.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
