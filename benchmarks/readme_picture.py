"""A picture of the method for README: photographs, what their vectors draw, and variants around these.

    python benchmarks/readme_picture.py DATA --out docs/results/cells.png

Top to bottom: two training images each of some classes, all drawn at random; their reconstructions; variants of each at
the defaults, but for the interpolation where `--interpolation` says so. Nothing is selected.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torchvision.utils import make_grid

from diffusion_inversion import Generator, InvertSettings, SampleSettings, invert, load_images, sample
from diffusion_inversion.data.images import LabelledImages, resize
from diffusion_inversion.engine.store import commit_bytes
from diffusion_inversion.sample.png import encode_png
from diffusion_inversion.sample.sampling import reconstruct
from diffusion_inversion.sample.synthetic import file_name


def two_of_each(images: LabelledImages, classes: int) -> LabelledImages:
    """Two images each of `classes` classes, all drawn at random."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kinds = torch.randperm(len(images.class_names), generator=torch.Generator().manual_seed(0))[:classes]
    rows = [row for kind in kinds for row in order[images.labels[order] == kind][:2].tolist()]
    return images.subset(rows)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--variants", type=int, default=3)
    parser.add_argument("--interpolation", type=float, default=SampleSettings().interpolation)
    options = parser.parse_args()
    generator = Generator.load("mini")
    sources = two_of_each(load_images(options.data), options.classes)
    settings = SampleSettings(variants=options.variants, interpolation=options.interpolation)
    with tempfile.TemporaryDirectory() as run:
        embeddings = invert(sources, generator, run, InvertSettings())
        synthetic = sample(embeddings, generator, run, settings)
        again = reconstruct(embeddings, generator, settings)
    drawn = dict(zip(embeddings.ids, again, strict=True))
    variants = dict(zip(synthetic.ids, synthetic.images, strict=True))
    side = generator.resolution
    rows = [resize(sources.images, side), torch.stack([drawn[source] for source in sources.ids])]
    for variant in range(options.variants):
        names = [
            file_name(sources.class_names[label], source, variant)
            for source, label in zip(sources.ids, sources.labels.tolist(), strict=True)
        ]
        rows.append(resize(torch.stack([variants[name] for name in names]), side))
    grid = make_grid(torch.cat(rows), nrow=len(sources), padding=2, pad_value=255)
    commit_bytes(options.out, encode_png(grid))


if __name__ == "__main__":
    main()
