"""The frozen model against diffusers itself: schedule, encoder scaling, noise prediction, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from toy import LATENT_CHANNELS, RESOLUTION, WIDTH, build_checkpoint

from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.checkpoints import MINI, available, hash_weights
from diffusion_inversion.generator.generator import Generator


def test_facts_of_the_checkpoint(generator: Generator) -> None:
    assert (generator.resolution, generator.vae_factor) == (RESOLUTION, 2)
    assert (generator.latent_channels, generator.text_width) == (LATENT_CHANNELS, WIDTH)
    assert generator.training_timesteps == 1000
    assert generator.adapter is None


def test_latents_are_scaled_as_diffusers_does(generator: Generator) -> None:
    images = torch.rand(3, 3, RESOLUTION, RESOLUTION) * 2 - 1
    ours = generator.encode(images)
    theirs = generator.vae.encode(images).latent_dist
    noise = torch.randn(ours.mean.shape)
    scaled = (theirs.mean + theirs.std * noise) * generator.vae.config.scaling_factor
    torch.testing.assert_close(ours.sample(noise), scaled, rtol=1e-5, atol=1e-6)
    decoded = generator.vae.decode(theirs.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(generator.decode(ours.mean), decoded, rtol=1e-4, atol=1e-5)


def test_add_noise_and_target_are_the_schedulers_own(generator: Generator) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(generator.scheduler_config)
    latents, noise = torch.randn(2, 4, LATENT_CHANNELS, 8, 8)
    timesteps = torch.tensor([0, 300, 700, 999])
    theirs = scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(generator.add_noise(latents, noise, timesteps), theirs, rtol=1e-4, atol=1e-5)
    if generator.prediction_type == "v_prediction":
        velocity = scheduler.get_velocity(latents, noise, timesteps)
        torch.testing.assert_close(generator.target(latents, noise, timesteps), velocity, rtol=1e-4, atol=1e-5)
    else:
        assert generator.target(latents, noise, timesteps) is noise


def test_text_tokens_are_the_pipelines(generator: Generator, checkpoint: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    theirs, _ = pipeline.encode_prompt("a photo of a cat", "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(generator.text_tokens(["a photo of a cat"]), theirs)


def test_every_weight_is_frozen(generator: Generator) -> None:
    for module in (generator.vae, generator.unet, generator.text_encoder):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_pickled_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    for file in (copy / "unet").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(UsageError, match=r"unet: no safetensors.*safe_serialization"):
        Generator.load(copy)


@pytest.mark.parametrize("name", ["no-such-folder", "./neither/this", "a/b/c"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        Generator.load(name)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    with pytest.raises(UsageError, match="unet, text_encoder, tokenizer, scheduler missing"):
        Generator.load(tmp_path)


def test_the_hash_is_of_the_contents(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    assert hash_weights(copy) == hash_weights(checkpoint)
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert hash_weights(copy) != hash_weights(checkpoint)


def test_bfloat16_is_close_to_float32(checkpoint: Path, generator: Generator) -> None:
    half = Generator.load(checkpoint, device="cpu", dtype="bfloat16")
    z, t, c = torch.randn(4, LATENT_CHANNELS, 8, 8), torch.tensor([5, 300, 600, 990]), torch.randn(4, 5, WIDTH)
    with torch.no_grad():
        full, low = generator.predict(z, t, c), half.predict(z, t, c)
    assert low.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full.flatten(), low.flatten(), dim=0) > 0.999


def test_mini_is_always_available() -> None:
    assert available()["mini"] == MINI


def test_attention_is_chosen_by_the_side_of_the_latents(tmp_path: Path) -> None:
    """On a CPU a network of Stable Diffusion's side takes plain attention for small latents; both kinds agree."""
    folder = build_checkpoint(tmp_path / "toy")
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 8', '"sample_size": 64'))
    generator = Generator.load(folder, device="cpu", dtype="float32")
    t, c = torch.tensor([500]), torch.randn(1, 5, WIDTH)

    def kinds() -> set[str]:
        return {type(processor).__name__ for processor in generator.unet.attn_processors.values()}

    for side, expected in ((8, "AttnProcessor"), (40, "AttnProcessor2_0"), (16, "AttnProcessor")):
        z = torch.randn(1, LATENT_CHANNELS, side, side)
        generator.predict(z, t, c)
        assert kinds() == {expected}
    z = torch.randn(1, LATENT_CHANNELS, 16, 16)
    plain = generator.predict(z, t, c)
    generator.predict(torch.randn(1, LATENT_CHANNELS, 40, 40), t, c)  # leaves the fused kind in place
    torch.testing.assert_close(generator.unet(z, t, encoder_hidden_states=c).sample, plain, rtol=1e-4, atol=1e-5)


def test_decode_moves_latents_to_its_device(checkpoint: Path) -> None:
    """As `encode` does with images; the device without storage stands for CUDA."""
    loaded = Generator.load(checkpoint, device="cpu", dtype="float32")
    loaded.vae.to("meta")
    loaded.device = torch.device("meta")
    assert loaded.decode(torch.zeros(1, loaded.latent_channels, 8, 8)).device.type == "meta"
