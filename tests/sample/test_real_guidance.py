"""Real images to begin at: where the reverse process starts, what it gives, and which image that was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_clip import coloured_images

from diffusion_inversion.config.sampling import PromptSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.sample import prompting
from diffusion_inversion.sample.autoencoding import autoencoded
from diffusion_inversion.sample.denoising import denoise
from diffusion_inversion.sample.prompting import Prompt, RealGuidance, draw_images, draw_prompts
from diffusion_inversion.sample.synthetic import SyntheticStore


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpm++", "unipc", "euler"])
def test_real_guidance_begins_at_the_noised_image(
    generator: Generator, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the network first sees is sqrt(abar_t) z + sqrt(1 - abar_t) eps at the first of the steps that are left."""
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 2, generator.latent_channels, 8, 8).unbind(0)
    tokens = generator.text_tokens(["a cat", "a dog"])
    seen: list[tuple[Tensor, float]] = []
    predict = generator.predict

    def look(noisy: Tensor, timesteps: Tensor, *rest: Any) -> Tensor:
        seen.append((noisy.clone(), float(timesteps[0])))
        return predict(noisy, timesteps, *rest)

    monkeypatch.setattr(generator, "predict", look)
    for strength, steps in ((0.25, 2), (0.6, 4), (0.99, 7)):
        seen.clear()
        denoise(generator, noise, tokens, tokens, torch.ones(2), scheduler, 8, start=(latents, strength))
        every = generator.scheduler(scheduler, 8).timesteps
        assert len(seen) in (steps, steps + (scheduler == "pndm"))
        assert [t for _, t in seen] == [float(t) for t in every[8 - steps :]]
        t = seen[0][1]
        lower = int(t)  # Euler's may lie between two of the schedule's
        low, high = generator.alphas_cumprod[lower], generator.alphas_cumprod[min(lower + 1, 999)]
        abar = low + (high - low) * (t - lower)
        expected = abar.sqrt() * latents + (1 - abar).sqrt() * noise
        torch.testing.assert_close(seen[0][0], expected, rtol=2e-3, atol=2e-3)
    seen.clear()
    untouched = denoise(generator, noise, tokens, tokens, torch.ones(2), scheduler, 8, start=(latents, 0.0))
    assert torch.equal(untouched, latents) and not seen


def test_real_guidance_equals_diffusers_img2img(generator: Generator, checkpoint: Path) -> None:
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    real = coloured_images(6, seed=1)
    prompts = [Prompt("red", "a red"), Prompt("blue", "a small blue")]
    guidance, strength = RealGuidance(real, 0.6), 0.6
    settings = PromptSettings(scheduler="ddim", inference_steps=5, guidance_scales=(3.0,))
    plans = [prompting._plan(prompts, generator, settings, 16, row, 0, 0, guidance) for row in range(2)]
    ours = draw_images(prompts, generator, plans, settings, guidance)
    clean = generator.encode(to_model_range(real.images[[plan.start or 0 for plan in plans]])).mean
    noise = torch.stack([plan.initial_noise for plan in plans])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_stable_diffusion_img2img, "randn_tensor", lambda *shape, **options: noise)
        theirs = pipeline(
            prompt=[prompt.text for prompt in prompts], image=clean, strength=strength, num_inference_steps=5,
            guidance_scale=3.0, output_type="pt",
        ).images  # fmt: skip
    torch.testing.assert_close((ours + 1) / 2, theirs, rtol=1e-4, atol=1e-4)


def test_strength_0_gives_the_autoencoded_image_and_names_its_source(generator: Generator, tmp_path: Path) -> None:
    real = coloured_images(6, seed=1)
    prompts, settings = [Prompt(name, f"a {name}") for name in ("red", "blue")], PromptSettings(variants=3)
    draw_prompts(prompts, generator, tmp_path, settings, kind="lecf", real=RealGuidance(real, 0.0))
    store = SyntheticStore(tmp_path, ("blue", "red"))
    rows = sorted(store.table().to_pylist(), key=lambda row: str(row["file_name"]))
    drawn = store.read()
    wanted = dict(zip(real.ids, autoencoded(real.images, generator, 16), strict=True))
    for row, image in zip(rows, drawn.images, strict=True):
        assert row["source_id"] == f"{row['class_name']}: a {row['class_name']}" and row["method"] == "lecf"
        place = real.ids.index(row["partner_id"])
        assert real.class_names[int(real.labels[place])] == row["class_name"]
        assert row["partner_version"] == real.hashes[place][:16]
        assert int((image.int() - wanted[row["partner_id"]].int()).abs().max()) <= 1
    assert len({row["partner_id"] for row in rows}) > 2
    # Another set of real images changes the drawings alone that began at those that are gone.
    guidance, fewer = RealGuidance(real, 0.0), real.subset([0, 1, 2, 5])
    for prompt in prompts:
        for variant in range(8):
            before = real.ids[guidance.row(0, prompt, variant)]
            after = fewer.ids[RealGuidance(fewer, 0.0).row(0, prompt, variant)]
            assert after == before or before not in fewer.ids
