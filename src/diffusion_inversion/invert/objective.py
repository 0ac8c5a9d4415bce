"""What stage 1 minimises (paper, section 3.1): the denoising loss of each image, its gradient, its measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from ..config.settings import InvertSettings
from ..generator.generator import Generator, Images, LatentDistribution, Latents, Timesteps, Tokens
from ..randomness import generator_for


def encode(generator: Generator, pixels: Images, at_once: int) -> LatentDistribution:
    """The latent distribution of all images, `at_once` images in memory at a time."""
    parts = [generator.encode(chunk) for chunk in pixels.split(at_once)]
    return LatentDistribution(torch.cat([part.mean for part in parts]), torch.cat([part.logvar for part in parts]))


def stage1_loss(
    generator: Generator, latents: Latents, noise: Latents, timesteps: Timesteps, vectors: Tokens
) -> Float[Tensor, " batch"]:
    """Denoising loss of each image (B,): mean squared error of the model's own training target (section 3.1)."""
    noisy_latents = generator.add_noise(latents, noise, timesteps)
    prediction = generator.predict(noisy_latents, timesteps, vectors)
    return (prediction - generator.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))


def loss_scale(generator: Generator, latents: Latents, attempt: int = 0) -> float:
    """What the loss is multiplied by before the backward pass: a power of two, so that dividing again is exact.

    1 but in float16, where the gradient of a mean over thousands of latent cells falls below the smallest numbers:
    there about the number of cells, so that the backward pass starts from numbers near 1. A power of 16 less at each
    further attempt, where the first may have overflowed. It is the same for all images, which so stay independent.
    """
    if generator.dtype != torch.float16:
        return 1.0
    return float(2.0 ** max(0, round(math.log2(latents[0].numel())) - 4 * attempt))


def gradients(
    generator: Generator,
    latents: Latents,
    noise: Latents,
    timesteps: Timesteps,
    vectors: Tokens,
    at_once: int,
    scale: float = 1.0,
) -> tuple[Float[Tensor, " batch"], Tokens]:
    """The loss of each image (B,) and its gradient to the image's vector (B, tokens, width), float32.

    `at_once` images are in memory at a time. An image's gradient does not depend on the others: the losses are summed.
    """
    losses, found = [], []
    for start in range(0, len(vectors), at_once):
        rows = slice(start, start + at_once)
        c = vectors[rows].detach().requires_grad_(True)
        loss = stage1_loss(generator, latents[rows], noise[rows], timesteps[rows], c)
        (loss.sum() * scale).backward()
        assert c.grad is not None
        losses.append(loss.detach())
        found.append(c.grad / scale)
    return torch.cat(losses), torch.cat(found)


def draw(
    generator: Generator, latent_dist: LatentDistribution, streams: Sequence[torch.Generator]
) -> tuple[Latents, Latents, Timesteps]:
    """Latents sampled from the encoder's distribution, noise and a uniform timestep, each image from its own stream."""
    shape = latent_dist.mean.shape[1:]
    normal = torch.stack([torch.randn(2, *shape, generator=stream) for stream in streams]).to(generator.device)
    timesteps = torch.cat([torch.randint(generator.training_timesteps, (1,), generator=stream) for stream in streams])
    return latent_dist.sample(normal[:, 0]), normal[:, 1], timesteps.to(generator.device)


def rows_of(latent_dist: LatentDistribution, rows: Int64[Tensor, " rows"]) -> LatentDistribution:
    """The distributions of these images."""
    rows = rows.to(latent_dist.mean.device)
    return LatentDistribution(latent_dist.mean[rows], latent_dist.logvar[rows])


@dataclass(frozen=True)
class EvaluationBank:
    """Fixed draws that measure each image's loss: K latents and noises (K, B, C, h, w), timesteps (K, B).

    Timesteps are stratified over the schedule, so that K = 8 draws already cover it.
    """

    latents: Float[Tensor, "draws batch channels height width"]
    noise: Float[Tensor, "draws batch channels height width"]
    timesteps: Int[Tensor, "draws batch"]

    @classmethod
    def draw(
        cls, generator: Generator, latent_dist: LatentDistribution, ids: Sequence[str], settings: InvertSettings
    ) -> EvaluationBank:
        streams = [generator_for(settings.seed, "bank", image_id) for image_id in ids]
        latents, noise, timesteps = [], [], []
        stratum = generator.training_timesteps / settings.eval_draws
        for k in range(settings.eval_draws):
            z, eps, _ = draw(generator, latent_dist, streams)
            latents.append(z)
            noise.append(eps)
            offsets = torch.cat([torch.rand(1, generator=stream) for stream in streams])
            timesteps.append(((k + offsets) * stratum).long().clamp(max=generator.training_timesteps - 1))
        return cls(torch.stack(latents), torch.stack(noise), torch.stack(timesteps).to(generator.device))

    def rows(self, rows: Int64[Tensor, " rows"]) -> EvaluationBank:
        """The draws of these images."""
        rows = rows.to(self.latents.device)
        return EvaluationBank(self.latents[:, rows], self.noise[:, rows], self.timesteps[:, rows])

    @torch.no_grad()
    def loss(self, generator: Generator, vectors: Tokens, at_once: int) -> Float32[Tensor, " batch"]:
        """Mean loss of each image over the bank: (B,) float32 on the CPU; `at_once` images in memory at a time."""
        parts = [slice(start, start + at_once) for start in range(0, len(vectors), at_once)]
        rows = [
            torch.cat([stage1_loss(generator, z[part], eps[part], t[part], vectors[part]) for part in parts])
            for z, eps, t in zip(self.latents, self.noise, self.timesteps, strict=True)
        ]
        return torch.stack(rows).mean(0).cpu()
