"""Stage 1 (paper, section 3.1): learn one conditioning vector per image, everything else frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from .config import InvertSettings
from .embeddings import SCHEMA, Embeddings, EmbeddingStore, Shard
from .engine.claim import claim_run, listed
from .engine.lock import run_lock
from .engine.progress import track
from .engine.state import UnitState, clear_states
from .engine.units import each_unit
from .errors import ConfigMismatchError, PartialError, UsageError
from .forgotten import forgotten_rows
from .generator import Generator, Images, LatentDistribution, Latents, Timesteps, Tokens
from .images import LabelledImages, to_model_range
from .randomness import generator_for

CURVE_POINTS = 4
EMPTY_PROMPT = ""


def invert(
    images: LabelledImages, generator: Generator, out: str | Path, settings: InvertSettings | None = None
) -> Embeddings:
    """Learn a vector c (tokens x width) for every image and store it below `out`; return all stored vectors.

    c* = argmin_c E_{eps, t} ||eps - eps_theta(z_t, t, c)||^2 (section 3.1), each image on its own, AdamW at a
    constant rate. A v-prediction model is optimised on its own training target instead, since at its pure-noise
    end the noise prediction tells nothing. Images already in `out` are not learned again, so a killed call goes on,
    and a call with more images learns the new ones.

    Raises UsageError (bad resolution or tokens), ConfigMismatchError (`out` was made otherwise, or images in it
    changed), PartialError (vectors of some images are not finite; the rest is kept), LockedError, DiskError.
    """
    settings = settings or InvertSettings()
    resolution = settings.resolution or generator.resolution
    check(generator, settings, resolution)
    run = Path(out)
    with run_lock(run):
        store = EmbeddingStore(run)
        tried = store.images()
        described = fingerprint(images, generator, settings, resolution)
        claim_run(run, "invert", described, begun=store.begun())
        require_same_images(images, tried, run)
        if gone := forgotten_rows(images, run):
            raise UsageError(
                f"{images.ids[gone[0]]}: {run} was told to forget it. Leave such images out ({len(gone)})."
            )
        store.begin(
            {
                "class_names": list(images.class_names),
                "steps": list(settings.checkpoints),
                "curve_steps": list(curve_steps(settings)),
                "generator_hash": generator.hash,
                "resolution": resolution,
                "image_size": images.size,
            }
        )
        row_of = {image_id: row for row, image_id in enumerate(images.ids)}
        left = len(images) - len(tried)
        means = class_means(images, generator, settings, resolution) if left and settings.init == "class-mean" else None
        with track("invert", left * max(1, settings.steps), "image-steps") as advance:

            def learn(unit: tuple[str, ...]) -> None:
                batch = images.subset([row_of[image_id] for image_id in unit])
                pixels = to_model_range(batch.resized(resolution).images)
                initial = means[batch.labels] if means is not None else guesses(batch, pixels, generator, settings)
                state = UnitState(store.folder, unit, [described, batch.hashes, batch.labels.tolist()])
                result = invert_batch(generator, pixels, initial, batch.ids, settings, advance, state)
                shard = Shard(unit, batch.labels, result.vectors, result.losses, result.null_losses)
                store.commit(shard, batch)
                state.clear()

            each_unit(run, images.ids, store.manifest, settings.batch_size, learn)
        store.finish()
        clear_states(store.folder)
    failed = store.failed()
    if left and failed:
        raise PartialError(
            f"{len(failed)} of {len(images)} images gave vectors that are not finite (first: {failed[0]}); the others "
            "are kept. Run the same command again to go on without them, or begin another folder with a lower "
            "--invert-learning-rate or --dtype float32."
        )
    return store.read()


def require_same_images(images: LabelledImages, tried: dict[str, tuple[str, int]], run: Path) -> None:
    """Raise ConfigMismatchError where images that were learned are gone or have other pixels or another label.

    Images that are new are welcome: they alone are learned.
    """
    now = dict(zip(images.ids, zip(images.hashes, images.labels.tolist(), strict=True), strict=True))
    lines = []
    for image_id, (content, label) in tried.items():
        if image_id not in now:
            lines.append(f"{image_id}: not in the data any more, or not in the selection")
        elif now[image_id][0] != content:
            lines.append(f"{image_id}: other pixels")
        elif now[image_id][1] != label:
            lines.append(f"{image_id}: was of class {images.class_names[label]}, now another")
    if lines:
        raise ConfigMismatchError(
            f"{run}: {len(lines)} of the {len(tried)} images that were learned changed:\n{listed(lines)}\n"
            f"Restore the data and the options that select it, or choose another run folder. Or take them out, with "
            f"all that was made from them: `dinv forget {run} --source ID` for one, `--changed` for all of these."
        )


def check(generator: Generator, settings: InvertSettings, resolution: int) -> None:
    """Raise UsageError for settings that this generator cannot do, before anything is computed or claimed."""
    if resolution % generator.vae_factor:
        factor = generator.vae_factor
        raise UsageError(
            f"resolution={resolution}: not a multiple of {factor}, which the VAE of {generator.name} needs. "
            f"Use --resolution {max(1, round(resolution / factor)) * factor}."
        )
    if settings.init == "random":
        return
    if generator.adapter is not None and settings.tokens != generator.adapter.tokens:
        raise UsageError(
            f"tokens={settings.tokens}: the adapter of {generator.name} gives {generator.adapter.tokens}. "
            "Use that many, or --init random."
        )
    if settings.tokens > generator.tokenizer.model_max_length:
        raise UsageError(
            f"tokens={settings.tokens}: more than the text encoder's {generator.tokenizer.model_max_length}. "
            "Use fewer, or --init random."
        )


def fingerprint(
    images: LabelledImages, generator: Generator, settings: InvertSettings, resolution: int
) -> dict[str, Any]:
    """Everything the learned vectors depend on, but the images, as JSON data."""
    return {
        "schema": SCHEMA,
        "settings": settings.model_dump(mode="json"),
        "resolution": resolution,
        "class_names": list(images.class_names),
        "image_size": images.size,
        "generator": generator.record,
    }


def curve_steps(settings: InvertSettings) -> tuple[int, ...]:
    """Steps at which the loss on the evaluation bank is measured: the start, quarters, and every kept step."""
    quarters = {round(settings.steps * k / CURVE_POINTS) for k in range(CURVE_POINTS + 1)}
    return tuple(sorted(quarters | set(settings.checkpoints)))


def guesses(
    images: LabelledImages, pixels: Images, generator: Generator, settings: InvertSettings
) -> Float32[Tensor, "images tokens features"]:
    """Starting vectors (N, tokens, width) on the CPU for one batch.

    warm: the adapter's tokens of the image, or the class name's text tokens where the generator has no adapter;
    random: uniform in +-0.1 (the reference code's +-1 / sqrt(100)).
    """
    if settings.init == "random":
        shape = (settings.tokens, generator.text_width)
        draws = [torch.rand(shape, generator=generator_for(settings.seed, "init", i)) for i in images.ids]
        return 0.2 * torch.stack(draws) - 0.1
    if generator.adapter is not None:
        return generator.image_tokens(pixels).cpu()
    return generator.text_tokens(list(images.class_names)).cpu()[images.labels, : settings.tokens]


def class_means(
    images: LabelledImages, generator: Generator, settings: InvertSettings, resolution: int
) -> Float32[Tensor, "classes tokens features"]:
    """Mean of the warm guesses over each class (class-mean start); zero for a class without images."""
    sums = torch.zeros(len(images.class_names), settings.tokens, generator.text_width)
    for start in range(0, len(images), settings.batch_size):
        batch = images.subset(range(start, min(start + settings.batch_size, len(images))))
        pixels = to_model_range(batch.resized(resolution).images)
        sums.index_add_(0, batch.labels, guesses(batch, pixels, generator, settings))
    counts = torch.bincount(images.labels, minlength=len(images.class_names)).clamp(min=1)
    return sums / counts[:, None, None]


@dataclass(frozen=True)
class BatchResult:
    """vectors (S, B, tokens, width), losses (P, B), null_losses (B,), all float32 on the CPU."""

    vectors: Float32[Tensor, "steps batch tokens features"]
    losses: Float32[Tensor, "points batch"]
    null_losses: Float32[Tensor, " batch"]


def invert_batch(
    generator: Generator,
    pixels: Images,
    initial: Tokens,
    ids: tuple[str, ...],
    settings: InvertSettings,
    advance: Callable[[int], None] = lambda n: None,
    state: UnitState | None = None,
) -> BatchResult:
    """Optimise the vectors of a batch side by side. They share nothing: AdamW works element by element.

    With `state` a long batch is saved now and then, and goes on from there with the same bits.
    """
    latent_dist = generator.encode(pixels)  # once; a fresh sample at every step
    streams = [generator_for(settings.seed, "invert", image_id) for image_id in ids]
    bank = EvaluationBank.draw(generator, latent_dist, ids, settings)
    vectors = initial.to(generator.device).clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([vectors], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    points = curve_steps(settings)
    kept: list[Tensor] = []
    losses: list[Tensor] = []
    first = 0
    if state is not None and (saved := state.load()) is not None:
        first = _restore(saved, vectors, optimizer, streams, kept, losses)
        advance(first * len(ids))
    for step in range(first, settings.steps + 1):
        if state is not None and step > first:
            state.offer(partial(_progress, step, vectors, optimizer, streams, kept, losses))
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


def _progress(
    step: int,
    vectors: Tensor,
    optimizer: torch.optim.AdamW,
    streams: list[torch.Generator],
    kept: list[Tensor],
    losses: list[Tensor],
) -> dict[str, Tensor]:
    """All that a batch needs to go on after `step` steps."""
    moments = optimizer.state[vectors]
    return {
        "step": torch.tensor(step),
        "vectors": vectors,
        "exp_avg": moments["exp_avg"],
        "exp_avg_sq": moments["exp_avg_sq"],
        "streams": torch.stack([stream.get_state() for stream in streams]),
        **{f"kept.{place:03d}": tensor for place, tensor in enumerate(kept)},
        **{f"loss.{place:03d}": tensor for place, tensor in enumerate(losses)},
    }


def _restore(
    saved: dict[str, Tensor],
    vectors: Tensor,
    optimizer: torch.optim.AdamW,
    streams: list[torch.Generator],
    kept: list[Tensor],
    losses: list[Tensor],
) -> int:
    """Put back what `_progress` took; return the steps that are done."""
    with torch.no_grad():
        vectors.copy_(saved["vectors"])
    optimizer.state[vectors] = {
        "step": saved["step"].float(),
        "exp_avg": saved["exp_avg"].to(vectors.device),
        "exp_avg_sq": saved["exp_avg_sq"].to(vectors.device),
    }
    for stream, state in zip(streams, saved["streams"], strict=True):
        stream.set_state(state.clone())  # set_state ignores the offset of a view
    kept += [saved[name] for name in sorted(saved) if name.startswith("kept.")]
    losses += [saved[name] for name in sorted(saved) if name.startswith("loss.")]
    return int(saved["step"])


def stage1_loss(
    generator: Generator, latents: Latents, noise: Latents, timesteps: Timesteps, vectors: Tokens
) -> Float[Tensor, " batch"]:
    """Denoising loss of each image (B,): mean squared error of the model's own training target (section 3.1)."""
    noisy_latents = generator.add_noise(latents, noise, timesteps)
    prediction = generator.predict(noisy_latents, timesteps, vectors)
    return (prediction - generator.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))


def draw(
    generator: Generator, latent_dist: LatentDistribution, streams: list[torch.Generator]
) -> tuple[Latents, Latents, Timesteps]:
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

    latents: Float[Tensor, "draws batch channels height width"]
    noise: Float[Tensor, "draws batch channels height width"]
    timesteps: Int[Tensor, "draws batch"]

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
    def loss(self, generator: Generator, vectors: Tokens) -> Float32[Tensor, " batch"]:
        """Mean loss of each image over the bank: (B,) float32 on the CPU."""
        rows = [
            stage1_loss(generator, z, eps, t, vectors)
            for z, eps, t in zip(self.latents, self.noise, self.timesteps, strict=True)
        ]
        return torch.stack(rows).mean(0).cpu()
