"""What the autoencoders of several generators leave of images: PSNR, sharpness, and what a linear probe still sees.

    python benchmarks/autoencoders.py mini other=FOLDER --data pbc-64=TRAIN.parquet,TEST.parquet ...

Images go through a generator's autoencoder at its own resolution and back to their own size. The probe is a logistic
regression on Lite0 profiles of real training images; its accuracy on autoencoded test images says how much is left of
what tells the classes apart. "resized" rows are the resolution alone, without an autoencoder.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from diffusion_inversion.cli.command import labelled, pairs
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages, resize, to_model_range, to_uint8
from diffusion_inversion.generator.features import load_lite0, profile
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.pretrain.vae import image_psnr, sharpness

BATCH = 100


def drawn(images: LabelledImages, count: int) -> LabelledImages:
    """A random subset that keeps the proportions of the classes about as they are."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.subset(order[:count].tolist())


def autoencoded(generator: Generator, images: Tensor) -> Tensor:
    """uint8 (N, 3, S, S) through the autoencoder at its resolution, back at S."""
    seen = resize(images, generator.resolution)
    parts = [to_uint8(generator.decode(generator.encode(to_model_range(c)).mean)).cpu() for c in seen.split(BATCH)]
    return resize(torch.cat(parts), images.shape[-1])


def profiles(lite0: nn.Module, images: Tensor) -> Tensor:
    """Lite0 profiles (N, D) of uint8 images."""
    return torch.cat([profile(lite0, to_model_range(chunk)) for chunk in images.split(BATCH)])


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generators", nargs="+", help="mini, folders or hub ids; LABEL=NAME calls one otherwise")
    parser.add_argument("--data", action="append", required=True, help="NAME=TRAIN,TEST")
    parser.add_argument("--train", type=int, default=900, help="training images of the probe")
    parser.add_argument("--test", type=int, default=600, help="test images")
    options = parser.parse_args()
    generators = {label: Generator.load(name) for label, name in labelled(options.generators).items()}
    sizes = sorted({generator.resolution for generator in generators.values()})
    lite0 = load_lite0()
    print("| data | images | PSNR, dB | sharpness over the originals' | probe's accuracy, % |\n|---|---|---|---|---|")
    for name, files in pairs(options.data, "--data").items():
        train, test = (
            drawn(load_images(f), n) for f, n in zip(files.split(","), (options.train, options.test), strict=True)
        )
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=500))
        probe.fit(profiles(lite0, train.images).numpy(), train.labels.numpy())
        routes = {"originals": test.images}
        routes |= {f"resized to {s} px": resize(resize(test.images, s), test.size) for s in sizes if s < test.size}
        routes |= {label: autoencoded(generator, test.images) for label, generator in generators.items()}
        for label, images in routes.items():
            accuracy = 100 * probe.score(profiles(lite0, images).numpy(), test.labels.numpy())
            same = torch.equal(images, test.images)
            psnr = "-" if same else f"{float(image_psnr(images, test.images).clamp(max=99).mean()):.1f}"
            sharp = sharpness(images) / sharpness(test.images)
            print(f"| {name} (n={len(test)}) | {label} | {psnr} | {sharp:.2f} | {accuracy:.1f} |", flush=True)


if __name__ == "__main__":
    main()
