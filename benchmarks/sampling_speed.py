"""What an image of stage 2 costs and how far it is from real ones: the reference recipe, today's, and fewer steps.

    python benchmarks/sampling_speed.py --folder FOLDER \\
        --data cifar10=cifar10-train.parquet,200 pbc-64=pbc-64-train.parquet,160

`mini` learns so many training images of each set (DATA) in `--steps` steps of stage 1, and each way of `WAYS` draws one
image of each vector, from the same vectors and start noises. KID and FID on Lite0 features are against `--held-out`
other training images of the set, with 95 % intervals (jackknife over images); differences of KID to the first way named
are paired. A logistic regression on the same features (as the check before stage 1) learns from the drawn images and is
tested on the held-out ones; its differences are paired over these. Then the ways take turns, round by round: CPU
seconds of one thread for each image, UNet and autoencoder. Prints Markdown; keeps vectors and images in FOLDER, so the
same command goes on after a kill. `--ways` are those whose images are measured, `--timed` those whose cost is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import Embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.measure.extractors.extractor import Extractor, extract
from diffusion_inversion.measure.extractors.lite0 import open_lite0
from diffusion_inversion.measure.metrics.frechet import fid
from diffusion_inversion.measure.metrics.intervals import fid_error, student
from diffusion_inversion.measure.metrics.kernel import cubic_kernel, discrepancy
from diffusion_inversion.measure.metrics.units import jackknife, single_units
from diffusion_inversion.run.coarseness import STRENGTH
from diffusion_inversion.sample.sampling import draw_variants
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.sample.variants import draw_images, plan_variant

# Precision of the UNet, and settings; guidance 2 is the reference code's default (w = 1).
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++ 16, bfloat16": ("bfloat16", {}),
    "dpm++ 6 learned, bfloat16": ("bfloat16", {"inference_steps": 6, "timestep_spacing": "learned"}),
    "dpm++ 4 learned, bfloat16": ("bfloat16", {"inference_steps": 4, "timestep_spacing": "learned"}),
    "dpm++ 8, bfloat16": ("bfloat16", {"inference_steps": 8}),
    "dpm++ 6, bfloat16": ("bfloat16", {"inference_steps": 6}),
    "dpm++ 100, bfloat16": ("bfloat16", {"inference_steps": 100}),
    "ddim 100, guidance 2, float32": (
        "float32",
        {"inference_steps": 100, "scheduler": "ddim", "guidance_scales": (2.0,)},
    ),
}
CONFIDENCE = 0.95


def settings_of(way: str) -> SampleSettings:
    return SampleSettings(variants=1, **WAYS[way][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=DATA,IMAGES")
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=25, help="of stage 1, from the adapter's guess")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--timed", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=10, help="images side by side in a round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    generators = {dtype: Generator.load("mini", device="cpu", dtype=dtype) for dtype in ("bfloat16", "float32")}
    extractor = open_lite0(torch.device("cpu"))
    for one in given.data:
        name, _, rest = one.partition("=")
        data, _, count = rest.rpartition(",")
        known = load_images(data, limit=int(count) + given.held_out)
        stride = len(known) // int(count)
        chosen = set(range(0, len(known), stride)[: int(count)])
        held_out = known.subset([row for row in range(len(known)) if row not in chosen])
        inverting = InvertSettings(steps=given.steps, eval_draws=1)  # its losses are not read here
        folder = given.folder / name
        vectors = invert(known.subset(sorted(chosen)), generators["bfloat16"], folder / "vectors", inverting)
        quality(name, vectors, generators, held_out, extractor, folder, given.ways)
    speed(vectors, generators, given.timed, given.rounds, given.at_once)


def quality(
    name: str,
    vectors: Embeddings,
    generators: dict[str, Generator],
    held_out: LabelledImages,
    extractor: Extractor,
    folder: Path,
    ways: list[str],
) -> None:
    """Draw one image of each vector in each way, and print how far they are from the held-out ones."""
    print(
        f"\n{name}: {len(vectors)} images against {len(held_out)} held-out training images, {held_out.size} px\n\n"
        f"| sampler | KID x 1,000 | more than {ways[0]} (paired) | FID | probe, % | more (paired) |\n"
        "|---|---|---|---|---|---|"
    )
    real, truth = extract(extractor, held_out.images), held_out.labels.numpy()
    right: dict[str, np.ndarray[Any, Any]] = {}
    sets = jackknife(single_units(len(real), len(vectors)), seed=0)
    reach = student((1 + CONFIDENCE) / 2, sets.series - 1)
    first: Tensor | None = None
    base = 0.0
    for way in ways:
        home = folder / way.replace(", ", "-").replace(" ", "-")
        draw_variants(vectors, generators[WAYS[way][0]], home, settings_of(way))
        drawn = SyntheticStore(home, vectors.class_names).read()
        features = extract(extractor, drawn.images)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=500))
        probe.fit(features.numpy(), drawn.labels.numpy())
        right[way] = 100.0 * (probe.predict(real.numpy()) == truth)
        gain = right[way] - right[ways[0]]
        found = discrepancy(cubic_kernel, real.double(), features.double(), sets.real, sets.generated)
        if first is None:
            first, base = found.parts, found.unbiased
        more, more_error = found.unbiased - base, sets.error(found.parts - first)
        error = fid_error(real, features, seed=0)
        cells = [
            f"{1e3 * found.unbiased:.1f} ± {1e3 * reach * sets.error(found.parts):.1f}",
            "-" if way == ways[0] else f"{1e3 * more:+.2f} ± {1e3 * reach * more_error:.2f}",
            f"{fid(real, features):.1f}" + ("" if error is None else f" ± {reach * error:.1f}"),
            f"{right[way].mean():.1f}",
            "-" if way == ways[0] else f"{gain.mean():+.1f} ± {1.96 * gain.std(ddof=1) / len(gain) ** 0.5:.1f}",
        ]
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


def speed(vectors: Embeddings, generators: dict[str, Generator], ways: list[str], rounds: int, at_once: int) -> None:
    """CPU seconds of one thread for each image; the ways take turns, so that what else runs meets all of them."""
    spent: dict[str, list[float]] = {way: [] for way in ways}
    decoding: list[float] = []
    for _ in range(rounds):
        for way in ways:
            generator, settings = generators[WAYS[way][0]], settings_of(way)
            plans = [plan_variant(vectors, generator, settings, row, 0) for row in range(at_once)]
            start = time.process_time()
            draw_images(vectors, generator, plans, settings)
            spent[way].append((time.process_time() - start) / at_once)
        latents = torch.stack([plan.initial_noise for plan in plans])
        start = time.process_time()
        generator.decode(latents)
        decoding.append((time.process_time() - start) / at_once)
    print(
        f"\nCPU ms of one thread for each image, {at_once} side by side, median of {rounds} rounds (least to most)\n\n"
        f"| sampler | ms | times the first | of it decoding, {1e3 * statistics.median(decoding):.0f} ms |\n"
        "|---|---|---|---|"
    )
    least = statistics.median(spent[ways[0]])
    for way in ways:
        middle = statistics.median(spent[way])
        print(
            f"| {way} | {1e3 * middle:.0f} ({1e3 * min(spent[way]):.0f} to {1e3 * max(spent[way]):.0f}) "
            f"| {middle / least:.2f} | {statistics.median(decoding) / middle:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
