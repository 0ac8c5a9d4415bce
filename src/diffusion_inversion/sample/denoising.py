"""The reverse process: from noise to latents, under classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..config.sampling import PromptSettings, SampleSettings, SchedulerName
from ..engine.signals import out_of_time
from ..errors import PartialError, UsageError
from ..generator.generator import Generator, Latents, Tokens
from .guidance import classifier_free_guidance

LARGEST_ETA = 1 - 1e-6
OtherTokens: TypeAlias = Float[Tensor, "batch other_tokens features"]  # the empty prompt has as many as a text


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
    start: tuple[Latents, float] | None = None,
    timesteps: Sequence[int] | None = None,
) -> Latents:
    """Run the reverse process from standard normal noise to scaled latents, float32.

    Same arithmetic as StableDiffusionPipeline with prompt_embeds, negative_prompt_embeds and latents. Guidance acts
    where low <= t / T <= high; outside, and where every scale is 1, the conditional prediction stands alone and is
    all that is computed (arXiv 2404.07724). `eta`, for ddim, adds that share of DDPM's noise at each step, drawn for
    each image from its own one of `streams`, on the CPU. `start`, scaled latents z and a strength in [0, 1], begins
    at sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) eps, with the initial noise as eps and t such that the last
    floor(strength N) of N steps are left; strength 0 gives z. As StableDiffusionImg2ImgPipeline. `timesteps`, one a
    step, stand in place of those that the checkpoint's config gives.
    """
    widths = {tokens.shape[-1] for tokens in (conditional, unconditional)}
    if widths != {generator.text_width}:
        raise UsageError(
            f"width: {conditional.shape[-1]} conditional, {unconditional.shape[-1]} unconditional. "
            f"Give both the width {generator.text_width} of {generator.name}."
        )
    scheduler = generator.scheduler(scheduler_name, inference_steps, timesteps)
    device = generator.device
    left = scheduler.timesteps
    latents: Tensor = initial_noise.to(device)
    if start is None:
        latents = latents * scheduler.init_noise_sigma
    elif steps := int(start[1] * inference_steps):
        first = inference_steps - steps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        left = left[first:]
        latents = scheduler.add_noise(start[0].to(device), latents, left[:1])
    else:
        return start[0].to(device)
    conditional, unconditional = conditional.to(device), unconditional.to(device)
    guidance_scale = guidance_scale.to(device)
    guided = bool((guidance_scale != 1).any())
    low, high = guidance_interval
    if generator.alphas_cumprod[-1] == 0:
        # DDIM then takes the root of 1 - alpha_bar - sigma^2, which eta = 1 makes 0, or less by rounding.
        eta = min(eta, LARGEST_ETA)
    on_device = left.to(device)  # all in one transfer; the scheduler's own stay on the CPU
    for index, timestep in enumerate(left):
        model_input, here = scheduler.scale_model_input(latents, timestep), on_device[index]
        if guided and low <= float(timestep) / generator.training_timesteps <= high:
            conditioned, unconditioned = predict_both(generator, model_input, here, conditional, unconditional)
            prediction = classifier_free_guidance(conditioned, unconditioned, guidance_scale)
        else:
            prediction = generator.predict(model_input, here.expand(len(model_input)), conditional)
        noise: dict[str, Any] = {}
        if eta:
            drawn = torch.stack([torch.randn(latents.shape[1:], generator=stream) for stream in streams])
            noise = {"eta": eta, "variance_noise": drawn.to(device)}
        latents = scheduler.step(prediction, timestep, latents, **noise).prev_sample
        on_step(index)
        if out_of_time():  # a stop was asked for, and the batch would take too long to end
            raise KeyboardInterrupt
    return latents


def require_finite(
    latents: Latents, names: Sequence[str], generator: Generator, settings: SampleSettings | PromptSettings
) -> None:
    """Raise PartialError where drawn latents are not all finite: they would decode to black images.

    `names` says what each was drawn from.
    """
    good = latents.isfinite().flatten(1).all(1).tolist()
    if all(good):
        return
    bad = sorted({name for name, fine in zip(names, good, strict=True) if not fine})
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    scales, half = ",".join(f"{scale:g}" for scale in settings.guidance_scales), generator.dtype == torch.float16
    raise PartialError(
        f"{', '.join(bad[:3])}{more}: what was drawn is not finite (scheduler={settings.scheduler}, inference_steps="
        f"{settings.inference_steps}, guidance_scales={scales}, dtype={str(generator.dtype).removeprefix('torch.')}). "
        f"What is committed is kept. Draw with {'--dtype float32, ' if half else ''}another --scheduler, other "
        "--inference-steps or lower --guidance-scales, or leave the source out."
    )


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
