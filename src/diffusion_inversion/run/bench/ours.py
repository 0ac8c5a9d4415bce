"""One step of this package's own path, as `dinv invert` and `dinv sample` take it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...config.settings import InvertSettings
from ...generator.generator import Generator
from ...invert.objective import EvaluationBank, encode
from ...invert.slots import slots_for
from ...invert.trajectory import Trajectory, UnitInputs
from ...sample.denoising import denoise


def inversion_step(
    generator: Generator, side: int, batch: int, tokens: int, *, streams: bool = False
) -> Callable[[], None]:
    """A step of stage 1 on `batch` random images of `side` px, encoded beforehand: the loop body of `invert_batch`.

    With `streams` its draws come from the streams of a CPU on a GPU too, one by one, and nothing is recorded.
    """
    settings = InvertSettings(tokens=tokens)
    latents = encode(generator, torch.rand(batch, 3, side, side) * 2 - 1, batch)
    initial = (0.1 * torch.randn(batch, tokens, generator.text_width)).to(generator.device)
    rows, ids = torch.arange(batch), tuple(f"bench {row}" for row in range(batch))
    bank = EvaluationBank(latents.mean[None], latents.mean[None], rows[None].to(generator.device))  # never used
    inputs = UnitInputs(generator, settings, ids, latents, bank, initial, batch)
    slots, rate = None if streams else slots_for(generator, settings), settings.learning_rate
    run = Trajectory(inputs, rows, rate, 0) if slots is None else slots.begin(inputs, rows, rate, 0)
    return lambda: run.step(0)


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
