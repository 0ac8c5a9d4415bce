"""Training of the GAN: hinge losses, Adam, an averaged generator; the same command goes on with the same bits.

Not a `Task` of pretrain/loop.py: that is one loss and one step of Muon over all weights, here two networks take turns.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config.commands import GanSettings
from ...data.images import LabelledImages, to_model_range
from ...engine.frozen_settings import freeze_settings
from ...engine.lock import run_lock
from ...engine.progress import track
from ...engine.signals import finishing
from ...errors import DinvError, UsageError
from ...generator.device import describe
from ...randomness import generator_for
from .. import checkpoint
from ..log import TrainingLog
from .diffaugment import augment, draw
from .networks import SIDES, GanGenerator, ProjectionDiscriminator, standing_statistics
from .weights import WEIGHTS, Gan, load_gan, save_gan

BETAS = (0.0, 0.999)  # Adam's (DiffAugment's BigGAN on CIFAR-10)
STATE, LOG = "training.state.safetensors", "gan.log.tsv"
LOG_EVERY = 100  # steps of the generator
SAVE_SECONDS = 120.0
STATISTICS_BATCHES = 32  # of the generator's batch norm, with the averaged weights
COLUMNS = ("discriminator", "generator")


def discriminator_hinge(real: Tensor, generated: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))) (arXiv 1802.05957, eq. 16)."""
    return F.relu(1 - real).mean() + F.relu(1 + generated).mean()


def generator_hinge(generated: Tensor) -> Tensor:
    """-E D(G(z)) (arXiv 1802.05957, eq. 17)."""
    return -generated.mean()


class Players:
    """Both networks, their optimizers and the averaged generator. What a step draws depends on (seed, step) alone."""

    def __init__(self, images: LabelledImages, settings: GanSettings, device: torch.device) -> None:
        classes = len(images.class_names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            generator = GanGenerator(classes, images.size, settings.width, settings.latent_dim)
            discriminator = ProjectionDiscriminator(classes, images.size, settings.width)
        self.settings, self.device = settings, device
        self.generator, self.discriminator = generator.to(device), discriminator.to(device)
        self.ema = copy.deepcopy(generator).requires_grad_(False)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(part.parameters(), lr=settings.learning_rate, betas=BETAS)
            for name, part in (("generator", self.generator), ("discriminator", self.discriminator))
        }
        self.pixels, self.labels = images.images, images.labels

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is saved, beside the optimizers."""
        return {"generator": self.generator, "discriminator": self.discriminator, "ema": self.ema}

    def step(self, step: int) -> Tensor:
        """The discriminator's steps and the generator's one; returns `COLUMNS`, the last of each, without waiting."""
        for turn in range(self.settings.discriminator_steps):
            discriminator = self.discriminator_step(generator_for(self.settings.seed, "gan-judge", step, turn))
        generator = self.generator_step(generator_for(self.settings.seed, "gan-generator", step))
        self._average(step)
        return torch.stack([discriminator, generator])

    def discriminator_step(self, stream: torch.Generator) -> Tensor:
        """One Adam step on the hinge loss; returns the loss before it.

        Real and generated images of one batch have the same labels and the same augmentation.
        """
        rows, latents, labels = self._batch(stream)
        draws = draw(len(rows), self.pixels.shape[-1], stream)
        real = to_model_range(self.pixels[rows].to(self.device))
        with torch.no_grad():
            generated = self.generator(latents, labels)
        seen = torch.cat([augment(images, draws, self.settings.augmentations) for images in (real, generated)])
        loss = discriminator_hinge(*self.discriminator(seen, labels.repeat(2)).chunk(2))
        return self._descend("discriminator", loss)

    def generator_step(self, stream: torch.Generator) -> Tensor:
        """One Adam step on the hinge loss, through the augmentation; returns the loss before it."""
        rows, latents, labels = self._batch(stream)
        draws = draw(len(rows), self.pixels.shape[-1], stream)
        generated = self.generator(latents, labels)
        self.discriminator.requires_grad_(False)
        loss = generator_hinge(self.discriminator(augment(generated, draws, self.settings.augmentations), labels))
        loss = self._descend("generator", loss)
        self.discriminator.requires_grad_(True)
        return loss

    def _batch(self, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of a batch (B,); on the device latents (B, latent_dim) and the labels (B,) of the rows."""
        size = self.settings.batch_size
        rows = torch.randint(len(self.labels), (size,), generator=stream)
        latents = torch.randn(size, self.settings.latent_dim, generator=stream)
        return rows, latents.to(self.device), self.labels[rows].to(self.device)

    def _descend(self, name: str, loss: Tensor) -> Tensor:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        return loss.detach()

    @torch.no_grad()
    def _average(self, step: int) -> None:
        weight = 1 - min(self.settings.ema_decay, (1 + step) / (10 + step))
        for average, value in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
            average.lerp_(value, weight)

    def result(self) -> GanGenerator:
        """The averaged generator on the CPU, its batch norm's statistics those of its own maps."""
        generator = copy.deepcopy(self.ema)
        streams = (generator_for(self.settings.seed, "gan-statistics", batch) for batch in range(STATISTICS_BATCHES))
        batches = map(self._batch, streams)
        standing_statistics(generator, ((latents, labels) for _, latents, labels in batches))
        return generator.cpu()


