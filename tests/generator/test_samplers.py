"""The reverse process against StableDiffusionPipeline: every scheduler, eta, guidance and where it acts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from toy import MINI_SCHEDULER, SD14_SCHEDULER, WIDTH

from diffusion_inversion.config.sampling import SchedulerName
from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.generator.schedulers import SCHEDULERS, make_scheduler
from diffusion_inversion.randomness import generator_for
from diffusion_inversion.sample.denoising import denoise

STEPS = 6
NAMES: tuple[SchedulerName, ...] = ("ddim", "pndm", "dpm++", "unipc", "euler")
assert tuple(SCHEDULERS) == NAMES == get_args(SchedulerName)


def theirs(name: str, config: dict[str, Any], zero_snr: bool) -> Any:
    """The scheduler as a user of diffusers would make it from a pipeline's own."""
    import diffusers

    match name:
        case "ddim":
            return diffusers.DDIMScheduler.from_config(config, clip_sample=False)
        case "pndm":
            own = diffusers.DDIMScheduler.from_config(config).betas.tolist()
            rescaled = {"trained_betas": own, "timestep_spacing": "leading"} if zero_snr else {}
            return diffusers.PNDMScheduler.from_config(config, skip_prk_steps=True, **rescaled)
        case "dpm++":
            return diffusers.DPMSolverMultistepScheduler.from_config(
                config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
            )
        case "unipc":
            return diffusers.UniPCMultistepScheduler.from_config(config)
        case _:
            return diffusers.EulerDiscreteScheduler.from_config(config)


