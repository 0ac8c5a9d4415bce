"""Stage 1 with joint groups against the reference code's loop (github.com/yongchaoz/diffusion_inversion), restated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import WIDTH, toy_images

from diffusion_inversion.config.presets import read_preset
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.errors import PartialError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import EmbeddingStore, Shard, read_embeddings
from diffusion_inversion.invert.inversion import invert, learning_order
from diffusion_inversion.invert.optimisation import invert_batch
from diffusion_inversion.invert.trajectory import mini_batch
from diffusion_inversion.randomness import generator_for, shuffled
from diffusion_inversion.sample.variants import pick_partner, plan_variant, unconditional_tokens

GROUP, BATCH, STEPS = 5, 2, 7


def joint() -> InvertSettings:
    """Preset `reference`, small: mini-batches of 2, 2 and 1."""
    small = {"group_size": GROUP, "joint_batch_size": BATCH, "steps": STEPS, "keep_steps": tuple(range(STEPS))}
    return InvertSettings.model_validate({**read_preset("reference")["invert"], **small, "eval_draws": 1})


def reference_loop(checkpoint: Path, initial: Tensor, ids: tuple[str, ...]) -> list[Tensor]:
    """What src/diffuser_inversion.py does: vectors (GROUP, tokens, width) before every step and after the last.

    Random numbers are ours: of each image's own stream first the encoder's, then the noise, then the timestep.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    settings = joint()
    unet = UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet").requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(checkpoint, subfolder="vae").requires_grad_(False)
    scheduler = DDPMScheduler.from_pretrained(checkpoint, subfolder="scheduler")
    emb = torch.nn.Linear(GROUP, settings.tokens * WIDTH, bias=False)
    emb.weight.data = initial.flatten(1).T.clone()
    optimizer = torch.optim.AdamW(emb.parameters(), lr=0.03, weight_decay=1e-2, betas=(0.9, 0.999), eps=1e-8)
    loader = torch.utils.data.DataLoader(range(GROUP), batch_size=BATCH, shuffle=False)  # type: ignore[arg-type]
    streams = [generator_for(settings.seed, "invert", image_id) for image_id in ids]
    found, batches = [], []
    while len(found) < STEPS:
        batches = batches or list(loader)
        rows = batches.pop(0)
        found.append(emb.weight.detach().T.reshape(GROUP, settings.tokens, WIDTH).clone())
        pixels = to_model_range(toy_images(GROUP).images)[rows]
        encoded = vae.encode(pixels).latent_dist
        of_encoder, noise = torch.stack(
            [torch.randn(2, *encoded.mean.shape[1:], generator=streams[row]) for row in rows], dim=1
        )
        timesteps = torch.stack([torch.randint(0, 1000, (), generator=streams[row]) for row in rows])
        latents = (encoded.mean + encoded.std * of_encoder) * vae.config.scaling_factor
        c = emb(torch.eye(GROUP)[rows]).reshape(len(rows), settings.tokens, WIDTH)
        predicted = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, c).sample
        epsilon = scheduler.config.prediction_type == "epsilon"
        target = noise if epsilon else scheduler.get_velocity(latents, noise, timesteps)
        torch.nn.functional.mse_loss(predicted.float(), target.float(), reduction="mean").backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*found, emb.weight.detach().T.reshape(GROUP, settings.tokens, WIDTH).clone()]


def test_every_step_equals_the_reference_loop(generator: Generator, checkpoint: Path) -> None:
    images = toy_images(GROUP)
    initial = (torch.rand(GROUP, 5, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1) / GROUP**0.5
    ours = invert_batch(generator, to_model_range(images.images), initial, images.ids, joint(), at_once=BATCH).vectors
    theirs = torch.stack(reference_loop(checkpoint, initial, images.ids))
    assert len(ours) == STEPS + 1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)  # one step moves a number by up to 0.03
    moved = (theirs[1:] - theirs[:-1]).abs().amax((2, 3)) > 1e-3
    # Momentum carries absent rows on from their second turn: rows 0 and 1 have a loss at steps 0, 3 and 6 alone.
    assert moved[1:3, :2].all() and not moved[:2, 4].any() and moved[2:, 4].all()


