"""Stage 2 (paper, section 3.2): draw variants around the learned vectors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .config import SampleSettings, SchedulerName
from .embeddings import Embeddings
from .engine.claim import claim_run, listed
from .engine.lock import run_lock
from .engine.memory import within_memory
from .engine.progress import track
from .engine.signals import out_of_time
from .engine.units import each_unit, unit_name
from .errors import ConfigMismatchError, UsageError
from .generator import Generator, Latents, Tokens
from .guidance import classifier_free_guidance
from .images import LabelledImages, resize, to_uint8
from .perturb import add_gaussian_noise, choose_outside, choose_partner, interpolate, slerp
from .randomness import generator_for
from .synthetic import SCHEMA, Row, SyntheticStore, job_name, parse_job

EMPTY_PROMPT = ""
LARGEST_ETA = 1 - 1e-6
OtherTokens: TypeAlias = Float[Tensor, "batch other_tokens features"]  # the empty prompt has as many as a text
# Settings that runs of earlier versions do not name.
LATER = (
    "interpolation_kind", "partner", "unconditional", "group_size", "guidance_interval", "eta", "resolution",
)  # fmt: skip

REFERENCE_OTHERS = 4  # others of a class that a group must have for partner=reference to stay in the class: five


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

    Each is eps = u + s (c_hat - u) with u from `settings.unconditional` and c_hat the perturbed vector. Images already
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
    if (resolution := resolution_of(embeddings, settings)) != embeddings.resolution:
        learned = embeddings.resolution
        print(f"warning: resolution={resolution}: {elsewhere(learned)}", file=sys.stderr, flush=True)
    run = Path(out)
    with run_lock(run):
        store = SyntheticStore(run, embeddings.class_names)
        rows = store.rows()
        claim_run(run, "sample", fingerprint(embeddings, generator, settings), begun=bool(rows))
        require_same_vectors(embeddings, rows, run)
        row_of = {image_id: row for row, image_id in enumerate(embeddings.ids)}
        jobs = [job_name(image_id, variant) for variant in range(settings.variants) for image_id in embeddings.ids]
        left = set(jobs) - {job_name(row["source_id"], row["variant"]) for row in rows}
        room = settings.batch_size
        with track("sample", len(left)) as advance:

            def draw(unit: tuple[str, ...]) -> None:
                nonlocal room
                wanted = [parse_job(job) for job in unit]
                plans = [plan_variant(embeddings, generator, settings, row_of[i], variant) for i, variant in wanted]
                # A unit that is drawn again is computed as it was, for the same bits.
                before = store.manifest.dropped().get(unit_name(unit))
                first = min(room, len(unit)) if before is None else before.get("at_once", len(unit))
                drawn, at_once = within_memory(partial(draw_in_parts, embeddings, generator, plans, settings), first)
                if at_once < first:
                    room = at_once  # for the units that follow too
                rows = [metadata_row(embeddings, generator, settings, plan) for plan in plans]
                store.commit(resize(to_uint8(drawn), image_size), rows, at_once)
                advance(len(plans))

            each_unit(run, jobs, store.manifest, settings.batch_size, draw)
        store.finish(variants=settings.variants)


def check(embeddings: Embeddings, generator: Generator, settings: SampleSettings) -> int:
    """Raise what `sample` raises for settings that cannot be, before anything is done; return the image side in px."""
    if embeddings.generator_hash != generator.hash:
        raise ConfigMismatchError(
            f"{generator.name}: the vectors were learned on other weights ({embeddings.generator_hash[:12]}, these are "
            f"{generator.hash[:12]}). Load the generator they were learned on, or invert again."
        )
    check_resolution(embeddings.resolution, generator, settings)
    resolution = resolution_of(embeddings, settings)
    image_size = image_side(embeddings, settings)
    if image_size > resolution:
        raise UsageError(f"image_size={image_size}: larger than the {resolution} px that are generated.")
    if settings.partner == "other-class" and len({*embeddings.labels.tolist()}) == 1:
        raise UsageError("partner=other-class: the vectors are of one class. Use same-class or nearest.")
    for step in settings.kept_steps:
        embeddings.at(step)
    generator.scheduler(settings.scheduler, settings.inference_steps)
    return image_size


def check_resolution(learned: int, generator: Generator, settings: SampleSettings) -> None:
    """Raise UsageError for a resolution that cannot be, or, where `strict`, that is not the one learned at."""
    resolution = settings.resolution or learned
    if resolution % generator.vae_factor:
        raise UsageError(f"resolution={resolution}: not a multiple of {generator.vae_factor}, which the VAE needs.")
    if settings.strict and resolution != learned:
        raise UsageError(f"resolution={resolution}, strict: {elsewhere(learned)}")


def resolution_of(embeddings: Embeddings, settings: SampleSettings) -> int:
    """Side in px at which images are drawn."""
    return settings.resolution or embeddings.resolution


def image_side(embeddings: Embeddings, settings: SampleSettings) -> int:
    """Side in px at which images are saved."""
    return settings.image_size or min(embeddings.image_size, resolution_of(embeddings, settings))


def elsewhere(learned: int) -> str:
    """What is wrong with another resolution than the vectors were learned at."""
    return (
        f"the vectors were learned at {learned} px, and at another resolution they do not give their images "
        f"(paper, section 5.2). Leave it out, or invert again with this --resolution."
    )


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

    Returns uint8 (N, 3, R, R) at the side R at which images are drawn.
    """
    plain = settings.model_copy(update={"noise_strength": 0.0, "interpolation": 0.0, "variants": 1})
    found = []
    rows = range(len(embeddings)) if rows is None else rows
    with track("reconstruct", len(rows)) as advance:
        for start in range(0, len(rows), settings.batch_size):
            batch = rows[start : start + settings.batch_size]
            plans = [plan_variant(embeddings, generator, plain, row, 0) for row in batch]
            drawn, _ = within_memory(partial(draw_in_parts, embeddings, generator, plans, plain), len(plans))
            found.append(to_uint8(drawn))
            advance(len(plans))
    return torch.cat(found)


