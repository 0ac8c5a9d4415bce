"""GAN inversion (paper, section B.2.1): the latent whose image is nearest to a real one, and that image.

z* = argmin_z ||psi(G(z, y)) - psi(x)||^2 / d_f + lambda_pixel ||G(z, y) - x||^2 / d_I

with pixels in [-1, 1], d_I = 3 S^2 of them, and psi the d_f = 1,280 pooled features of EfficientNet-Lite0 at 128 px
(`lite0` of `dinv metrics`). Differs from the paper: it names neither psi, nor the optimizer, its steps or starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...config.commands import GanInvertSettings
from ...config.settings import DataSettings
from ...data.images import LabelledImages, to_model_range
from ...engine.frozen_settings import freeze_settings
from ...engine.lock import run_lock
from ...engine.manifest import timed
from ...engine.state import UnitState, clear_states
from ...errors import PartialError, UsageError
from ...measure.extractors.extractor import Extractor
from ...measure.extractors.lite0 import open_lite0
from ...randomness import generator_for
from ...run.images import open_splits
from ...run.methods import GAN_INVERSION, require_same
from ...run.stages import make_way
from ...sample.drawing import draw_missing
from ...sample.synthetic import Row, SyntheticStore
from .sampling import check_folder, made_from, metadata_row
from .weights import Gan


@dataclass(frozen=True, eq=False)
class Objective:
    """The distance of images to their targets, B of them, each with its starts: rows (B, K)."""

    gan: Gan
    extractor: Extractor
    targets: Float[Tensor, "batch 3 side side"]  # in [-1, 1]
    labels: Int64[Tensor, " batch"]  # the GAN's
    features: Float[Tensor, "batch features"]  # psi of the targets
    pixel_weight: float

    @classmethod
    def of(cls, gan: Gan, extractor: Extractor, targets: Tensor, labels: Tensor, pixel_weight: float) -> Objective:
        """The objective of targets (B, 3, S, S) in [-1, 1] with the GAN's labels (B,)."""
        targets = targets.to(gan.device)
        with torch.no_grad():
            features = psi(extractor, targets)
        return cls(gan, extractor, targets, labels, features, pixel_weight)

    def __call__(self, latents: Float[Tensor, "batch starts latent"]) -> Float[Tensor, "batch starts"]:
        """The distance for every latent; gradients pass through."""
        starts = latents.shape[1]
        images = self.gan.images(latents.flatten(0, 1), self.labels.repeat_interleave(starts))
        of_features = (psi(self.extractor, images).unflatten(0, (-1, starts)) - self.features[:, None]).square()
        of_pixels = (images.unflatten(0, (-1, starts)) - self.targets[:, None]).square()
        total: Tensor = of_features.mean(-1) + self.pixel_weight * of_pixels.flatten(2).mean(-1)
        return total


def psi(extractor: Extractor, images: Tensor) -> Tensor:
    """Features (B, d_f) of images (B, 3, S, S) in [-1, 1]."""
    features: Tensor = extractor.embed((images + 1) * 127.5)
    return features


def optimise(
    objective: Objective, initial: Float[Tensor, "batch starts latent"], settings: GanInvertSettings, state: UnitState
) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, " batch"]]:
    """Adam from every start; the latent of each image's best start and its distance, infinity where none is finite.

    Images and starts share nothing. `state` is saved now and then, and gone on from with the same bits.
    """
    latents = initial.clone().to(objective.gan.device).requires_grad_(True)
    optimizer = torch.optim.Adam([latents], lr=settings.learning_rate)
    first = 0
    if (saved := state.load()) is not None:
        first = int(saved["step"])
        with torch.no_grad():
            latents.copy_(saved["latents"])
        moments = {name: saved[name].to(latents.device) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[latents] = {"step": saved["step"].float(), **moments}
    for step in range(first, settings.steps):
        if step > first:
            state.offer(partial(_progress, step, latents, optimizer))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 + math.cos(math.pi * step / settings.steps)) / 2
        optimizer.zero_grad()
        objective(latents).sum().backward()
        optimizer.step()
    with torch.no_grad():
        distances = objective(latents).nan_to_num(nan=math.inf)
        best = distances.argmin(1)
        return latents[torch.arange(len(latents)), best].detach(), distances.amin(1)