def test_mini_batches_follow_each_other_without_shuffling() -> None:
    batches = [list(mini_batch(joint(), step, GROUP)) for step in range(4)]
    assert batches == [[0, 1], [2, 3], [4], [0, 1]]
    assert mini_batch(InvertSettings(), 3, GROUP) == range(GROUP)


def test_preset_reference_gives_every_image_3000_losses() -> None:
    settings = InvertSettings.model_validate(read_preset("reference")["invert"])
    turns = torch.zeros(settings.group_size)
    for step in range(settings.steps):
        turns[list(mini_batch(settings, step, settings.group_size))] += 1
    assert turns.unique().tolist() == [3000]
    assert settings.keep_steps == (2000, 4000, 6000)  # train_steps x 2 of its sample_dataset.py


def test_groups_are_mixed_committed_whole_and_start_as_nn_linear(generator: Generator, tmp_path: Path) -> None:
    images, settings = toy_images(20), joint().model_copy(update={"steps": 0, "keep_steps": ()})
    start = invert(images, generator, tmp_path, settings).at()
    units = [record["ids"] for record in EmbeddingStore(tmp_path).manifest.units().values()]
    assert [len(ids) for ids in units] == [GROUP] * 4
    assert [i for ids in units for i in ids] == learning_order(images.ids, settings) != list(images.ids)
    assert read_embeddings(tmp_path).ids == images.ids
    bound = GROUP**-0.5
    assert 0.98 * bound < float(start.abs().max()) <= bound
    assert float(start.var()) == pytest.approx(bound**2 / 3, rel=0.1)


def test_groups_of_stage_2_are_those_learned_together_after_a_failure_an_addition_and_a_removal(
    generator: Generator, tmp_path: Path
) -> None:
    images, settings = toy_images(20), joint().model_copy(update={"steps": 0, "keep_steps": ()})
    first, failed = invert(images.subset(range(8)), generator, tmp_path, settings), images.subset(range(8, 12))
    store = EmbeddingStore(tmp_path)
    vectors = first.vectors[:, :4].clone()
    vectors[0, 1, 2, 3] = torch.nan
    store.commit(Shard(failed.ids, failed.labels, vectors, first.losses[:, :4], first.null_losses[:4]), failed)
    together = [set(record["ids"]) for record in store.manifest.units().values()]
    assert [len(ids) for ids in together] == [5, 3, 4]
    with pytest.raises(PartialError, match="1 of 20 images"):
        invert(images, generator, tmp_path, settings)
    rest = [i for i in learning_order(images.ids, settings) if i in images.ids[12:]]
    together += [set(rest[:5]), set(rest[5:])]
    gone = {failed.ids[1], rest[0]}
    store.remove({rest[0]})
    found = read_embeddings(tmp_path)
    assert {*found.ids} == {*images.ids} - gone
    for size, seed in ((GROUP, 0), (100, 3)):
        drawing = SampleSettings(unconditional="group-mean", partner="reference", group_size=size, seed=seed)
        rows = range(len(found))
        plans = [plan_variant(found, generator, drawing, row, 0) for row in rows]
        for row, mean in zip(rows, unconditional_tokens(found, generator, plans, drawing), strict=True):
            (unit,) = (ids - gone for ids in together if found.ids[row] in ids)
            group = [other for other in rows if found.ids[other] in unit]
            assert sorted(found.group(row, size, seed)) == group
            torch.testing.assert_close(mean, found.at()[group].mean(0))
            stream = torch.Generator().manual_seed(0)
            partners = {pick_partner(found, drawing, row, found.steps[-1], stream) for _ in range(200)}
            assert partners == {*group} - {row}


def test_groups_of_stage_2_are_cut_by_size_where_each_image_was_learned_alone(
    generator: Generator, tmp_path: Path
) -> None:
    settings = InvertSettings(steps=0, init="random", batch_size=3, eval_draws=1)
    found = invert(toy_images(10), generator, tmp_path, settings)
    order = shuffled(found.ids, 7)
    assert {tuple(found.ids[other] for other in found.group(row, 4, 7)) for row in range(10)} == {
        tuple(order[:4]), tuple(order[4:8]), tuple(order[8:]),
    }  # fmt: skip