def plan_variant(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, row: int, variant: int
) -> Plan:
    """Decide everything random about one variant, from its own stream."""
    stream = generator_for(settings.seed, "sample", embeddings.ids[row], variant)
    steps = settings.kept_steps or embeddings.steps[-1:]
    step = steps[int(torch.randint(len(steps), (1,), generator=stream))]
    scales = settings.guidance_scales
    guidance_scale = scales[int(torch.randint(len(scales), (1,), generator=stream))]
    partner = pick_partner(embeddings, settings, row, step, stream)
    vectors = embeddings.at(step)
    blend = slerp if settings.interpolation_kind == "slerp" else interpolate
    embedding = blend(vectors[row], vectors[partner], settings.interpolation)
    embedding = add_gaussian_noise(embedding, settings.noise_strength, stream)
    side = resolution_of(embeddings, settings) // generator.vae_factor
    initial_noise = torch.randn(generator.latent_channels, side, side, generator=stream)
    return Plan(row, variant, partner, step, guidance_scale, embedding, initial_noise)


def pick_partner(embeddings: Embeddings, settings: SampleSettings, row: int, step: int, stream: torch.Generator) -> int:
    """The row whose vector at `step` is mixed in; the row itself where the policy finds no other."""
    if settings.partner == "nearest":
        return embeddings.nearest(row, step)
    own = embeddings.class_rows[int(embeddings.labels[row])]
    if settings.partner == "other-class":
        return choose_outside(embeddings.order, own, stream)
    if settings.partner == "reference":
        group = sorted(embeddings.group(row, settings.group_size, settings.seed), key=embeddings.order.index)
        mine = [member for member in group if member in own]
        if len(mine) > REFERENCE_OTHERS or len(mine) == len(group):
            return choose_partner(row, mine, stream)
        return choose_outside(group, mine, stream)
    return choose_partner(row, own, stream)


def unconditional_tokens(
    embeddings: Embeddings, generator: Generator, plans: list[Plan], settings: SampleSettings
) -> Tokens:
    """What guidance leads away from, for each plan: (B, tokens, width), of the empty prompt (B, text tokens, width)."""
    match settings.unconditional:
        case "mean":
            return torch.stack([embeddings.mean(plan.step) for plan in plans])
        case "class-mean":
            labels = embeddings.labels.tolist()
            return torch.stack([embeddings.class_mean(labels[plan.source], plan.step) for plan in plans])
        case "group-mean":
            groups = [embeddings.group(plan.source, settings.group_size, settings.seed) for plan in plans]
            means = [embeddings.at(plan.step)[list(rows)].mean(0) for plan, rows in zip(plans, groups, strict=True)]
            return torch.stack(means)
        case "empty":
            return generator.text_tokens([EMPTY_PROMPT]).expand(len(plans), -1, -1)
        case "zero":
            return torch.stack([torch.zeros_like(plan.embedding) for plan in plans])


def draw_images(
    embeddings: Embeddings, generator: Generator, plans: list[Plan], settings: SampleSettings
) -> Float[Tensor, "batch 3 side side"]:
    """Denoise and decode a batch of plans: (B, 3, R, R) float32 in [-1, 1]."""
    latents = denoise(
        generator,
        torch.stack([plan.initial_noise for plan in plans]),
        torch.stack([plan.embedding for plan in plans]),
        unconditional_tokens(embeddings, generator, plans, settings),
        torch.tensor([plan.guidance_scale for plan in plans]),
        settings.scheduler,
        settings.inference_steps,
        guidance_interval=settings.guidance_interval,
        eta=settings.eta,
        streams=[generator_for(settings.seed, "eta", embeddings.ids[p.source], p.variant) for p in plans],
    )
    return generator.decode(latents).cpu()


