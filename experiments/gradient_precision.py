"""Cosine between an image's gradient to c and the one in float64, by the precision of the UNet.

    python experiments/gradient_precision.py [--generator mini] [--data digits] [--images 8] [--draws 8]

Prints, for float32, bfloat16 and float16 (with its loss scale), the least cosine over all images and draws, and the
least over images of the mean gradient over the draws. Same latents, noises and timesteps for all.
Cost: seconds for mini.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor

from diffusion_inversion import Generator, InvertSettings, load_images
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.invert.inversion import guesses
from diffusion_inversion.invert.objective import EvaluationBank, gradients, loss_scale


def exact(generator: Generator, z: Tensor, eps: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """The gradient (B, tokens, width) with the UNet and everything else in float64."""
    unet = copy.deepcopy(generator.unet).double()
    alpha_bar = generator.alphas_cumprod.double()[t][:, None, None, None]
    noisy = alpha_bar.sqrt() * z.double() + (1 - alpha_bar).sqrt() * eps.double()
    target = eps.double()
    if generator.prediction_type == "v_prediction":
        target = alpha_bar.sqrt() * eps.double() - (1 - alpha_bar).sqrt() * z.double()
    c = c.double().requires_grad_(True)
    prediction = unet(noisy, t, encoder_hidden_states=c).sample
    (prediction - target).square().mean(dim=(1, 2, 3)).sum().backward()
    assert c.grad is not None
    return c.grad


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(1), b.double().flatten(1), dim=1).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", default="mini")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--draws", type=int, default=8)
    given = parser.parse_args()
    reference = Generator.load(given.generator, device="cpu", dtype="float32")
    images = load_images(given.data, limit=max(given.images, 10)).subset(range(given.images))
    pixels = to_model_range(images.resized(reference.resolution).images)
    settings = InvertSettings(eval_draws=given.draws)
    c = guesses(images, pixels, reference, settings)
    bank = EvaluationBank.draw(reference, reference.encode(pixels), images.ids, settings)
    draws = list(zip(bank.latents, bank.noise, bank.timesteps, strict=True))
    wanted = torch.stack([exact(reference, *draw, c) for draw in draws])
    for dtype in ("float32", "bfloat16", "float16"):
        tested = Generator.load(given.generator, device="cpu", dtype=dtype)
        scale = loss_scale(tested, bank.latents[0])
        found = torch.stack([gradients(tested, *draw, c, len(images), scale)[1] for draw in draws])
        each = min(cosine(a, b) for a, b in zip(found, wanted, strict=True))
        mean = cosine(found.mean(0), wanted.mean(0))
        print(f"{dtype}: least of {len(images) * len(draws)} gradients {each:.6f}, of the means {mean:.6f}")


if __name__ == "__main__":
    main()
