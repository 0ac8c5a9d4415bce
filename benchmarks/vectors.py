"""How many sources can be told from what is drawn from their vectors: exact, noised and interpolated.

    python benchmarks/vectors.py --data TRAIN --sources 1000 --folder FOLDER

`mini` learns `--sources` images of TRAIN (DATA) and draws one image of each for every noise strength and interpolation
of `--drawn`, without guidance. The source counts as told where it is the nearest of `--among` images of TRAIN to that
drawing, by the views and calibrated distances of `dinv audit`. Chance is 1 in `--among`. Prints Markdown. With
`--folder` vectors and drawings are kept there, and the same command goes on after a kill.
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
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.measure.copies.nearest import Known
from diffusion_inversion.measure.copies.said import share_of
from diffusion_inversion.measure.copies.shares import share
from diffusion_inversion.measure.copies.views import part_view, pixel_view
from diffusion_inversion.sample.sampling import draw_variants
from diffusion_inversion.sample.synthetic import SyntheticStore

CPU = torch.device("cpu")
DRAWN = ("0,0", "0.1,0", "0.4,0", "0,0.1", "0,0.4", "0.1,0.1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--sources", type=int, default=50)
    parser.add_argument("--among", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=4, help="of stage 1, from the adapter's guess")
    parser.add_argument("--inference-steps", type=int, default=8)
    parser.add_argument("--drawn", nargs="+", default=DRAWN, help="NOISE,INTERPOLATION")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    known = load_images(given.data, limit=given.among)
    chosen = known.subset(range(0, len(known), len(known) // given.sources)[: given.sources])
    row_of = {image_id: row for row, image_id in enumerate(known.ids)}
    generator = Generator.load("mini", device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        inverting = InvertSettings(steps=given.steps, eval_draws=1)  # its losses are not read here
        vectors = invert(chosen, generator, folder / "vectors", inverting)
        for one in given.drawn:
            draw_variants(vectors, generator, folder / one, settings_of(one, given.inference_steps))
        views = [Known(view, known.images, 10) for view in (pixel_view(CPU), part_view(CPU))]
        print(
            f"{len(chosen)} sources among {len(known)} images, {given.steps} steps of stage 1, {given.inference_steps} "
            "of stage 2\n\n| noise strength | interpolation | told by pixels | told by parts | partner, by parts |\n"
            "|---|---|---|---|---|"
        )
        for one in given.drawn:
            store = SyntheticStore(folder / one, vectors.class_names)
            made_from = [ids[:2] for ids in store.sources()]
            source, partner = (
                torch.tensor([row_of[image_id] for image_id in ids]) for ids in zip(*made_from, strict=True)
            )
            images = store.read().resized(known.size).images
            found = [view.search(images).rows for view in views]
            shares = [share(rows == source) for rows in found] + [share((found[1] == partner) & (partner != source))]
            cells = " | ".join(share_of(vars(told)) for told in shares)
            print(f"| {' | '.join(one.split(','))} | {cells} |", flush=True)


def settings_of(one: str, inference_steps: int) -> SampleSettings:
    """Stage 2 at a noise strength and an interpolation, "0.1,0"."""
    noise_strength, interpolation = map(float, one.split(","))
    return SampleSettings(
        variants=1,
        guidance_scales=(1.0,),
        noise_strength=noise_strength,
        interpolation=interpolation,
        inference_steps=inference_steps,
    )


if __name__ == "__main__":
    main()