def draw_in_parts(
    embeddings: Embeddings, generator: Generator, plans: list[Plan], settings: SampleSettings, at_once: int
) -> Float[Tensor, "batch 3 side side"]:
    """`draw_images` with `at_once` plans in memory at a time."""
    parts = [plans[start : start + at_once] for start in range(0, len(plans), at_once)]
    return torch.cat([draw_images(embeddings, generator, part, settings) for part in parts])


@torch.no_grad()
def denoise(
    generator: Generator,
    initial_noise: Latents,
    conditional: Tokens,
    unconditional: OtherTokens,
    guidance_scale: Float[Tensor, " batch"],
    scheduler_name: SchedulerName,
    inference_steps: int,
    on_step: Callable[[int], None] = lambda step: None,
    *,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    eta: float = 0.0,
    streams: Sequence[torch.Generator] = (),
) -> Latents:
    """Run the reverse process from standard normal noise to scaled latents, float32.

    Same arithmetic as StableDiffusionPipeline with prompt_embeds, negative_prompt_embeds and latents. Guidance acts
    where low <= t / T <= high; outside, and where every scale is 1, the conditional prediction stands alone and is
    all that is computed (arXiv 2404.07724). `eta`, for ddim, adds that share of DDPM's noise at each step, drawn for
    each image from its own one of `streams`, on the CPU.
    """
    scheduler = generator.scheduler(scheduler_name, inference_steps)
    device = generator.device
    latents: Tensor = initial_noise.to(device) * scheduler.init_noise_sigma
    conditional, unconditional = conditional.to(device), unconditional.to(device)
    guidance_scale = guidance_scale.to(device)
    guided = bool((guidance_scale != 1).any())
    low, high = guidance_interval
    if generator.alphas_cumprod[-1] == 0:
        # DDIM then takes the root of 1 - alpha_bar - sigma^2, which eta = 1 makes 0, or less by rounding.
        eta = min(eta, LARGEST_ETA)
    for index, timestep in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        if guided and low <= float(timestep) / generator.training_timesteps <= high:
            conditioned, unconditioned = predict_both(generator, model_input, timestep, conditional, unconditional)
            prediction = classifier_free_guidance(conditioned, unconditioned, guidance_scale)
        else:
            prediction = generator.predict(model_input, timestep.expand(len(model_input)), conditional)
        noise: dict[str, Any] = {}
        if eta:
            drawn = torch.stack([torch.randn(latents.shape[1:], generator=stream) for stream in streams])
            noise = {"eta": eta, "variance_noise": drawn.to(device)}
        latents = scheduler.step(prediction, timestep, latents, **noise).prev_sample
        on_step(index)
        if out_of_time():  # a stop was asked for, and the batch would take too long to end
            raise KeyboardInterrupt
    return latents


def predict_both(
    generator: Generator,
    model_input: Latents,
    timestep: Tensor,
    conditional: Tokens,
    unconditional: OtherTokens,
) -> tuple[Latents, Latents]:
    """The predictions under each of two conditions: in one pass where they have as many tokens, else in two."""
    if unconditional.shape[1] != conditional.shape[1]:
        times = timestep.expand(len(model_input))
        return generator.predict(model_input, times, conditional), generator.predict(model_input, times, unconditional)
    twice = torch.cat([model_input] * 2)
    tokens = torch.cat([unconditional, conditional])
    unconditioned, conditioned = generator.predict(twice, timestep.expand(len(twice)), tokens).chunk(2)
    return conditioned, unconditioned


def fingerprint(embeddings: Embeddings, generator: Generator, settings: SampleSettings) -> dict[str, Any]:
    """Everything an image depends on, but the vectors, as JSON data.

    `variants` is left out, so that more can be added later; each image's row names the version of its vectors.
    Settings that earlier versions did not have are left out at their defaults, so that their runs go on.
    """
    resolution = resolution_of(embeddings, settings)
    plain = settings.model_copy(update={"resolution": None if resolution == embeddings.resolution else resolution})
    values, defaults = (
        plain.model_dump(mode="json", exclude={"variants", "strict"}),
        SampleSettings().model_dump(mode="json"),
    )
    kept = {key: value for key, value in values.items() if key not in LATER or value != defaults[key]}
    return {
        "schema": SCHEMA,
        "settings": kept | {"image_size": image_side(embeddings, settings)},
        "generator": generator.record,
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
        "partner_label": int(embeddings.labels[plan.partner]),
        "label_weight": 1 - settings.interpolation if settings.partner == "other-class" else 1.0,
        "interpolation_kind": settings.interpolation_kind,
        "partner": settings.partner,
        "unconditional": settings.unconditional,
        "group_size": settings.group_size if settings.unconditional == "group-mean" else None,
        "guidance_interval": list(settings.guidance_interval),
        "eta": settings.eta,
        "resolution": resolution_of(embeddings, settings),
    }
