"""What this package is measured against: the plain diffusers loop, in float32, as the reference code runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn


def load_plain(folder: Path, device: torch.device | str = "cpu") -> Any:
    """StableDiffusionPipeline over a local folder, float32, on `device`, weights frozen, with DDIM.

    DDIM takes one forward a step; the shipped PNDM takes one more in all, which would count against the pipeline.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # without the advice to install accelerate
    with redirect_stderr(StringIO()):  # and without bars
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, safety_checker=None, use_safetensors=True, local_files_only=True
        )
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False)
    return pipeline.to(device)


def plain_inversion_step(pipeline: Any, side: int, batch: int, tokens: int) -> Callable[[], None]:
    """The reference's step: encode the images, add noise, predict from an embedding layer's rows, MSE, AdamW."""
    device = pipeline.device
    images = (torch.rand(batch, 3, side, side) * 2 - 1).to(device)
    width = pipeline.unet.config.cross_attention_dim
    table = nn.Linear(batch, tokens * width, bias=False).to(device)  # the reference's: a linear layer over one-hots
    optimizer = torch.optim.AdamW(table.parameters(), lr=0.03)
    scheduler = pipeline.scheduler

    def step() -> None:
        with torch.no_grad():
            latents = pipeline.vae.encode(images).latent_dist.sample() * pipeline.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (batch,), device=device)
        noisy_latents = scheduler.add_noise(latents, noise, timesteps)
        vectors = table(torch.eye(batch, device=device)).view(batch, tokens, width)
        prediction = pipeline.unet(noisy_latents, timesteps, encoder_hidden_states=vectors).sample
        loss = nn.functional.mse_loss(prediction, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plain_sampling_step(pipeline: Any, side: int, batch: int, guidance_scale: float) -> Callable[[], None]:
    """One denoising step of the text-prompted pipeline at `side` px, the prompts encoded beforehand (77 tokens)."""
    prompts, unconditional = encode_prompts(pipeline, batch)

    def step() -> None:
        pipeline(
            prompt_embeds=prompts,
            negative_prompt_embeds=unconditional,
            height=side,
            width=side,
            guidance_scale=guidance_scale,
            num_inference_steps=1,
            output_type="latent",
        )

    return step


def encode_prompts(pipeline: Any, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The text encoder's tokens of `batch` prompts and of as many empty ones, each (B, model_max_length, width)."""
    with torch.no_grad():
        prompts = [f"a photo of a thing, number {row}" for row in range(batch)]
        found: tuple[torch.Tensor, torch.Tensor] = pipeline.encode_prompt(prompts, pipeline.device, 1, True)
    return found
