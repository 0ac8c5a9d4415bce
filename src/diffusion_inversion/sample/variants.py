"""What one variant is made from, and how it is drawn (paper, section 3.2); all random numbers by its identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..config.sampling import SampleSettings
from ..generator.generator import EMPTY_PROMPT, Generator, Tokens
from ..generator.safety import attempt_identity
from ..invert.embeddings import Embeddings
from ..randomness import generator_for
from .denoising import denoise
from .perturb import add_gaussian_noise, choose_in_group, choose_outside, choose_partner, interpolate, slerp


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


def resolution_of(embeddings: Embeddings, settings: SampleSettings) -> int:
    """Side in px at which images are drawn."""
    return settings.resolution or embeddings.resolution


def plan_variant(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, row: int, variant: int, attempt: int = 0
) -> VariantPlan:
    """Decide everything random about one variant, from its own stream; another attempt has another stream."""
    stream = generator_for(settings.seed, "sample", embeddings.ids[row], variant, *attempt_identity(attempt))
    step, guidance_scale = combination(settings, embeddings.steps, variant, stream)
    partner = pick_partner(embeddings, settings, row, step, stream)
    vectors = embeddings.at(step)
    blend = slerp if settings.interpolation_kind == "slerp" else interpolate
    embedding = blend(vectors[row], vectors[partner], settings.interpolation)
    embedding = add_gaussian_noise(embedding, settings.noise_strength, stream)
    side = resolution_of(embeddings, settings) // generator.vae_factor
    initial_noise = torch.randn(generator.latent_channels, side, side, generator=stream)
    return VariantPlan(row, variant, partner, step, guidance_scale, embedding, initial_noise, attempt)


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
    if settings.partner == "nearest":
        return embeddings.nearest(row, step)
    if settings.partner == "reference":
        near = embeddings.group_peers(row, settings.group_size, settings.seed)
        return choose_in_group(near.rows, near.place, near.own, stream)
    peers = embeddings.peers[row]
    if settings.partner == "other-class":
        return choose_outside(peers.rows, peers.own, stream)
    return choose_partner(peers.rows, peers.place, peers.own, stream)


def unconditional_tokens(
    embeddings: Embeddings, generator: Generator, plans: list[VariantPlan], settings: SampleSettings
) -> Tokens:
    """What guidance leads away from, for each plan: (B, tokens, width)."""
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
        guidance_interval=settings.guidance_interval,
        eta=settings.eta,
        streams=[
            generator_for(settings.seed, "eta", embeddings.ids[p.source], p.variant, *attempt_identity(p.attempt))
            for p in plans
        ],
    )
    return generator.decode(latents).cpu()
