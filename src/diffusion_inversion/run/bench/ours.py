"""One step of this package's own path, as `dinv invert` and `dinv sample` take it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...config.settings import InvertSettings
from ...generator.generator import Generator
from ...invert.objective import draw, stage1_loss
from ...randomness import generator_for
from ...sample.denoising import denoise


def inversion_step(generator: Generator, side: int, batch: int, tokens: int) -> Callable[[], None]:
    """A step of stage 1 on `batch` random images of `side` px, encoded beforehand: the loop body of `invert_batch`."""
    latent_dist = generator.encode(torch.rand(batch, 3, side, side) * 2 - 1)
    streams = [generator_for(0, "bench", row) for row in range(batch)]
    settings = InvertSettings(tokens=tokens)
    vectors = (0.1 * torch.randn(batch, tokens, generator.text_width)).to(generator.device).requires_grad_(True)
    optimizer = torch.optim.AdamW([vectors], lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def step() -> None:
        latents, noise, timesteps = draw(generator, latent_dist, streams)
        loss = stage1_loss(generator, latents, noise, timesteps, vectors)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimizer.step()

    return step


def sampling_step(
    generator: Generator, side: int, batch: int, tokens: int, guidance_scale: float
) -> Callable[[], None]:
    """One denoising step of stage 2 at `side` px; a guidance scale other than 1 takes two forwards."""
    cells = side // generator.vae_factor
    noise = torch.randn(batch, generator.latent_channels, cells, cells)
    conditional, unconditional = 0.1 * torch.randn(2, batch, tokens, generator.text_width)
    scales = torch.full((batch,), guidance_scale)

    def step() -> None:
        denoise(generator, noise, conditional, unconditional, scales, "ddim", 1)

    return step