@cache
def pipeline_of(checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """diffusers' own pipeline and the scheduler config that it came with."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, dict(pipeline.scheduler.config)


def pipeline_latents(checkpoint: Path, name: str, c: Tensor, u: Tensor, noise: Tensor, **options: Any) -> Tensor:
    pipeline, config = pipeline_of(checkpoint)
    pipeline.scheduler = theirs(name, config, bool(config.get("rescale_betas_zero_snr")))
    return pipeline(
        prompt_embeds=c, negative_prompt_embeds=u, latents=noise, num_inference_steps=STEPS, output_type="latent",
        **options,
    ).images  # fmt: skip


def inputs(generator: Generator, count: int = 2, tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, conditional and unconditional vectors."""
    stream = torch.Generator().manual_seed(3)
    noise = torch.randn(count, generator.latent_channels, 8, 8, generator=stream)
    c, u = torch.randn(2, count, tokens, WIDTH, generator=stream)
    return noise, c, u


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_equals_stable_diffusion_pipeline(
    generator: Generator, checkpoint: Path, name: SchedulerName, guidance_scale: float
) -> None:
    """Same embeddings, same initial latents, same scheduler: the pipeline's latents to 1e-4."""
    noise, c, u = inputs(generator)
    expected = pipeline_latents(checkpoint, name, c, u, noise, guidance_scale=guidance_scale)
    ours = denoise(generator, noise, c, u, torch.full((2,), guidance_scale), name, STEPS)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, noise, atol=1e-2)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_equals_the_pipelines_and_comes_from_each_images_own_stream(
    generator: Generator, checkpoint: Path, eta: float
) -> None:
    noise, c, u = inputs(generator, 3)
    scales = torch.full((3,), 2.0)

    def streams() -> list[torch.Generator]:
        return [generator_for(0, "eta", image, 0) for image in "abc"]

    # At eta = 1 and zero terminal SNR diffusers itself gives NaN.
    usable = min(eta, 1 - 1e-6) if generator.prediction_type == "v_prediction" else eta
    expected = pipeline_latents(checkpoint, "ddim", c, u, noise, guidance_scale=2.0, eta=usable, generator=streams())
    ours = denoise(generator, noise, c, u, scales, "ddim", STEPS, eta=eta, streams=streams())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    order = [2, 0]
    chosen = [streams()[row] for row in order]
    other = denoise(generator, noise[order], c[order], u[order], scales[order], "ddim", STEPS, eta=eta, streams=chosen)
    torch.testing.assert_close(other, ours[order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, denoise(generator, noise, c, u, scales, "ddim", STEPS), atol=1e-2)


def test_an_unconditional_vector_of_other_length_gets_a_pass_of_its_own(generator: Generator) -> None:
    """Against diffusers' UNet and scheduler, each condition in its own forward."""
    noise, c, _ = inputs(generator)
    u = generator.text_tokens([""]).expand(2, -1, -1)
    assert u.shape[1] != c.shape[1]
    scheduler = theirs("ddim", generator.scheduler_config, False)
    scheduler.set_timesteps(STEPS)
    z = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            conditioned = generator.unet(z, t, encoder_hidden_states=c).sample
            away = generator.unet(z, t, encoder_hidden_states=u).sample
            z = scheduler.step(away + 2.5 * (conditioned - away), t, z).prev_sample
    ours = denoise(generator, noise, c, u, torch.full((2,), 2.5), "ddim", STEPS)
    torch.testing.assert_close(ours, z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_guidance_interval_from_empty_to_whole(generator: Generator, name: SchedulerName) -> None:
    noise, c, u = inputs(generator)
    scales = torch.full((2,), 3.0)

    def drawn(low: float, high: float) -> Tensor:
        return denoise(generator, noise, c, u, scales, name, STEPS, guidance_interval=(low, high))

    whole = denoise(generator, noise, c, u, scales, name, STEPS)
    plain = denoise(generator, noise, c, u, torch.ones(2), name, STEPS)
    assert torch.equal(drawn(0.0, 1.0), whole)
    assert torch.equal(drawn(0.9995, 1.0), plain), "no timestep lies there"
    assert not torch.allclose(whole, plain, atol=1e-2)


def test_the_guidance_interval_counts_from_clean_to_noise(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unconditional forward runs where t / T lies inside, ends included, and nowhere else."""
    noise, c, u = inputs(generator)
    seen: list[tuple[float, int]] = []
    predict = generator.predict

    def look(latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        seen.append((float(timesteps[0]) / 1000, len(latents)))
        return predict(latents, timesteps, tokens)

    monkeypatch.setattr(generator, "predict", look)
    fractions = [float(t) / 1000 for t in generator.scheduler("ddim", STEPS).timesteps]
    bounds = (fractions[3], fractions[1])  # timesteps descend
    denoise(generator, noise, c, u, torch.full((2,), 3.0), "ddim", STEPS, guidance_interval=bounds)
    assert seen == [(t, 4 if i in (1, 2, 3) else 2) for i, t in enumerate(fractions)]


@pytest.mark.parametrize("config", [SD14_SCHEDULER, MINI_SCHEDULER], ids=["sd14", "mini"])
@pytest.mark.parametrize("name", NAMES)
def test_samplers_follow_the_models_own_schedule(config: dict[str, Any], name: SchedulerName) -> None:
    """With a network that knows the clean latents, every sampler ends at them; a wrong alpha_bar would not."""
    from diffusers import DDPMScheduler

    schedule = DDPMScheduler.from_config(config)
    stream = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=stream)
    scheduler = make_scheduler(name, config, 20)
    # Some put a little in the place of an alpha_bar of 0.
    torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-4, atol=1e-6)
    first = scheduler.timesteps[:1].long()
    z = schedule.add_noise(clean, noise, first)
    if name == "euler":  # z / sqrt(alpha_bar)
        z = z / schedule.alphas_cumprod[first].sqrt().clamp(min=2**-12)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(z, t)
        alpha = schedule.alphas_cumprod[t.round().long()]
        # the noise that is in `seen` if it holds the clean latents
        eps = (seen - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        exact = eps if config is SD14_SCHEDULER else alpha.sqrt() * eps - (1 - alpha).sqrt() * clean
        z = scheduler.step(exact, t, z).prev_sample
    assert float((z - clean).square().mean().sqrt()) < 0.04  # SD 1.4's last step leaves alpha_bar_0's noise, 0.029


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_more_steps_than_the_schedule_has_room_for(name: SchedulerName) -> None:
    with pytest.raises(UsageError, match="inference_steps=1001: more than"):
        make_scheduler(name, SD14_SCHEDULER, 1001)
    with pytest.raises(UsageError, match="inference_steps=1000: with the checkpoint's steps_offset"):
        make_scheduler(name, SD14_SCHEDULER, 1000)
    make_scheduler(name, SD14_SCHEDULER, 999)


@pytest.mark.parametrize(
    ("name", "config", "steps", "said"),
    [
        ("dpm++", SD14_SCHEDULER, 1000, "one noise level twice"),
        ("unipc", SD14_SCHEDULER, 1000, "one noise level twice"),
        ("pndm", MINI_SCHEDULER, 999, "leaves no signal"),
    ],
)
def test_steps_whose_arithmetic_is_not_finite_are_refused(
    name: SchedulerName, config: dict[str, Any], steps: int, said: str
) -> None:
    """One step fewer is finite; so are Karras' noise levels, though their timesteps, rounded, repeat."""
    with pytest.raises(UsageError, match=f"inference_steps={steps}: .*{said}"):
        make_scheduler(name, config, steps)
    others = [make_scheduler(name, config, steps - 1)]
    if name != "pndm":
        others.append(make_scheduler(name, config | {"use_karras_sigmas": True}, 50))
        assert len(others[1].timesteps.unique()) < 50
    for scheduler in others:
        z = torch.ones(1, 4, 2, 2) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            z = scheduler.step(torch.full_like(z, 0.1), t, z).prev_sample
        assert bool(z.isfinite().all())
