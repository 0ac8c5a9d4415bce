"""How well a generator's vectors hold images of a domain: the bank's loss, and what is drawn beside its sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.sampling import SampleSettings
from ..config.settings import InvertSettings
from ..data.images import LabelledImages
from ..engine.store import commit_bytes
from ..errors import DataError
from ..generator.generator import Generator
from ..invert.embeddings import Embeddings
from ..invert.inversion import invert
from ..sample.png import encode_png
from ..sample.sampling import reconstruct
from .likeness import FeatureDistance, at_size, psnr, through_autoencoder

AUTOENCODED = "autoencoded"  # the view of a source that no vector can better
GUESS = 0  # the step of the adapter's own guess (without an adapter, of the class name's tokens)
PICTURED, PICTURE_SIDE, PICTURED_STEP = 8, 128, 50


def learned(
    generator: Generator, sources: LabelledImages, steps: Sequence[int], folder: Path
) -> tuple[Embeddings, LabelledImages]:
    """Vectors of `sources` at the guess and at all `steps`, and the sources in the order of the vectors."""
    settings = InvertSettings(steps=max(steps), keep_steps=(GUESS, *steps))
    embeddings = invert(sources, generator, folder, settings)
    return embeddings, sources.subset([sources.row_of[image_id] for image_id in embeddings.ids])


def drawn_at(embeddings: Embeddings, generator: Generator, step: int, guidance_scale: float) -> Tensor:
    """One image per vector of `step`, as it is: uint8 (N, 3, R, R)."""
    return reconstruct(embeddings, generator, SampleSettings(guidance_scales=(guidance_scale,), kept_steps=(step,)))


def domain_figures(
    generator: Generator,
    sources: LabelledImages,
    steps: Sequence[int],
    sizes: Sequence[int],
    folder: Path,
    picture: Path,
    distance: FeatureDistance,
) -> dict[str, Any]:
    """Loss and likeness of the guess and of each step in `steps`, at guidance 1; `picture` gets a grid of 8 images.

    null_loss and losses: means over images on the fixed evaluation bank of stage 1, of this generator's own latents:
    between generators with different autoencoders only `ratio`, loss over null_loss, can be compared. views: of the
    autoencoded sources ("autoencoded") and of the images of each step, PSNR to the sources at the generator's
    resolution ("own") and at every common size, and `FeatureDistance` at the common sizes.
    """
    embeddings, sources = learned(generator, sources, steps, folder)
    null = embeddings.null_loss
    if null is None:
        raise DataError(f"{generator.name}: no loss with the empty prompt is finite. Load it with --dtype float32.")
    losses = dict(zip(embeddings.curve_steps, embeddings.losses.mean(1).tolist(), strict=True))
    views = {AUTOENCODED: through_autoencoder(generator, sources.images)}
    views |= {str(step): drawn_at(embeddings, generator, step, 1.0) for step in embeddings.steps}
    found: dict[str, dict[str, Any]] = {name: {"psnr": {}, "lite0": {}} for name in views}
    for name, images in views.items():
        found[name]["psnr"]["own"] = psnr(images, at_size(sources.images, generator.resolution))
    for size in sizes:
        originals = at_size(sources.images, size)
        profiles = distance.profiles(originals)
        for name, images in views.items():
            same_size = at_size(images, size)
            found[name]["psnr"][str(size)] = psnr(same_size, originals)
            found[name]["lite0"][str(size)] = distance(distance.profiles(same_size), profiles)
    shown = (AUTOENCODED, str(GUESS), str(PICTURED_STEP if PICTURED_STEP in embeddings.steps else embeddings.steps[-1]))
    commit_bytes(picture, encode_png(picture_of(sources, [views[name] for name in shown], generator.resolution)))
    return {
        "n": len(sources),
        "null_loss": null,
        "losses": {str(step): losses[step] for step in embeddings.steps},
        "ratio": {str(step): losses[step] / null for step in embeddings.steps},
        "loss_std": {
            str(step): float(embeddings.losses[embeddings.curve_steps.index(step)].std(correction=0))
            for step in embeddings.steps
        },
        "views": found,
        "picture": picture.name,
        "pictured": ["source", *shown],
    }


def picture_of(sources: LabelledImages, views: Sequence[Tensor], resolution: int) -> Tensor:
    """Rows: sources at `resolution` px, then every view; columns: images of all classes in turn. uint8 (3, H, W)."""
    from torchvision.utils import make_grid

    by_class = sources.labels.argsort(stable=True)
    chosen = by_class[torch.linspace(0, len(sources) - 1, min(PICTURED, len(sources))).round().long()]
    rows = [at_size(sources.images[chosen], resolution), *(view[chosen] for view in views)]
    grid: Tensor = make_grid(torch.cat(rows), nrow=len(chosen), padding=1, pad_value=255)
    times = max(1, PICTURE_SIDE // resolution)
    return grid.repeat_interleave(times, 1).repeat_interleave(times, 2)
