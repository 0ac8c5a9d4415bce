"""How many sources can be told from what is drawn from their vectors: exact, noised and interpolated.

    python benchmarks/vectors.py --data TRAIN --sources 50 --among 1000

`mini` learns `--sources` images of TRAIN (DATA) and draws one image of each for every pair of noise strength and
interpolation, without guidance. The source counts as told where it is the nearest of `--among` images of TRAIN to that
drawing, by the views and calibrated distances of `dinv audit`. Chance is 1 in `--among`. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.measure.copies.nearest import Known
from diffusion_inversion.measure.copies.said import share_of
from diffusion_inversion.measure.copies.shares import share
from diffusion_inversion.measure.copies.views import part_view, pixel_view
from diffusion_inversion.sample.sampling import draw_variants
from diffusion_inversion.sample.synthetic import SyntheticStore

CPU = torch.device("cpu")
DRAWN = ((0.0, 0.0), (0.1, 0.0), (0.1, 0.1), (0.3, 0.0), (1.0, 0.0), (0.0, 0.5))  # noise strength, interpolation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sources", type=int, default=50)
    parser.add_argument("--among", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    known = load_images(given.data, limit=given.among)
    chosen = known.subset(range(0, len(known), len(known) // given.sources)[: given.sources])
    row_of = {image_id: row for row, image_id in enumerate(known.ids)}
    generator = Generator.load("mini", device="cpu")
    views = [Known(view, known.images, 10) for view in (pixel_view(CPU), part_view(CPU))]
    print(f"{len(chosen)} sources among {len(known)} images, {given.steps} steps of stage 1\n")
    print("| noise strength | interpolation | told by pixels | told by parts |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        invert(chosen, generator, Path(folder) / "vectors", InvertSettings(steps=given.steps))
        vectors = read_embeddings(Path(folder) / "vectors")
        for noise_strength, interpolation in DRAWN:
            run = Path(folder) / f"{noise_strength} {interpolation}"
            settings = SampleSettings(
                variants=1, guidance_scales=(1.0,), noise_strength=noise_strength, interpolation=interpolation
            )
            draw_variants(vectors, generator, run, settings)
            store = SyntheticStore(run, vectors.class_names)
            own = torch.tensor([row_of[source] for source, *_ in store.sources()])
            images = store.read().resized(known.size).images
            told = [share(view.search(images).rows == own) for view in views]
            cells = " | ".join(share_of(vars(one)) for one in told)
            print(f"| {noise_strength:g} | {interpolation:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
