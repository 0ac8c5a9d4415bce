"""Stage 1 (paper, section 3.1): learn one conditioning vector per image, everything else frozen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .config import InvertSettings
from .embeddings import SCHEMA, Embeddings, EmbeddingStore, Shard
from .engine.progress import track
from .engine.store import claim_run
from .errors import PartialError, UsageError
from .generator import Generator, LatentDistribution
from .images import LabelledImages
from .randomness import generator_for

CURVE_POINTS = 4
EMPTY_PROMPT = ""


def invert(
    images: LabelledImages, generator: Generator, out: str | Path, settings: InvertSettings | None = None
) -> Embeddings:
    """Learn a vector c (tokens x width) for every image and store it below `out`; return all stored vectors.

    c* = argmin_c E_{eps, t} ||eps - eps_theta(z_t, t, c)||^2 (section 3.1), each image on its own, AdamW at a
    constant rate. A v-prediction model is optimised on its own training target instead, since at its pure-noise
    end the noise prediction tells nothing. Images already in `out` are not learned again, so a killed call goes on.

    Raises UsageError (bad resolution or tokens), ConfigMismatchError (`out` was made otherwise), PartialError
    (vectors of some images are not finite; the rest is kept), DiskError.
    """
    settings = settings or InvertSettings()
    out = Path(out)
    resolution = settings.resolution or generator.resolution
    if resolution % generator.vae_factor:
        raise UsageError(f"resolution={resolution}: not a multiple of {generator.vae_factor}, which the VAE needs.")
    claim_run(out, "invert", fingerprint(images, generator, settings, resolution))
    store = EmbeddingStore(out)
    done = store.done()
    todo = [row for row in range(len(images)) if images.ids[row] not in done]
    points = curve_steps(settings)
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "class_names": list(images.class_names),
        "steps": list(settings.checkpoints),
        "curve_steps": list(points),
        "generator_hash": generator.hash,
        "resolution": resolution,
        "image_size": images.native_size,
    }
    bad: list[str] = []
    pixels = to_model_range(images.resized(resolution).images)
    initial = initial_vectors(images, pixels, generator, settings)
    with track("invert", len(todo) * max(1, settings.steps), "image-steps") as advance:
        for start in range(0, len(todo), settings.batch_size):
            rows = todo[start : start + settings.batch_size]
            ids = tuple(images.ids[row] for row in rows)
            result = invert_batch(generator, pixels[rows], initial[rows], ids, settings, advance)
            finite = result.vectors.isfinite().all(dim=-1).all(dim=-1).all(dim=0)
            keep = finite.nonzero()[:, 0].tolist()
            bad += [ids[i] for i in range(len(ids)) if i not in set(keep)]
            if keep:
                shard = Shard(
                    tuple(ids[i] for i in keep),
                    images.labels[rows][keep],
                    result.vectors[:, keep],
                    result.losses[:, keep],
                    result.null_losses[keep],
                )
                store.commit(shard, header)
    if bad:
        raise PartialError(
            f"{len(bad)} of {len(images)} images gave vectors that are not finite (first: {bad[0]}); the others are "
            "kept. Run again with a lower --learning-rate into another folder, or with --dtype float32."
        )
    return store.read()


def fingerprint(
    images: LabelledImages, generator: Generator, settings: InvertSettings, resolution: int
) -> dict[str, Any]:
    """Everything the learned vectors depend on, as JSON data."""
    data = hashlib.sha256("\n".join(f"{i} {h}" for i, h in zip(images.ids, images.hashes, strict=True)).encode())
    return {
        "schema": SCHEMA,
        "settings": settings.model_dump(mode="json"),
        "resolution": resolution,
        "data": {"images": len(images), "sha256": data.hexdigest()},
        "generator": generator.record,
    }


def curve_steps(settings: InvertSettings) -> tuple[int, ...]:
    """Steps at which the loss on the evaluation bank is measured: the start, quarters, and every kept step."""
    quarters = {round(settings.steps * k / CURVE_POINTS) for k in range(CURVE_POINTS + 1)}
    return tuple(sorted(quarters | set(settings.checkpoints)))


def to_model_range(images: Tensor) -> Tensor:
    """uint8 [0, 255] => float32 [-1, 1]."""
    return images.float() / 127.5 - 1


def initial_vectors(
    images: LabelledImages, pixels: Tensor, generator: Generator, settings: InvertSettings
) -> Float[Tensor, "images tokens width"]:
    """Starting vectors (N, tokens, width) on the CPU, by `settings.init`.

    warm: the adapter's tokens of the image, or the class name's text tokens where the generator has no adapter;
    class-mean: the class's mean of those; random: uniform in +-0.1 (the reference code's +-1 / sqrt(100)).
    """
    tokens, width = settings.tokens, generator.text_width
    if settings.init == "random":
        draws = [torch.rand(tokens, width, generator=generator_for(settings.seed, "init", i)) for i in images.ids]
        return 0.2 * torch.stack(draws) - 0.1
    if generator.adapter is not None:
        if tokens != generator.adapter.tokens:
            raise UsageError(
                f"tokens={tokens}: the adapter of {generator.name} gives {generator.adapter.tokens}. "
                "Use that many, or --init random."
            )
        guesses = torch.cat([generator.image_tokens(chunk).cpu() for chunk in pixels.split(settings.batch_size)])
    else:
        by_class = generator.text_tokens(list(images.class_names)).cpu()
        if tokens > by_class.shape[1]:
            raise UsageError(
                f"tokens={tokens}: more than the text encoder's {by_class.shape[1]}. Use fewer, or --init random."
            )
        guesses = by_class[images.labels, :tokens]
    if settings.init == "class-mean":
        for label in images.labels.unique():
            guesses[images.labels == label] = guesses[images.labels == label].mean(0)
    return guesses


@dataclass(frozen=True)
class BatchResult:
    """vectors (S, B, tokens, width), losses (P, B), null_losses (B,), all float32 on the CPU."""

    vectors: Tensor
    losses: Tensor
    null_losses: Tensor


def invert_batch(
    generator: Generator,
    pixels: Float[Tensor, "batch 3 height width"],
    initial: Float[Tensor, "batch tokens width"],
    ids: tuple[str, ...],
    settings: InvertSettings,
    advance: Any = lambda n: None,
) -> BatchResult:
    """Optimise the vectors of a batch side by side. They share nothing: AdamW works element by element."""
    latent_dist = generator.encode(pixels)  # once; a fresh sample at every step
    streams = [generator_for(settings.seed, "invert", image_id) for image_id in ids]
    bank = EvaluationBank.draw(generator, latent_dist, ids, settings)
    vectors = initial.to(generator.device).clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([vectors], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    points = curve_steps(settings)
    kept, losses = [], []
    for step in range(settings.steps + 1):
        if step in points:
            losses.append(bank.loss(generator, vectors.detach()))
        if step in settings.checkpoints:
            kept.append(vectors.detach().cpu().clone())
        if step == settings.steps:
            break
        latents, noise, timesteps = draw(generator, latent_dist, streams)
        loss = stage1_loss(generator, latents, noise, timesteps, vectors)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()  # a sum, so that each image's gradient does not depend on the batch size
        optimizer.step()
        advance(len(ids))
    empty = generator.text_tokens([EMPTY_PROMPT]).expand(len(ids), -1, -1)
    return BatchResult(torch.stack(kept), torch.stack(losses), bank.loss(generator, empty))


def stage1_loss(generator: Generator, latents: Tensor, noise: Tensor, timesteps: Tensor, vectors: Tensor) -> Tensor:
    """Denoising loss of each image (B,): mean squared error of the model's own training target (section 3.1)."""
    noisy_latents = generator.add_noise(latents, noise, timesteps)
    prediction = generator.predict(noisy_latents, timesteps, vectors)
    return (prediction - generator.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))


