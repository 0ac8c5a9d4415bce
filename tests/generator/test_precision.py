"""The gradient to c in every precision against float64, and gradient checkpointing against none."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from forked import python
from torch import Tensor
from toy import WIDTH, toy_images

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.invert.objective import EvaluationBank, gradients, loss_scale
from diffusion_inversion.invert.optimisation import gradient_checkpointing

IMAGES = toy_images(4)
# Least cosine to the float64 gradient of an image's gradient, at one draw. Measured: see docs/results/costs.md.
LEAST = {"float32": 0.999999, "bfloat16": 0.999, "float16": 0.9999}


def exact(generator: Generator, latents: Tensor, noise: Tensor, timesteps: Tensor, c: Tensor) -> Tensor:
    """The gradient of the summed losses to c in float64, from the float32 weights."""
    unet = copy.deepcopy(generator.unet).double()
    c, latents, noise = c.double().requires_grad_(True), latents.double(), noise.double()
    alpha_bar = generator.alphas_cumprod.double()[timesteps][:, None, None, None]
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    target = noise if generator.prediction_type == "epsilon" else velocity
    predicted = unet(noisy, timesteps, encoder_hidden_states=c).sample
    (predicted - target).square().mean(dim=(1, 2, 3)).sum().backward()
    assert c.grad is not None
    return c.grad


def cosine(a: Tensor, b: Tensor) -> float:
    """The least cosine of an image."""
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(1), b.double().flatten(1), dim=1).min())


def bank(generator: Generator) -> EvaluationBank:
    dist = generator.encode(to_model_range(IMAGES.images))
    return EvaluationBank.draw(generator, dist, IMAGES.ids, InvertSettings(eval_draws=4))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_gradient_points_where_that_of_float64_points(generator: Generator, checkpoint: Path, dtype: str) -> None:
    tested = Generator.load(checkpoint, device="cpu", dtype=dtype)
    c = torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.3
    draws = bank(generator)
    for z, eps, t in zip(draws.latents, draws.noise, draws.timesteps, strict=True):
        loss, found = gradients(tested, z, eps, t, c, 4, loss_scale(tested, z))
        expected = exact(generator, z, eps, t, c)
        assert loss.dtype == found.dtype == torch.float32
        assert cosine(found, expected) >= LEAST[dtype]
        torch.testing.assert_close(found.norm().double(), expected.norm(), rtol=2e-2, atol=0)


def test_float16_needs_the_scaled_loss_where_gradients_are_small(checkpoint: Path, generator: Generator) -> None:
    """A network that hears c a thousand times less: its float16 gradient suffers without the scale."""
    faint = {name: Generator.load(checkpoint, device="cpu", dtype=name) for name in ("float32", "float16")}
    for each in faint.values():
        for name, weight in each.unet.named_parameters():
            if "attn2.to_out.0.weight" in name:
                weight.data *= 1e-3
    c = torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.3
    draws = bank(generator)
    z, eps, t = draws.latents[1], draws.noise[1], draws.timesteps[1]
    expected = exact(faint["float32"], z, eps, t, c)
    scale = loss_scale(faint["float16"], z)
    assert scale == 256.0 == z[0].numel() and loss_scale(faint["float16"], z, 1) == 16.0
    assert loss_scale(faint["float16"], z[:1]) == 256.0, "of an image alone"
    assert loss_scale(faint["float32"], z) == 1.0
    with_scale = cosine(gradients(faint["float16"], z, eps, t, c, 4, scale)[1], expected)
    without = cosine(gradients(faint["float16"], z, eps, t, c, 4)[1], expected)
    assert with_scale > 0.999 and without < with_scale


def test_checkpointing_computes_the_same_vectors(generator: Generator, tmp_path: Path) -> None:
    settings = InvertSettings(steps=3, init="random", eval_draws=1)
    kept = invert(IMAGES, generator, tmp_path / "a", settings)
    again = invert(IMAGES, generator, tmp_path / "b", settings.model_copy(update={"gradient_checkpointing": True}))
    assert torch.equal(again.vectors, kept.vectors) and torch.equal(again.losses, kept.losses)
    assert not generator.unet.is_gradient_checkpointing and not generator.unet.training
    with gradient_checkpointing(generator, True):
        assert generator.unet.is_gradient_checkpointing


PEAK = """
import sys, torch
from diffusers import UNet2DConditionModel
from diffusion_inversion.run.bench.memory import own_peak
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=2,
    down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2, cross_attention_dim=64,
).requires_grad_(False).eval()
if sys.argv[1] == "yes":
    unet.enable_gradient_checkpointing()
z, t, c = torch.randn(16, 4, 16, 16), torch.full((16,), 500), torch.randn(16, 5, 64, requires_grad=True)
before = own_peak()
unet(z, t, encoder_hidden_states=c).sample.square().sum().backward()
print((own_peak() - before) / 1e6, float(c.grad.norm()))
"""


def test_checkpointing_takes_less_memory() -> None:
    """Peak resident memory that one step adds, of a UNet of 6 million parameters at 16 images, in child processes."""
    found = {}
    for enabled in ("yes", "no"):
        found[enabled] = tuple(map(float, python(PEAK, enabled).split()))
    print(found)
    assert found["yes"][0] < 0.75 * found["no"][0]
    assert found["yes"][1] == pytest.approx(found["no"][1], rel=1e-6)