def _progress(step: int, latents: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = optimizer.state[latents]
    kept = {name: moments[name] for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.tensor(step), "latents": latents, **kept}


def invert_data(gan: Gan, data: DataSettings, out: Path, settings: GanInvertSettings, *, anew: bool = False) -> float:
    """`invert_gan` over the training images of DATA, which `out` records; the same results.

    `anew` deletes first what is there, once the images are found to fit and there is room. Raises as `invert_gan`, and
    DataError where the GAN was trained on a test image.
    """
    check_folder(out)
    splits = open_splits(out, data)
    gan.refuse_tested(splits.test.ids, splits.test.hashes)
    _class_numbers(gan, splits.train)
    extractor = open_lite0(gan.device)
    make_way({out: len(splits.train)}, gan.size, anew=anew)
    return invert_gan(gan, splits.train, extractor, out, settings)


def invert_gan(gan: Gan, images: LabelledImages, extractor: Extractor, out: Path, settings: GanInvertSettings) -> float:
    """Write G(z*, y) for every image below `out`/synthetic; return their mean PSNR to the images in dB.

    Durable as stage 1: images are committed in units, a long unit is saved midway, and the same call goes on with the
    same bits; images that are new are inverted alone. Raises UsageError (a class that the GAN does not know, images
    smaller than its own), ConfigMismatchError (`out` was made otherwise, or images changed), PartialError (distances
    that are not finite), LockedError, DiskError.
    """
    check_folder(out)
    numbers = _class_numbers(gan, images)
    seen = images.resized(gan.size)
    row_of = {image_id: row for row, image_id in enumerate(images.ids)}
    store = SyntheticStore(out, images.class_names)
    with run_lock(out), timed(store.manifest):
        described = made_from(
            gan, GAN_INVERSION, settings, images.class_names,
            extractor={"name": extractor.name, "weights_sha256": extractor.weights_sha256},
        )  # fmt: skip
        freeze_settings(out, "sample", described, begun=bool(store.manifest.units()))
        require_same(images, store, "source_id", "inverted")
        make_way({out: len(images)}, gan.size, anew=False)

        def draw(rows: list[int]) -> Tensor:
            batch = seen.subset(rows)
            labels = torch.tensor([numbers[images.class_names[label]] for label in batch.labels.tolist()])
            state = UnitState(store.folder, batch.ids, [described, batch.hashes, labels.tolist()])
            objective = Objective.of(gan, extractor, to_model_range(batch.images), labels, settings.pixel_weight)
            latents, distances = optimise(objective, starts(gan, batch.ids, settings), settings, state)
            if lost := [i for i, found in zip(batch.ids, distances.isfinite().tolist(), strict=True) if not found]:
                raise PartialError(
                    f"{lost[0]}: its distance is not finite from any start ({len(lost)} such images). What is "
                    "committed is kept. Begin another folder with a lower --learning-rate."
                )
            with torch.no_grad():
                return gan.images(latents, labels).cpu()

        def describe(row: int) -> Row:
            return metadata_row(
                gan, GAN_INVERSION, settings.seed, images.ids[row], int(images.labels[row]),
                version=images.hashes[row][:16], steps=settings.steps,
            )  # fmt: skip

        draw_missing(
            store, row_of, settings, gan.size, None, plan=lambda image_id, variant, attempt: row_of[image_id],
            draw=draw, describe=describe,
        )  # fmt: skip
        clear_states(store.folder)
        made, sources = store.read(), store.sources()
    real = seen.images[[row_of[source] for source, *_ in sources]]
    return psnr(made.images, real)


def _class_numbers(gan: Gan, images: LabelledImages) -> dict[str, int]:
    """The GAN's numbers of the images' classes. Raises UsageError for one that it does not know, and smaller images."""
    numbers = gan.labels_of([images.class_names[label] for label in images.labels.unique()], images.name)
    if images.size < gan.size:
        raise UsageError(
            f"{images.name}: images of {images.size} px, smaller than the {gan.size} px of {gan.name}. Load them at "
            f"--size {gan.size}, or train a GAN of their side."
        )
    return numbers


def starts(gan: Gan, ids: tuple[str, ...], settings: GanInvertSettings) -> Float[Tensor, "batch starts latent"]:
    """Latents N(0, I) to start from, by image id and number."""

    def one(image_id: str) -> Iterator[Tensor]:
        for number in range(settings.starts):
            yield torch.randn(gan.latent_dim, generator=generator_for(settings.seed, "gan-invert", image_id, number))

    return torch.stack([torch.stack(list(one(image_id))) for image_id in ids])


def psnr(images: Tensor, real: Tensor) -> float:
    """Mean over N images uint8 (N, 3, S, S) of 10 log10(255^2 / MSE), in dB; equal ones count as an MSE of 1/12."""
    squares = torch.stack([(a.float() - b.float()).square().mean() for a, b in zip(images, real, strict=True)])
    return float((10 * torch.log10(255**2 / squares.clamp(min=1 / 12))).mean())