def train_gan(images: LabelledImages, folder: Path, settings: GanSettings, device: torch.device) -> Gan:
    """Train on `images` and write FOLDER/gan.safetensors; the same call goes on where a killed one saved.

    Raises UsageError (a side that is not 32 or 64 px), ConfigMismatchError (the folder was made otherwise),
    LockedError, DiskError, DinvError (a loss that is not finite), KeyboardInterrupt after a signal, the state saved.
    """
    check_side(images)
    with run_lock(folder):
        path = folder / WEIGHTS
        freeze_settings(folder, "gan", made_from(images, settings), begun=(folder / STATE).is_file() or path.is_file())
        if not path.is_file():
            players = Players(images, settings, device)
            _play(players, folder)
            save_gan(players.result(), images, path)
    return load_gan(folder, device)


def check_side(images: LabelledImages) -> None:
    """Raise UsageError for images of a side that the networks do not have."""
    if images.size not in SIDES:
        smaller = [side for side in SIDES if side <= images.size]
        raise UsageError(
            f"{images.name}: images of {images.size} px; the GAN has {SIDES[0]} or {SIDES[1]}. Load them at one of "
            f"these: --size {max(smaller, default=SIDES[0])}."
        )


def made_from(images: LabelledImages, settings: GanSettings) -> dict[str, Any]:
    """Everything the weights depend on, as JSON data."""
    return {
        "settings": settings.described(),
        "size": images.size,
        "class_names": list(images.class_names),
        "images": {"name": images.name, "count": len(images), "sha256": images.digest, "licence": images.licence},
    }


def _play(players: Players, folder: Path) -> None:
    """Every step that is left; the state is in the folder when this returns or raises."""
    state, steps, device = folder / STATE, players.settings.steps, players.device
    progress = checkpoint.restore(state, players.modules, players.optimizers, None)
    if progress.step >= steps:
        return
    log = TrainingLog(folder / LOG, COLUMNS, progress.step, describe(device), echo=False)
    started, saved_at = time.monotonic() - progress.seconds, time.monotonic()
    sums, count = torch.zeros(len(COLUMNS), device=device), 0
    between = True  # two steps: a second signal can come within one

    def save() -> None:
        checkpoint.save(state, players.modules, players.optimizers, progress, None)

    with track("train GAN", steps, "steps") as advance:
        advance(progress.step)
        try:
            while progress.step < steps:
                with finishing():
                    between = False
                    sums += players.step(progress.step)
                    progress.step, count = progress.step + 1, count + 1
                    progress.samples += players.settings.batch_size
                    progress.seconds = time.monotonic() - started
                    between = True
                    advance(1)
                last = progress.step == steps
                if last or progress.step % LOG_EVERY == 0:
                    means = dict(zip(COLUMNS, (sums / count).tolist(), strict=True))
                    if not all(map(math.isfinite, means.values())):
                        raise DinvError(
                            f"{folder}: the loss of the GAN is no longer finite at step {progress.step}. Begin another "
                            "folder with a lower --learning-rate."
                        )
                    log.write(progress.step, progress.samples, progress.seconds, **means)
                    sums, count = torch.zeros_like(sums), 0
                if time.monotonic() - saved_at >= SAVE_SECONDS and not last:
                    save()
                    saved_at = time.monotonic()
        except KeyboardInterrupt:
            if between:
                save()
            raise
    save()
