"""A tiny Stable Diffusion checkpoint made of diffusers' own classes, and tiny images to invert."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_inversion.config.sampling import PromptSettings
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.pretrain.tokenizer import train_tokenizer
from diffusion_inversion.sample.prompting import Prompt, classes_of, draw_prompts
from diffusion_inversion.sample.synthetic import read_synthetic

CLASSES = ("cat", "dog", "owl")
WIDTH, LATENT_CHANNELS, RESOLUTION = 32, 4, 16
# As CompVis/stable-diffusion-v1-4 ships it: a PNDM config with its own beta schedule.
SD14_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
MINI_SCHEDULER = SD14_SCHEDULER | {
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}


def build_checkpoint(folder: Path, scheduler: dict[str, Any] = SD14_SCHEDULER, scaling_factor: float = 0.18215) -> Path:
    """Write a random-weight Stable Diffusion of some 100,000 parameters in diffusers' layout: 16 px, f = 2."""
    from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=scaling_factor,
    )
    unet = UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
    )
    text_config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=600,
        max_position_embeddings=16, bos_token_id=0, pad_token_id=1, eos_token_id=1,
    )  # fmt: skip
    classes = {"PNDMScheduler": PNDMScheduler, "DDIMScheduler": DDIMScheduler}
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=train_tokenizer(["a photo of a cat"], vocab_size=600),
        scheduler=classes[str(scheduler["_class_name"])].from_config(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def toy_images(count: int = 6, size: int = RESOLUTION, classes: int = 2) -> LabelledImages:
    """Smooth random colour images, `count` of them, labels in turn."""
    stream = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 4, 4, generator=stream)
    pixels = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return LabelledImages(
        name="toy",
        ids=tuple(f"toy/{i:03d}.png" for i in range(count)),
        hashes=tuple(f"{i:064x}" for i in range(count)),
        labels=torch.arange(count) % classes,
        class_names=CLASSES[:classes],
        images=(pixels * 255).round().to(torch.uint8),
        native_size=size,
    )


def prompted(prompts: Sequence[Prompt], generator: Generator, run: Path, settings: PromptSettings) -> LabelledImages:
    """The images of prompts, drawn where they are not there yet."""
    draw_prompts(prompts, generator, run, settings)
    return read_synthetic(run, classes_of(prompts))
