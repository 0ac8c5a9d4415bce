"""The recipe of `mini` on a few images: exact normalisation, resumption, a checkpoint that diffusers draws with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.generator import Generator, initialise
from diffusion_inversion.images import to_model_range
from diffusion_inversion.pretrain import recipe, unet
from diffusion_inversion.pretrain.corpus import Corpus, batch_indices
from diffusion_inversion.pretrain.log import read_log
from diffusion_inversion.pretrain.optim import learning_rate, trapezoid
from diffusion_inversion.pretrain.tokenizer import MAX_LENGTH, train_tokenizer
from diffusion_inversion.pretrain.vae import normalise_latents, psnr, reconstruct

NAMES = ("goldfish", "tabby cat")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    images = torch.randint(256, (32, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Corpus(images.repeat_interleave(4, 2).repeat_interleave(4, 3), torch.arange(32) % 2, NAMES)


def test_normalised_latents_have_unit_statistics_and_decode_as_before(corpus: Corpus) -> None:
    vae = initialise(recipe.ARCHITECTURE, seed=0)["vae"].eval().requires_grad_(False)
    images = to_model_range(corpus.images)
    before = vae.encode(images).latent_dist
    decoded = reconstruct(vae, images)
    normalise_latents(vae, corpus.images)
    after = vae.encode(images).latent_dist
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(8), rtol=1e-4, atol=1e-4)
    scale = before.mean.std((0, 2, 3))[None, :, None, None]
    torch.testing.assert_close(after.std, before.std / scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reconstruct(vae, images), decoded, rtol=1e-3, atol=1e-4)


def test_psnr_is_that_of_torchmetrics(corpus: Corpus) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    vae = initialise(recipe.ARCHITECTURE, seed=0)["vae"].eval().requires_grad_(False)
    decoded = ((reconstruct(vae, to_model_range(corpus.images)).clamp(-1, 1) + 1) * 127.5).round()
    theirs = [
        peak_signal_noise_ratio(d[None], x[None].float(), data_range=255.0)
        for d, x in zip(decoded, corpus.images, strict=True)
    ]
    assert psnr(vae, corpus.images) == pytest.approx(float(torch.stack(theirs).mean()), rel=1e-4)


def test_batches_are_epochs_without_replacement() -> None:
    rows = torch.cat([batch_indices(10, 5, step, seed=0) for step in range(4)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    with pytest.raises(DataError, match="4 images, fewer than a batch of 5"):
        batch_indices(4, 5, step=0, seed=0)


def test_learning_rates_start_and_end_low() -> None:
    assert learning_rate(1.0, 0, 1000) < 0.01 and learning_rate(1.0, 999, 1000) < 0.01
    assert trapezoid(1.0, 500, 1000) == 1.0 and trapezoid(1.0, 900, 1000) == pytest.approx(0.5)


def test_the_tokenizer_knows_every_character_and_merges_frequent_words() -> None:
    tokenizer = train_tokenizer(["a photo of a goldfish"] * 5, vocab_size=600)
    ids = tokenizer(["zebra ünï 7!", "a photo of a goldfish"]).input_ids
    assert all(tokenizer.eos_token_id not in row[1:-1] for row in ids)  # the end token doubles as unknown
    assert ids[0][0] == tokenizer.bos_token_id and ids[0][-1] == tokenizer.eos_token_id
    assert len(ids[1]) == 7
    assert tokenizer.model_max_length == MAX_LENGTH
    assert len(tokenizer) == len(set(tokenizer.get_vocab().values()))


def test_the_recipe_resumes_and_its_checkpoint_loads_in_diffusers(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps at once equal two, a kill, and two more; then StableDiffusionPipeline draws with the export."""
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file

    monkeypatch.setattr(unet, "VALIDATION_IMAGES", 4)
    monkeypatch.setattr(unet, "LOG_EVERY", 1)
    monkeypatch.setattr(unet, "VALIDATION_DRAWS", 1)
    recipe.run_vae(corpus, corpus, tmp_path, samples=64)
    recipe.run_latents(corpus, corpus, tmp_path)
    small = {"batch_size": 4, "ema_decay": 0.9}
    vae_files = ("vae.safetensors", "latents-train.safetensors", "latents-validation.safetensors")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        for name in vae_files:
            (folder / name).symlink_to(tmp_path / name)
    monkeypatch.setattr(recipe, "train_unet", lambda *a, **k: unet.train_unet(*a, **(k | small)))
    recipe.run_unet(corpus, corpus, whole, samples=16)

    class Killed(Exception):
        pass

    def killed_at_step_2(peak: float, step: int, total_steps: int) -> float:
        if step == 2:
            raise Killed
        return trapezoid(peak, step, total_steps)

    monkeypatch.setattr(unet, "SAVE_EVERY", 2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(unet, "trapezoid", killed_at_step_2)
        recipe.run_unet(corpus, corpus, parts, samples=16)
    recipe.run_unet(corpus, corpus, parts, samples=16)
    a, b = load_file(whole / recipe.DENOISER), load_file(parts / recipe.DENOISER)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, msg=key)
    for folder in (whole, parts):  # no step of the killed run was made again
        records = read_log(folder / "unet.log.tsv")
        assert [int(record["step"]) for record in records] == [1, 2, 3, 4]
        assert float(records[-1]["val_adapter"]) > 0

    (whole / "vae.log.tsv").symlink_to(tmp_path / "vae.log.tsv")
    recipe.export(corpus, whole)
    pipeline = StableDiffusionPipeline.from_pretrained(whole / "mini", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(["a photo of a goldfish"], num_inference_steps=2).images[0].size == (32, 32)
    generator = Generator.load(whole / "mini", dtype="float32")
    assert generator.image_tokens(to_model_range(corpus.images[:2])).shape == (2, 5, 256)
    assert "not measured" in (whole / "mini" / "README.md").read_text()

    # Go on from the export alone: its weights (to half precision), its place in the log, fresh moments.
    later = tmp_path / "later"
    later.mkdir()
    recipe.lay_down(str(whole / "mini"), later)
    state = load_file(later / "unet.state.safetensors")
    for key in a:
        torch.testing.assert_close(state[f"module/ema/{key}"], a[key], rtol=1e-3, atol=1e-3, msg=key)
    recipe.run_latents(corpus, corpus, later)
    recipe.run_unet(corpus, corpus, later, samples=24)
    assert [int(record["step"]) for record in read_log(later / "unet.log.tsv")] == [1, 2, 3, 4, 5, 6]


def test_unknown_and_premature_stages_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.parquet"
    with pytest.raises(UsageError, match="--stage quantise"):
        recipe.pretrain(missing, missing, tmp_path, stages=("quantise",))
    with pytest.raises(UsageError, match="--target-train"):
        recipe.pretrain(missing, missing, tmp_path, stages=("figures",))
    with pytest.raises(UsageError, match="Run the stage vae first"):
        recipe.run_latents(Corpus(torch.empty(0, 3, 32, 32), torch.empty(0), NAMES), None, tmp_path)  # type: ignore[arg-type]
