"""Stage 1 against diffusers' own training loop, and the promises it makes: frozen, independent, resumable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import WIDTH, toy_images

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.errors import ConfigMismatchError, DataError, PartialError, UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import EmbeddingStore, read_embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.invert.objective import gradients, stage1_loss
from diffusion_inversion.invert.optimisation import invert_batch

SETTINGS = InvertSettings(steps=3, init="random", batch_size=2, eval_draws=2)


def test_gradient_equals_autograd_through_diffusers_own_loop(generator: Generator, checkpoint: Path) -> None:
    """The text-to-image training loop of diffusers, written with the pipeline's parts and its own scheduler."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    latents, noise = torch.randn(2, 3, generator.latent_channels, 8, 8)
    timesteps = torch.tensor([20, 480, 940])
    c = torch.randn(3, 5, WIDTH)

    ours = c.clone().requires_grad_(True)
    stage1_loss(generator, latents, noise, timesteps, ours).sum().backward()

    theirs = c.clone().requires_grad_(True)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = pipeline.unet(noisy, timesteps, encoder_hidden_states=theirs).sample
    if scheduler.config.prediction_type == "epsilon":
        target = noise
    else:
        target = scheduler.get_velocity(latents, noise, timesteps)
    loss = torch.nn.functional.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3)).sum()
    loss.backward()
    assert ours.grad is not None and theirs.grad is not None
    assert float(ours.grad.norm()) > 0
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)
    for at_once, scale in ((1, 1.0), (2, 8.0), (3, 1.0), (4, 1.0)):
        losses, found = gradients(generator, latents, noise, timesteps, c, at_once, scale)
        torch.testing.assert_close(losses.sum(), loss.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found, theirs.grad, rtol=1e-3, atol=1e-6)


def test_only_c_changes_and_weights_stay_bit_for_bit(generator: Generator, tmp_path: Path) -> None:
    modules = {"vae": generator.vae, "unet": generator.unet, "text": generator.text_encoder}
    before = {(n, k): v.clone() for n, m in modules.items() for k, v in m.state_dict().items()}
    found = invert(toy_images(4), generator, tmp_path, SETTINGS)
    for (name, key), value in before.items():
        assert torch.equal(modules[name].state_dict()[key], value), f"{name}.{key}"
        assert modules[name].get_parameter(key).grad is None
    start = invert(toy_images(4), generator, tmp_path / "zero", SETTINGS.model_copy(update={"steps": 0}))
    assert not torch.equal(found.at(), start.at())


def test_the_loss_on_the_bank_goes_down(generator: Generator, tmp_path: Path) -> None:
    settings = InvertSettings(steps=40, init="random", batch_size=4, eval_draws=8, learning_rate=0.03)
    found = invert(toy_images(4), generator, tmp_path, settings)
    assert found.curve_steps == (0, 10, 20, 30, 40)
    assert bool((found.losses[-1] < found.losses[0]).all())


def test_an_image_does_not_depend_on_its_neighbours(generator: Generator) -> None:
    images = toy_images(4)
    pixels = to_model_range(images.images)
    initial = torch.randn(4, 5, WIDTH)
    together = invert_batch(generator, pixels, initial, images.ids, SETTINGS)
    alone = invert_batch(generator, pixels[2:3], initial[2:3], images.ids[2:3], SETTINGS)
    torch.testing.assert_close(together.vectors[:, 2:3], alone.vectors, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together.losses[:, 2:3], alone.losses, rtol=1e-3, atol=1e-4)


def test_resumed_equals_uninterrupted(generator: Generator, tmp_path: Path) -> None:
    images = toy_images(6)
    whole = invert(images, generator, tmp_path / "whole", SETTINGS)
    stopped = tmp_path / "stopped"
    invert(images, generator, stopped, SETTINGS)
    # What a kill after the first of three batches leaves: its record, and a shard that no record names.
    manifest = EmbeddingStore(stopped).manifest
    manifest.rewrite([record for record in manifest.records() if record["event"] != "complete"][:2])
    again = invert(images, generator, stopped, SETTINGS)
    assert again.ids == whole.ids
    assert torch.equal(again.vectors, whole.vectors)
    assert torch.equal(again.losses, whole.losses)


def test_kept_steps_are_the_ends_of_shorter_runs(generator: Generator, tmp_path: Path) -> None:
    kept = invert(toy_images(2), generator, tmp_path / "a", SETTINGS.model_copy(update={"keep_steps": (1,)}))
    short = invert(toy_images(2), generator, tmp_path / "b", SETTINGS.model_copy(update={"steps": 1}))
    assert kept.steps == (1, 3)
    torch.testing.assert_close(kept.at(1), short.at())
    with pytest.raises(DataError, match="step 2"):
        kept.at(2)