def draw(
    generator: Generator, latent_dist: LatentDistribution, streams: list[torch.Generator]
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents sampled from the encoder's distribution, noise and a uniform timestep, each image from its own stream."""
    shape = latent_dist.mean.shape[1:]
    normal = torch.stack([torch.randn(2, *shape, generator=stream) for stream in streams]).to(generator.device)
    timesteps = torch.cat([torch.randint(generator.training_timesteps, (1,), generator=stream) for stream in streams])
    return latent_dist.sample(normal[:, 0]), normal[:, 1], timesteps.to(generator.device)


@dataclass(frozen=True)
class EvaluationBank:
    """Fixed draws that measure each image's loss: K latents and noises (K, B, C, h, w), timesteps (K, B).

    Timesteps are stratified over the schedule, so that K = 8 draws already cover it.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor

    @classmethod
    def draw(
        cls, generator: Generator, latent_dist: LatentDistribution, ids: tuple[str, ...], settings: InvertSettings
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

    @torch.no_grad()
    def loss(self, generator: Generator, vectors: Tensor) -> Tensor:
        """Mean loss of each image over the bank: (B,) float32 on the CPU."""
        rows = [
            stage1_loss(generator, z, eps, t, vectors)
            for z, eps, t in zip(self.latents, self.noise, self.timesteps, strict=True)
        ]
        return torch.stack(rows).mean(0).cpu()
