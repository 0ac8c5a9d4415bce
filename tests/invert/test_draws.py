"""What stage 1 draws: uniform timesteps, noise that is nobody else's, strata of the bank, starts, the run's seed."""

from __future__ import annotations

import pytest
import torch
from toy import WIDTH, toy_images

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.generator.generator import Generator, LatentDistribution
from diffusion_inversion.invert.inversion import guesses
from diffusion_inversion.invert.objective import EvaluationBank, draw
from diffusion_inversion.invert.optimisation import invert_batch
from diffusion_inversion.randomness import generator_for

COUNT = 4000
IDS = tuple(f"image {number}" for number in range(COUNT))


def standard_normal(generator: Generator, count: int = COUNT) -> LatentDistribution:
    """An encoder whose samples are the numbers that it draws."""
    zeros = torch.zeros(count, generator.latent_channels, 1, 1)
    return LatentDistribution(zeros, zeros)


def streams(count: int = COUNT) -> list[torch.Generator]:
    return [generator_for(0, "invert", image_id) for image_id in IDS[:count]]


def test_timesteps_are_uniform_over_the_whole_schedule(generator: Generator) -> None:
    """400 of 4,000 are expected in each tenth, with a standard deviation of 19: within five of them."""
    _, _, timesteps = draw(generator, standard_normal(generator), streams())
    tenths = (timesteps * 10 // generator.training_timesteps).bincount(minlength=10)
    assert len(tenths) == 10 and tenths.min() > 400 - 95 and tenths.max() < 400 + 95
    assert int(timesteps.min()) >= 0 and int(timesteps.max()) < generator.training_timesteps


def test_noise_is_standard_normal_and_independent_of_the_encoders(generator: Generator) -> None:
    latents, noise, _ = draw(generator, standard_normal(generator), streams())
    pair = torch.stack([latents.flatten(), noise.flatten()]).double()
    assert pair.mean(1).abs().max() < 0.05
    torch.testing.assert_close(pair.cov(), torch.eye(2, dtype=torch.float64), atol=0.05, rtol=0)


def test_latents_are_a_sample_of_the_encoders_distribution(generator: Generator) -> None:
    """mean + exp(logvar / 2) * normal: here of mean 3 and standard deviation 1/2."""
    ones = torch.ones(COUNT, generator.latent_channels, 1, 1)
    latents, _, _ = draw(generator, LatentDistribution(3 * ones, -2 * ones * torch.log(2 * ones)), streams())
    assert float(latents.mean()) == pytest.approx(3, abs=0.02) and float(latents.std()) == pytest.approx(0.5, rel=0.05)


def test_a_stream_goes_on_at_the_next_step(generator: Generator) -> None:
    ours = streams(3)
    first = draw(generator, standard_normal(generator, 3), ours)
    second = draw(generator, standard_normal(generator, 3), ours)
    assert not any(torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True))


@pytest.mark.parametrize("draws", [1, 2, 8])
def test_each_draw_of_the_bank_has_its_own_stretch_of_the_schedule(generator: Generator, draws: int) -> None:
    count, settings = 300, InvertSettings(eval_draws=draws)
    bank = EvaluationBank.draw(generator, standard_normal(generator, count), IDS[:count], settings)
    stretch = generator.training_timesteps / draws
    for number, timesteps in enumerate(bank.timesteps):
        inside = (timesteps - number * stretch) / stretch
        assert 0 <= float(inside.min()) < 0.05 and 0.95 < float(inside.max()) < 1
        assert float(inside.mean()) == pytest.approx(0.5, abs=0.09)  # five standard errors
    pair = torch.stack([bank.latents.flatten(), bank.noise.flatten()])
    assert float(pair.corrcoef()[0, 1]) == pytest.approx(0, abs=0.15)


def test_the_mean_of_the_bank_is_over_its_draws(generator: Generator) -> None:
    from diffusion_inversion.invert.objective import stage1_loss

    images, settings = toy_images(2), InvertSettings(eval_draws=3)
    bank = EvaluationBank.draw(generator, generator.encode(to_model_range(images.images)), images.ids, settings)
    vectors = torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        parts = zip(bank.latents, bank.noise, bank.timesteps, strict=True)
        each = [stage1_loss(generator, z, eps, t, vectors) for z, eps, t in parts]
    for at_once in (1, 2):
        torch.testing.assert_close(bank.loss(generator, vectors, at_once), sum(each) / 3, rtol=1e-4, atol=1e-5)


def test_random_starts_are_uniform_within_a_tenth(generator: Generator) -> None:
    images = toy_images(40)
    settings = InvertSettings(init="random")
    start = guesses(images, to_model_range(images.images), generator, settings)
    assert start.shape == (40, settings.tokens, WIDTH)
    assert 0.099 < float(start.max()) <= 0.1 and -0.1 <= float(start.min()) < -0.099
    assert float(start.std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)


def test_warm_starts_are_the_class_names_tokens_where_there_is_no_adapter(generator: Generator) -> None:
    images = toy_images(3)
    assert generator.adapter is None
    start = guesses(images, to_model_range(images.images), generator, InvertSettings())
    names = [images.class_names[label] for label in images.labels]
    torch.testing.assert_close(start, generator.text_tokens(names)[:, :5])


def test_the_runs_seed_moves_starts_steps_and_bank_each(generator: Generator) -> None:
    """From the same starts another seed learns otherwise, and is measured by another bank."""
    images = toy_images(2)
    pixels = to_model_range(images.images)
    settings = [InvertSettings(steps=1, init="random", eval_draws=2, seed=seed) for seed in (0, 0, 1)]
    starts = [guesses(images, pixels, generator, one) for one in settings]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    found = [invert_batch(generator, pixels, starts[0], images.ids, one) for one in settings]
    assert torch.equal(found[0].vectors, found[1].vectors) and torch.equal(found[0].losses, found[1].losses)
    assert not torch.equal(found[0].vectors, found[2].vectors)
    assert not torch.equal(found[0].losses[0], found[2].losses[0])  # before a step was made
