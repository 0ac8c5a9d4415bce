"""The embedded generator as shipped: a checkpoint that diffusers loads alone, small, and worth inverting into."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from toy import toy_images

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.generator.checkpoints import MINI
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.sample.sampling import reconstruct

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def mini() -> Generator:
    return Generator.load("mini", device="cpu")


def test_stable_diffusion_pipeline_draws_with_no_code_of_ours() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MINI, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        ["a photo of a goldfish", "a school bus"],
        num_inference_steps=5,
        guidance_scale=3.0,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert drawn.shape == (2, 64, 64, 3)
    assert 0.05 < drawn.std() < 0.45  # neither flat nor saturated


def test_it_fits_in_the_wheel() -> None:
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) < 64 * MEGABYTE
    assert not [path for path in MINI.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_the_card_reports_measured_figures() -> None:
    card = (MINI / "README.md").read_text()
    assert "not measured" not in card
    assert re.search(r"\| mini \| 64 px \| [\d,]+ \| \d+\.\d ± \d", card)  # fid_lite0 of prompted samples
    for domain in ("xsdd-64", "pbc-64", "ucmerced-64", "cifar10"):
        assert re.search(rf"\| {domain} \| mini \| \d+ \| 0\.\d+ \| 0\.\d+ \(0\.\d+\)", card), domain


def test_autoencoding_keeps_photographs(mini: Generator) -> None:
    images = toy_images(16, size=64).images
    decoded = (mini.decode(mini.encode(to_model_range(images)).mean) + 1) * 127.5
    mse = (decoded - images.float()).square().mean(dim=(1, 2, 3))
    assert float((10 * torch.log10(255**2 / mse)).mean()) > 24
    latents = mini.encode(to_model_range(images)).mean
    assert 0.3 < float(latents.std()) < 3


def test_conditioning_steers_it_and_inversion_steers_it_more(mini: Generator, tmp_path: Path) -> None:
    """Loss on the evaluation bank: the empty prompt > the adapter's guess > 15 steps of stage 1; and it shows."""
    digits = load_images("digits", limit=10)
    found = invert(digits, mini, tmp_path, InvertSettings(steps=15))
    empty, warm, learned = (
        float(found.null_losses.mean()),
        float(found.losses[0].mean()),
        float(found.losses[-1].mean()),
    )
    assert learned < warm < empty, (learned, warm, empty)
    drawn = reconstruct(found, mini, SampleSettings(inference_steps=8)).float()
    real = digits.resized(64).images.float()
    distance = (drawn[:, None] - real[None]).square().mean(dim=(2, 3, 4))
    own = distance.argmin(1) == torch.arange(len(digits))
    assert float(own.float().mean()) > 0.4  # chance is 0.1
