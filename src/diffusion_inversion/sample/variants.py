"""What one variant is made from, and how it is drawn (paper, section 3.2); all random numbers by its identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..config.sampling import SampleSettings
from ..errors import UsageError
from ..generator.generator import EMPTY_PROMPT, Generator, Tokens
from ..generator.safety import attempt_identity
from ..invert.embeddings import Embeddings
from ..randomness import generator_for
from .denoising import denoise, require_finite
from .guidance import add_rival
from .perturb import (
    add_gaussian_noise,
    choose_in_group,
    choose_outside,
    choose_partner,
    choose_several,
    circle,
    dirichlet_weights,
    interpolate,
    mix,
    move_to_class,
    slerp,
)


@dataclass(frozen=True)
class VariantPlan:
    """What one synthetic image is made from; it depends on (run seed, source id, variant, attempt) alone."""

    source: int
    variant: int
    partner: int
    step: int
    guidance_scale: float
    embedding: Float[Tensor, "tokens features"]
    initial_noise: Float[Tensor, "channels height width"]
    attempt: int  # from 0: how many drawings of it the safety checker refused
    noise_strength: float  # lambda
    further: tuple[int, ...] = ()  # partners beside `partner`, of a mixture
    weights: tuple[float, ...] = ()  # of source, partner and further ones in a mixture; elsewhere alpha says it


def resolution_of(embeddings: Embeddings, settings: SampleSettings) -> int:
    """Side in px at which images are drawn."""
    return settings.resolution or embeddings.resolution


def timesteps_of(generator: Generator, settings: SampleSettings) -> tuple[int, ...] | None:
    """Where the denoising steps lie; None: as the checkpoint's scheduler config says. Raises UsageError."""
    if settings.timestep_spacing == "checkpoint":
        return None
    return generator.learned_timesteps(settings.scheduler, settings.inference_steps)


def plan_variant(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, row: int, variant: int, attempt: int = 0
) -> VariantPlan:
    """Decide everything random about one variant, from its own stream; another attempt has another stream.

    Settings must have a number as noise_strength (sample/strengths.py gives each source its own). Raises UsageError.
    """
    if settings.noise_strength == "auto":
        raise UsageError("noise_strength=auto: found for the images of a run alone (`dinv run`, `dinv sample`).")
    stream = generator_for(settings.seed, "sample", embeddings.ids[row], variant, *attempt_identity(attempt))
    step, guidance_scale = combination(settings, embeddings.steps, variant, stream)
    partners: tuple[int, ...]
    weights: tuple[float, ...] = ()
    if settings.interpolation_kind == "dirichlet":
        near = embeddings.peers[row]
        partners = choose_several(near.rows, near.place, near.own, settings.mixture_size - 1, stream)
        weights = dirichlet_weights(settings.interpolation, 1 + len(partners), stream)
        embedding = mix(embeddings.at(step)[[row, *partners]], weights)
    else:
        partners = (pick_partner(embeddings, settings, row, step, stream),)
        embedding = blend(embeddings, settings, row, partners[0], step)
    embedding = add_gaussian_noise(embedding, settings.noise_strength, stream)
    side = resolution_of(embeddings, settings) // generator.vae_factor
    initial_noise = torch.randn(generator.latent_channels, side, side, generator=stream)
    if settings.shared_noise:
        own = torch.randn(initial_noise.shape, generator=generator_for(settings.seed, "start", embeddings.ids[row]))
        initial_noise = circle(initial_noise, own, 0.0, settings.shared_noise)
    return VariantPlan(
        row, variant, partners[0], step, guidance_scale, embedding, initial_noise, attempt, settings.noise_strength,
        partners[1:], weights,
    )  # fmt: skip


def blend(
    embeddings: Embeddings, settings: SampleSettings, row: int, partner: int, step: int
) -> Float[Tensor, "tokens features"]:
    """The vector of a row with that of its partner mixed in."""
    own, other = embeddings.at(step)[[row, partner]]

    def mean(one: int) -> Float[Tensor, "tokens features"]:
        return embeddings.class_mean(int(embeddings.labels[one]), step)

    if settings.partner == "context":
        other = move_to_class(other, mean(partner), mean(row))
    match settings.interpolation_kind:
        case "slerp":
            return slerp(own, other, settings.interpolation)
        case "circle":
            return circle(own, other, mean(row), settings.interpolation)
    return interpolate(own, other, settings.interpolation)


def combination(
    settings: SampleSettings, kept: tuple[int, ...], variant: int, stream: torch.Generator
) -> tuple[int, float]:
    """The kept step and guidance scale of one variant: drawn, or in turn, of which variant k does not depend on others.

    `kept` are the steps of stage 1, of which the last is taken where the settings name none.
    """
    steps, scales = settings.kept_steps or kept[-1:], settings.guidance_scales
    if settings.combinations == "grid":
        return steps[variant // len(scales) % len(steps)], scales[variant % len(scales)]
    step = steps[int(torch.randint(len(steps), (1,), generator=stream))]
    return step, scales[int(torch.randint(len(scales), (1,), generator=stream))]


def pick_partner(embeddings: Embeddings, settings: SampleSettings, row: int, step: int, stream: torch.Generator) -> int:
    """The row whose vector at `step` is mixed in; the row itself where the policy finds no other."""
    if settings.partner in ("nearest", "farthest"):
        return embeddings.nearest(row, step, farthest=settings.partner == "farthest")
    if settings.partner == "reference":
        near = embeddings.group_peers(row, settings.group_size, settings.seed)
        return choose_in_group(near.rows, near.place, near.own, stream)
    peers = embeddings.peers[row]
    if settings.partner in ("other-class", "context"):
        return choose_outside(peers.rows, peers.own, stream)
    return choose_partner(peers.rows, peers.place, peers.own, stream)


def unconditional_tokens(
    embeddings: Embeddings, generator: Generator, plans: list[VariantPlan], settings: SampleSettings
) -> Tokens:
    """What guidance leads away from, for each plan: (B, tokens, width)."""
    found = _plain_unconditional(embeddings, generator, plans, settings)
    if not settings.rival_weight:
        return found
    rivals = [embeddings.class_mean(rival_of(embeddings, plan), plan.step) for plan in plans]
    return add_rival(found, torch.stack(rivals), settings.rival_weight)


def rival_of(embeddings: Embeddings, plan: VariantPlan) -> int:
    """The class that the source's is most easily taken for: its mean is nearest, at the step that was drawn."""
    return embeddings.rivals[plan.step][int(embeddings.labels[plan.source])]


def _plain_unconditional(
    embeddings: Embeddings, generator: Generator, plans: list[VariantPlan], settings: SampleSettings
) -> Tokens:
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
            # As the reference code, which cuts the empty prompt to as many tokens as a vector has. Text encoders look
            # back only, so the first tokens of the whole are those of the prompt that was cut.
            tokens = plans[0].embedding.shape[0]
            return generator.text_tokens([EMPTY_PROMPT])[:, :tokens].expand(len(plans), -1, -1)
        case "zero":
            return torch.stack([torch.zeros_like(plan.embedding) for plan in plans])


def draw_images(
    embeddings: Embeddings, generator: Generator, plans: list[VariantPlan], settings: SampleSettings
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
        timesteps=timesteps_of(generator, settings),
        guidance_interval=settings.guidance_interval,
        eta=settings.eta,
        streams=[
            generator_for(settings.seed, "eta", embeddings.ids[p.source], p.variant, *attempt_identity(p.attempt))
            for p in plans
        ],
    )
    require_finite(latents, [embeddings.ids[plan.source] for plan in plans], generator, settings)
    return generator.decode(latents).cpu()
