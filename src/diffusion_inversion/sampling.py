"""Stage 2 (paper, section 3.2): draw variants around the learned vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .config import SampleSettings
from .embeddings import Embeddings
from .engine.claim import claim_run, listed
from .engine.lock import run_lock
from .engine.progress import track
from .engine.signals import out_of_time
from .engine.units import each_unit
from .errors import ConfigMismatchError, UsageError
from .generator import Generator, Latents, SchedulerName, Tokens
from .guidance import classifier_free_guidance
from .images import LabelledImages, resize, to_uint8
from .perturb import add_gaussian_noise, choose_partner, interpolate
from .randomness import generator_for
from .safety import SafetyChecker, attempt_identity, draw_safely, load_safety_checker
from .synthetic import SCHEMA, Row, SyntheticStore, job_name, parse_job


@dataclass(frozen=True)
class Plan:
    """What one synthetic image is made from; it depends on (run seed, source id, variant) alone."""

    source: int
    variant: int
    partner: int
    step: int
    guidance_scale: float
    embedding: Float[Tensor, "tokens features"]
    initial_noise: Float[Tensor, "channels height width"]


def sample(
    embeddings: Embeddings, generator: Generator, out: str | Path, settings: SampleSettings | None = None
) -> LabelledImages:
    """Draw `settings.variants` images per learned vector, store them below `out`/synthetic and return them.

    Each is eps = u + s (c_hat - u) with u from the mean of all vectors and c_hat the perturbed vector. Images already
    there are not drawn again, so a killed call goes on, and a call with more variants or more vectors adds the missing
    ones.

    Raises UsageError (an option does not fit the generator), ConfigMismatchError (`out` or the vectors were made
    with another generator or settings), DataError (a step was not kept), LockedError, DiskError.
    """
    draw_variants(embeddings, generator, out, settings)
    return SyntheticStore(Path(out), embeddings.class_names).read()


def draw_variants(
    embeddings: Embeddings, generator: Generator, out: str | Path, settings: SampleSettings | None = None
) -> None:
    """What `sample` does, without reading the images back."""
    settings = settings or SampleSettings()
    image_size = check(embeddings, generator, settings)
    run = Path(out)
    with run_lock(run):
        store = SyntheticStore(run, embeddings.class_names)
        rows = store.rows()
        checker = load_safety_checker(generator) if settings.safety_checker else None
        claim_run(run, "sample", fingerprint(generator, settings, image_size, checker), begun=bool(rows))
        require_same_vectors(embeddings, rows, run)
        row_of = {image_id: row for row, image_id in enumerate(embeddings.ids)}
        jobs = [job_name(image_id, variant) for variant in range(settings.variants) for image_id in embeddings.ids]
        left = set(jobs) - {job_name(row["source_id"], row["variant"]) for row in rows}
        with track("sample", len(left)) as advance:

            def draw(unit: tuple[str, ...]) -> None:
                wanted = [parse_job(job) for job in unit]

                def plan(place: int, attempt: int) -> Plan:
                    image_id, variant = wanted[place]
                    return plan_variant(embeddings, generator, settings, row_of[image_id], variant, attempt)

                plans, images, blanked = draw_safely(
                    plan, lambda plans: draw_images(embeddings, generator, plans, settings), unit, checker
                )
                rows = [metadata_row(embeddings, generator, settings, plan) for plan in plans]
                store.commit(resize(to_uint8(images), image_size), rows, blanked)
                advance(len(plans))

            each_unit(run, jobs, store.manifest, settings.batch_size, draw)
        store.finish(variants=settings.variants)


def check(embeddings: Embeddings, generator: Generator, settings: SampleSettings) -> int:
    """Raise what `sample` raises for settings that cannot be, before anything is done; return the image side in px."""
    width = embeddings.vectors.shape[-1]
    if width != generator.text_width:
        raise ConfigMismatchError(
            f"embeddings: width={width}, but {generator.name} takes {generator.text_width}. Load the generator they "
            "were learned on, or invert again."
        )
    if embeddings.generator_hash != generator.hash:
        raise ConfigMismatchError(
            f"{generator.name}: the vectors were learned on other weights ({embeddings.generator_hash[:12]}, these are "
            f"{generator.hash[:12]}). Load the generator they were learned on, or invert again."
        )
    image_size = settings.image_size or min(embeddings.image_size, embeddings.resolution)
    if image_size > embeddings.resolution:
        raise UsageError(f"image_size={image_size}: larger than the {embeddings.resolution} px that are generated.")
    for step in settings.kept_steps:
        embeddings.at(step)
    generator.scheduler(settings.scheduler, settings.inference_steps)
    return image_size


def is_stale(row: Row, version: Mapping[str, str]) -> bool:
    """Whether an image was drawn from other vectors than those of these versions, by image id."""
    return any(version.get(row[f"{part}_id"]) != row[f"{part}_version"] for part in ("source", "partner"))


def require_same_vectors(embeddings: Embeddings, rows: list[Row], run: Path) -> None:
    """Raise ConfigMismatchError where images in the run were drawn from vectors that are not there any more.

    New vectors are welcome. They change means and partners from then on; images that are drawn stay as they are.
    """
    version = dict(zip(embeddings.ids, embeddings.versions, strict=True))
    stale = [str(row["file_name"]) for row in rows if is_stale(row, version)]
    if stale:
        raise ConfigMismatchError(
            f"{run}: {len(stale)} of the {len(rows)} images come from vectors that changed since:\n{listed(stale)}"
            f"\n`dinv repair {run}` draws them again from the vectors that are there now."
        )


def reconstruct(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, rows: Sequence[int] | None = None
) -> UInt8[Tensor, "images 3 side side"]:
    """One image per learned vector, or per vector of `rows`, without perturbation (lambda = alpha = 0).

    Returns uint8 (N, 3, R, R) at the side R that the vectors were learned at.
    """
    plain = settings.model_copy(update={"noise_strength": 0.0, "interpolation": 0.0, "variants": 1})
    found = []
    checker = load_safety_checker(generator) if settings.safety_checker else None
    rows = range(len(embeddings)) if rows is None else rows
    with track("reconstruct", len(rows)) as advance:
        for start in range(0, len(rows), settings.batch_size):
            batch = rows[start : start + settings.batch_size]
            _, images, _ = draw_safely(
                lambda place, attempt, batch=batch: plan_variant(  # type: ignore[misc]
                    embeddings, generator, plain, batch[place], 0, attempt
                ),
                lambda plans: draw_images(embeddings, generator, plans, plain),
                [embeddings.ids[row] for row in batch],
                checker,
            )
            found.append(to_uint8(images))
            advance(len(batch))
    return torch.cat(found)


def plan_variant(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, row: int, variant: int, attempt: int = 0
) -> Plan:
    """Decide everything random about one variant, from its own stream; another attempt has another stream."""
    stream = generator_for(settings.seed, "sample", embeddings.ids[row], variant, *attempt_identity(attempt))
    steps = settings.kept_steps or embeddings.steps[-1:]
    step = steps[int(torch.randint(len(steps), (1,), generator=stream))]
    scales = settings.guidance_scales
    guidance_scale = scales[int(torch.randint(len(scales), (1,), generator=stream))]
    partner = choose_partner(row, embeddings.class_rows[int(embeddings.labels[row])], stream)
    vectors = embeddings.at(step)
    embedding = interpolate(vectors[row], vectors[partner], settings.interpolation)
    embedding = add_gaussian_noise(embedding, settings.noise_strength, stream)
    side = embeddings.resolution // generator.vae_factor
    initial_noise = torch.randn(generator.latent_channels, side, side, generator=stream)
    return Plan(row, variant, partner, step, guidance_scale, embedding, initial_noise)


def draw_images(
    embeddings: Embeddings, generator: Generator, plans: list[Plan], settings: SampleSettings
) -> Float[Tensor, "batch 3 side side"]:
    """Denoise and decode a batch of plans: (B, 3, R, R) float32 in [-1, 1]."""
    latents = denoise(
        generator,
        torch.stack([plan.initial_noise for plan in plans]),
        torch.stack([plan.embedding for plan in plans]),
        torch.stack([embeddings.mean(plan.step) for plan in plans]),
        torch.tensor([plan.guidance_scale for plan in plans]),
        settings.scheduler,
        settings.inference_steps,
    )
    return generator.decode(latents).cpu()


@torch.no_grad()
def denoise(
    generator: Generator,
    initial_noise: Latents,
    conditional: Tokens,
    unconditional: Tokens,
    guidance_scale: Float[Tensor, " batch"],
    scheduler_name: SchedulerName,
    inference_steps: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> Latents:
    """Run the reverse process from standard normal noise to scaled latents, float32.

    Same arithmetic as StableDiffusionPipeline with prompt_embeds, negative_prompt_embeds and latents.
    """
    shapes = {tuple(tokens.shape[1:]) for tokens in (conditional, unconditional)}
    if len(shapes) > 1 or conditional.shape[-1] != generator.text_width:
        raise UsageError(
            f"tokens x width: {tuple(conditional.shape[1:])} conditional, {tuple(unconditional.shape[1:])} "
            f"unconditional. Give both the same, with the width {generator.text_width} of {generator.name}."
        )
    scheduler = generator.scheduler(scheduler_name, inference_steps)
    device = generator.device
    latents: Tensor = initial_noise.to(device) * scheduler.init_noise_sigma
    conditional, unconditional = conditional.to(device), unconditional.to(device)
    guidance_scale = guidance_scale.to(device)
    guided = bool((guidance_scale != 1).any())
    tokens = torch.cat([unconditional, conditional]) if guided else conditional
    for index, timestep in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
        prediction = generator.predict(model_input, timestep.expand(len(model_input)), tokens)
        if guided:
            unconditioned, conditioned = prediction.chunk(2)
            prediction = classifier_free_guidance(conditioned, unconditioned, guidance_scale)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
        on_step(index)
        if out_of_time():  # a stop was asked for, and the batch would take too long to end
            raise KeyboardInterrupt
    return latents


def fingerprint(
    generator: Generator, settings: SampleSettings, image_size: int, checker: SafetyChecker | None
) -> dict[str, Any]:
    """Everything an image depends on, but the vectors, as JSON data.

    `variants` is left out, so that more can be added later; each image's row names the version of its vectors. The
    safety checker that is in use stands for the setting: where there is none, the setting makes no difference.
    """
    left_out = {"variants", "safety_checker"}
    return {
        "schema": SCHEMA,
        "settings": settings.model_dump(mode="json", exclude=left_out) | {"image_size": image_size},
        "generator": generator.record,
        **({"safety_checker": checker.hash} if checker else {}),
    }


def metadata_row(embeddings: Embeddings, generator: Generator, settings: SampleSettings, plan: Plan) -> dict[str, Any]:
    """How one image was made; see `synthetic.COLUMNS`."""
    return {
        "source_id": embeddings.ids[plan.source],
        "variant": plan.variant,
        "label": int(embeddings.labels[plan.source]),
        "partner_id": embeddings.ids[plan.partner],
        "interpolation": settings.interpolation,
        "noise_strength": settings.noise_strength,
        "guidance_scale": plan.guidance_scale,
        "inversion_step": plan.step,
        "scheduler": settings.scheduler,
        "inference_steps": settings.inference_steps,
        "seed": settings.seed,
        "generator": generator.name,
        "generator_hash": generator.hash,
        "source_version": embeddings.versions[plan.source],
        "partner_version": embeddings.versions[plan.partner],
    }