def test_a_run_made_otherwise_is_refused(generator: Generator, tmp_path: Path) -> None:
    invert(toy_images(2), generator, tmp_path, SETTINGS)
    with pytest.raises(ConfigMismatchError, match=r"learning_rate: was 0\.03, now 0\.01"):
        invert(toy_images(2), generator, tmp_path, SETTINGS.model_copy(update={"learning_rate": 0.01}))


def test_added_images_are_learned_and_changed_ones_refused(generator: Generator, tmp_path: Path) -> None:
    four = toy_images(4)
    first = invert(four.subset([0, 2, 3]), generator, tmp_path, SETTINGS)
    grown = invert(four, generator, tmp_path, SETTINGS)
    assert grown.ids == four.ids and torch.equal(grown.labels, four.labels)
    assert torch.equal(grown.vectors[:, [0, 2, 3]], first.vectors)
    alone = invert(four.subset([1]), generator, tmp_path / "alone", SETTINGS)
    torch.testing.assert_close(grown.vectors[:, 1:2], alone.vectors, rtol=1e-3, atol=1e-4)
    for other, line in (
        (four.subset([0, 1, 2]), "toy/003.png: gone, or not selected"),
        (replace(four, hashes=("f" * 64, *four.hashes[1:])), "toy/000.png: other pixels"),
        (replace(four, labels=torch.tensor([1, 1, 0, 1])), "toy/000.png: another class"),
    ):
        with pytest.raises(ConfigMismatchError, match=line):
            invert(other, generator, tmp_path, SETTINGS)
    assert read_embeddings(tmp_path).ids == four.ids


def test_class_mean_starts_every_image_of_a_class_alike(generator: Generator, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 0, "init": "class-mean"})
    found = invert(toy_images(4), generator, tmp_path, settings).at()
    torch.testing.assert_close(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_class_means_stay_those_that_a_run_began_with(generator: Generator, tmp_path: Path) -> None:
    """So a vector that is learned again has its bits though images were added; a later class has its own mean."""
    settings = SETTINGS.model_copy(update={"steps": 0, "init": "class-mean", "batch_size": 2})
    images, store = toy_images(8), EmbeddingStore(tmp_path)
    first = invert(images.subset([0, 1, 2, 3]), generator, tmp_path, settings).at()
    for record in list(store.manifest.units().values()):
        store.manifest.append({"event": "drop", "unit": record["unit"]})
    later = replace(images, labels=torch.tensor([0, 1, 0, 1, 0, 1, 2, 2]), class_names=(*images.class_names, "emu"))
    found = invert(later, generator, tmp_path, settings).at()
    assert torch.equal(found[:4], first) and torch.equal(found[4], first[0]) and torch.equal(found[5], first[1])
    whole = invert(later, generator, tmp_path / "whole", settings).at()
    assert not torch.equal(whole[0], first[0]), "here the images that were added are in the mean"
    torch.testing.assert_close(found[6:], whole[6:])


def test_class_means_forget(generator: Generator, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 0, "init": "class-mean"})
    images, store = toy_images(6), EmbeddingStore(tmp_path)
    invert(images, generator, tmp_path, settings)
    store.remove({images.ids[0], images.ids[2]})
    assert images.ids[2] not in store.manifest.path.read_text()
    store.remove(set(images.ids))
    rest = images.subset([1, 3, 4, 5])
    again = invert(rest, generator, tmp_path, settings)
    assert torch.equal(again.at(), invert(rest, generator, tmp_path / "alone", settings).at())


def test_vectors_that_are_not_finite_are_named_and_never_stored(generator: Generator, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(PartialError, match="4 of 4 images gave vectors that are not finite"):
        invert(toy_images(4), generator, tmp_path, settings)
    assert list(EmbeddingStore(tmp_path).failed()) == list(toy_images(4).ids)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_bad_options_fail_before_any_work(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resolution=17: not a multiple of 2"):
        invert(toy_images(2), generator, tmp_path, SETTINGS.model_copy(update={"resolution": 17}))
    with pytest.raises(ValueError, match="keep_steps"):
        InvertSettings(steps=10, keep_steps=(20,))
    with pytest.raises(DataError, match="no learned vectors"):
        read_embeddings(tmp_path / "empty")


def test_a_damaged_shard_is_named(generator: Generator, tmp_path: Path) -> None:
    invert(toy_images(2), generator, tmp_path, SETTINGS)
    (shard,) = (tmp_path / "embeddings").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{shard.name}: changed since it was written"):
        read_embeddings(tmp_path)
