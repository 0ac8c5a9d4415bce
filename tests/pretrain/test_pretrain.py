"""The recipe of `mini` on a few images: exact normalisation, resumption, a checkpoint that diffusers draws with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.engine import faults
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.generator.checkpoints import MINI
from diffusion_inversion.generator.generator import Generator, initialise, noise_schedule
from diffusion_inversion.pretrain import decoder, loop, networks, parts, recipe, unet
from diffusion_inversion.pretrain.checkpoint import Progress
from diffusion_inversion.pretrain.corpus import Corpus
from diffusion_inversion.pretrain.log import read_log
from diffusion_inversion.pretrain.loop import Budget, PartEnded
from diffusion_inversion.pretrain.optim import trapezoid
from diffusion_inversion.pretrain.tokenizer import MAX_LENGTH, train_tokenizer
from diffusion_inversion.pretrain.vae import draw_views, equivariant, normalise_latents, quality, reconstruct
from diffusion_inversion.sample.png import encode_png

NAMES = ("goldfish", "tabby cat")
CPU = torch.device("cpu")
SIZE = 32  # the smaller of the two architectures
WIDTH = 32  # of tokens, where the architecture is narrow


def setting(folder: Path, **changes: object) -> recipe.Setting:
    given: dict[str, object] = {
        "size": SIZE, "folder": folder, "device": CPU, "batch_size": 4, "vae_batch_size": 4,
    }  # fmt: skip
    return recipe.Setting(**(given | changes))  # type: ignore[arg-type]


class Killed(Exception):
    pass


def killed_at_step_3(step: int, done: float, decay: float) -> float:
    """In place of `trapezoid`."""
    if step == 3:
        raise Killed
    return trapezoid(step, done, decay)


def killed_at(point: faults.Point) -> None:
    """At any point of a commit, as `faults.on_point`."""
    raise Killed


def write_corpus(path: Path, images: Tensor, labels: list[int], names: tuple[str, ...] | None = NAMES) -> Path:
    column = [{"bytes": encode_png(image), "path": None} for image in images]
    table = pa.table({"image": column, "label": labels})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    if names is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def test_normalised_latents_have_unit_statistics_and_decode_as_before(corpus: Corpus) -> None:
    for size in recipe.SIZES:
        vae = initialise(networks.ARCHITECTURES / str(size), seed=0)["vae"].eval().requires_grad_(False)
        images = to_model_range(corpus.images)
        before = vae.encode(images).latent_dist
        decoded = reconstruct(vae, images)
        normalise_latents(vae, corpus.images)
        after = vae.encode(images).latent_dist
        channels = before.mean.shape[1]
        torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(channels), rtol=0, atol=1e-4)
        torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(channels), rtol=1e-4, atol=1e-4)
        scale = before.mean.std((0, 2, 3))[None, :, None, None]
        torch.testing.assert_close(after.std, before.std / scale, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(reconstruct(vae, images), decoded, rtol=1e-3, atol=2e-4)


def test_latents_are_changed_as_their_images_are() -> None:
    """An autoencoder whose latents are the image at half the side: what the pairs hold is each other's image."""
    images = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    full, halved = equivariant(F.avg_pool2d(images, 2), images)
    for latents, wanted in (full, halved):
        torch.testing.assert_close(F.avg_pool2d(wanted, 2), latents)
    assert full[1].shape == (24, 3, 16, 16) and halved[1].shape == (8, 3, 8, 8)
    assert torch.equal(full[1][:12], images[:12])
    expected = [images[12:15].rot90(1, (2, 3)), images[15:18].rot90(2, (2, 3)), images[18:21].rot90(3, (2, 3))]
    assert torch.equal(full[1][12:], torch.cat([*expected, images[21:24].flip(-1)]))
    torch.testing.assert_close(halved[1], F.avg_pool2d(images[24:], 2))


def test_views_come_in_random_order() -> None:
    """Wide and plain ones alike reach every place in a batch: what is done to some rows is done to both."""
    images = torch.randint(256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    known = [view for image in to_model_range(images) for view in (image, image.flip(-1))]
    torch.manual_seed(0)
    drawn = torch.stack([draw_views(images, 16, torch.rand) for _ in range(40)])
    plain = torch.tensor([[any(torch.equal(view, other) for other in known) for view in batch] for batch in drawn])
    assert (plain.sum(1) >= 8).all()
    assert (plain.double().mean(0) > 0.25).all() and (plain.double().mean(0) < 0.75).all()


def test_psnr_is_that_of_torchmetrics(corpus: Corpus) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    vae = initialise(networks.ARCHITECTURES / "32", seed=0)["vae"].eval().requires_grad_(False)
    decoded = ((reconstruct(vae, to_model_range(corpus.images)).clamp(-1, 1) + 1) * 127.5).round()
    theirs = [
        peak_signal_noise_ratio(d[None], x[None].float(), data_range=255.0)
        for d, x in zip(decoded, corpus.images, strict=True)
    ]
    assert quality(vae, corpus.images)["val_psnr_db"] == pytest.approx(float(torch.stack(theirs).mean()), rel=1e-4)


def test_the_velocity_loss_is_zero_for_the_true_velocity_alone() -> None:
    alphas = noise_schedule(networks.ARCHITECTURES / "64")
    z, eps = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    t = torch.tensor([0, 300, 700, 999])
    signal, sigma = (a[t].sqrt()[:, None, None, None] for a in (alphas, 1 - alphas))

    velocity = signal * eps - sigma * z
    for factor, expected in ((1.0, 0.0), (-1.0, 4.0)):

        def network(noisy: Tensor, *_: Tensor, answer: Tensor = factor * velocity, **__: object) -> tuple[Tensor]:
            torch.testing.assert_close(noisy, signal * z + sigma * eps)
            return (answer,)

        loss = unet.velocity_loss(network, alphas, z, eps, t, torch.zeros(4, 1, 1))  # type: ignore[arg-type]
        torch.testing.assert_close(loss, expected * velocity.square().mean(dim=(1, 2, 3)))


def test_the_discriminator_and_the_decoder_do_not_pull_at_each_other(corpus: Corpus) -> None:
    """What the decoder gains is no gradient of the discriminator, and the encoder is left as it was."""
    vae = initialise(networks.ARCHITECTURES / "32", seed=0)["vae"].eval().requires_grad_(False)
    encoder = {key: value.clone() for key, value in vae.encoder.state_dict().items()}
    task = decoder.DecoderTask(vae, corpus, corpus, CPU, torch.float32, batch_size=4)
    torch.manual_seed(0)
    task.weights.restored()
    task.weights.zero_grad()
    loss, figures = task.losses()
    loss.backward()
    judge = task.weights.network["discriminator"]
    own = [p.grad.clone() for p in judge.parameters() if p.grad is not None]
    # The same draws again, the discriminator's own hinge loss alone.
    task.weights.zero_grad()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "ADVERSARIAL_WEIGHT", 100.0)
        task.losses()[0].backward()
    again = [p.grad for p in judge.parameters() if p.grad is not None]
    for a, b in zip(own, again, strict=True):
        torch.testing.assert_close(a, b)
    assert float(figures[3]) == pytest.approx(1.0, abs=0.2)  # hinge of an untrained judge
    task.weights.set_rates(1.0, 0)
    task.weights.step()
    refined = task.refined()
    for key, value in refined.encoder.state_dict().items():  # type: ignore[union-attr, operator]
        assert torch.equal(value, encoder[key])


def test_the_tokenizer_knows_every_character_and_merges_frequent_words() -> None:
    tokenizer = train_tokenizer(["a photo of a goldfish"] * 5, vocab_size=600)
    ids = tokenizer(["zebra ünï 7!", "a photo of a goldfish"]).input_ids
    assert all(tokenizer.eos_token_id not in row[1:-1] for row in ids)  # the end token doubles as unknown
    assert ids[0][0] == tokenizer.bos_token_id and ids[0][-1] == tokenizer.eos_token_id
    assert len(ids[1]) == 7
    assert tokenizer.model_max_length == MAX_LENGTH
    assert len(tokenizer) == len(set(tokenizer.get_vocab().values()))


def test_the_same_texts_always_make_the_same_tokenizer() -> None:
    """The trainer breaks ties by numbers given in the order of a hash map; a text encoder is void with others."""
    texts = ["alp ox sock", "koala crane mantis", "umbrella sombrero", "bow tie, ice lolly"]
    first, *others = (train_tokenizer(texts, vocab_size=530).get_vocab() for _ in range(8))
    assert all(other == first for other in others)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_recipe_resumes_and_its_checkpoint_loads_in_diffusers(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both networks: four steps equal two, a kill, and two more; StableDiffusionPipeline draws with the export."""
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)

    def everything(folder: Path) -> None:
        recipe.run_vae(corpus, corpus, setting(folder), Budget(samples=16))
        recipe.run_latents(corpus, corpus, setting(folder))
        recipe.run_unet(corpus, corpus, setting(folder), Budget(samples=16))

    everything(whole)
    for stage in (recipe.run_vae, recipe.run_unet):
        if stage is recipe.run_unet:
            recipe.run_latents(corpus, corpus, setting(cut))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop, "trapezoid", killed_at_step_3)
            stage(corpus, corpus, setting(cut), Budget(samples=16))
        torch.rand(7)  # whatever else draws in between
        stage(corpus, corpus, setting(cut), Budget(samples=16))

    for name in ("vae.safetensors", "unet.state.safetensors"):
        a, b = load_file(whole / name), load_file(cut / name)
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key
    for folder in (whole, cut):  # no step of the killed run was made again
        records = read_log(folder / "unet.log.tsv")
        assert [int(record["step"]) for record in records] == [1, 2, 3, 4]
        assert float(records[-1]["val_adapter"]) > 0

    recipe.export(NAMES, setting(whole))
    pipeline = StableDiffusionPipeline.from_pretrained(whole / "mini", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(["a photo of a goldfish"], num_inference_steps=2).images[0].size == (32, 32)
    generator = Generator.load(whole / "mini", dtype="float32")
    assert generator.image_tokens(to_model_range(corpus.images[:2])).shape == (2, 5, WIDTH)
    assert "not measured" in (whole / "mini" / "README.md").read_text()

    # Go on from the export alone: its weights (to half precision), its place in the log, fresh moments.
    later = tmp_path / "later"
    later.mkdir()
    recipe.lay_down(str(whole / "mini"), setting(later))
    ema = {k: v for k, v in load_file(whole / "unet.state.safetensors").items() if k.startswith("module/ema/")}
    state = load_file(later / "unet.state.safetensors")
    for key, value in ema.items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-3, msg=key)
    assert (later / "mini" / "README.md").read_bytes() == (whole / "mini" / "README.md").read_bytes()
    kept = recipe.load_tokenizer(("no class of before",), setting(later))
    assert kept.get_vocab() == generator.tokenizer.get_vocab()
    before = load_file(later / "vae.safetensors")
    # Nothing left to train: no bit of the autoencoder moves from under the denoiser.
    spent = Budget(samples=int(read_log(later / "vae.log.tsv")[-1]["samples"]))
    recipe.run_vae(corpus, corpus, setting(later), spent)
    unmoved = load_file(later / "vae.safetensors")
    assert all(torch.equal(value, unmoved[key]) for key, value in before.items())
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "trapezoid", lambda step, done, decay: steps.append(step) or trapezoid(step, done, decay))
        recipe.run_vae(corpus, corpus, setting(later), Budget(samples=24))
    assert steps == [0, 1]  # the warm-up begins again with the optimizer's moments
    for key, value in load_file(later / "vae.safetensors").items():  # two steps on, at the first rates of a warm-up
        torch.testing.assert_close(value, before[key], rtol=0.05, atol=0.05, msg=key)
    assert any(not torch.equal(value, before[key]) for key, value in load_file(later / "vae.safetensors").items())
    recipe.run_latents(corpus, corpus, setting(later))
    recipe.run_unet(corpus, corpus, setting(later), Budget(samples=24))
    for network in ("vae", "unet"):
        assert [int(r["step"]) for r in read_log(later / f"{network}.log.tsv")] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UsageError, match="another shape than the recipe at 64 px"):
        recipe.lay_down(str(whole / "mini"), setting(tmp_path / "other", size=64))

    # A sharpened decoder is exported instead of the plain one; every latent stays.
    recipe.run_decoder(corpus, corpus, setting(whole), Budget(samples=8))
    recipe.export(NAMES, setting(whole))
    sharp = Generator.load(whole / "mini", dtype="float32")
    images = to_model_range(corpus.images[:2])
    assert torch.equal(sharp.encode(images).mean, generator.encode(images).mean)
    assert not torch.equal(sharp.vae.decoder.conv_out.weight, generator.vae.decoder.conv_out.weight)


def test_what_is_laid_down_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = Path(shutil.copytree(MINI, tmp_path / "source")), tmp_path / "out"
    (source / "lost").symlink_to("nowhere")
    with pytest.raises(shutil.Error, match="lost"):
        recipe.lay_down(str(source), setting(out, size=64))
    assert not (out / "mini").exists()
    (source / "lost").unlink()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(faults, "on_point", killed_at)
        recipe.lay_down(str(source), setting(out, size=64))
    assert {path.name for path in out.iterdir()} == {"mini", "tokenizer", ".laid-down"}, "both whole, no part of a log"
    recipe.lay_down(str(source), setting(out, size=64))
    for name in recipe.LOGS:
        assert (out / name).read_bytes() == (source / name).read_bytes() == (out / "mini" / name).read_bytes()
    assert (out / "unet.state.safetensors").is_file() and not (out / ".laid-down").exists()
    (out / "unet.state.safetensors").unlink()
    before = (out / "vae.state.safetensors").read_bytes()
    with pytest.raises(UsageError, match="has an autoencoder that was trained there"):
        recipe.lay_down(str(source), setting(out, size=64))
    assert (out / "vae.state.safetensors").read_bytes() == before


@pytest.mark.usefixtures("small")
def test_a_part_ends_in_time_with_its_state_saved(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(PartEnded, match="the same command goes on"):
        recipe.run_vae(corpus, corpus, setting(tmp_path, part_ends=0.0), Budget(samples=8))
    recipe.run_vae(corpus, corpus, setting(tmp_path), Budget(samples=8))
    trained = (tmp_path / "vae.safetensors").read_bytes()
    recipe.run_vae(corpus, corpus, setting(tmp_path), Budget(samples=8))  # done already
    assert (tmp_path / "vae.safetensors").read_bytes() == trained
    assert [int(record["step"]) for record in read_log(tmp_path / "vae.log.tsv")] == [1, 2]


def test_a_budget_is_images_or_minutes() -> None:
    assert Budget(samples=100).share(Progress(step=5, samples=50), 10) == 0.5
    assert Budget(minutes=2).share(Progress(seconds=30), 10) == 0.25
    for wrong in ({}, {"samples": 0}, {"minutes": 0.0}, {"samples": 1, "minutes": 1.0}):
        with pytest.raises(UsageError):
            Budget(**wrong)  # type: ignore[arg-type]


def test_parts_are_small_and_of_one_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 260)
    model, other = nn.Linear(8, 16), nn.Linear(8, 16)
    parts.write_parts(model, tmp_path / "a")
    assert len(list((tmp_path / "a").iterdir())) == 2
    parts.read_parts(other, tmp_path / "a")
    torch.testing.assert_close(other.weight, model.weight.half().float())
    parts.write_parts(nn.Linear(8, 16), tmp_path / "b")
    (tmp_path / "b" / "part-1.safetensors").rename(tmp_path / "a" / "part-1.safetensors")
    with pytest.raises(DataError, match="not one whole save"):
        parts.read_parts(other, tmp_path / "a")
    (tmp_path / "a" / "part-1.safetensors").unlink()
    with pytest.raises(DataError, match="not one whole save"):
        parts.read_parts(other, tmp_path / "a")


@pytest.mark.usefixtures("small")
def test_a_state_of_another_architecture_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    recipe.run_vae(corpus, corpus, setting(tmp_path), Budget(samples=4))
    (tmp_path / "unet.state.safetensors").write_bytes((tmp_path / "vae.state.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"unet\.state\.safetensors"):
        recipe.run_latents(corpus, corpus, setting(tmp_path))
        recipe.run_unet(corpus, corpus, setting(tmp_path), Budget(samples=4))
    with pytest.raises(UsageError, match="another shape"):
        recipe.load_vae(setting(tmp_path, size=64))


def test_unknown_and_premature_stages_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.parquet"
    with pytest.raises(UsageError, match="--stage quantise"):
        recipe.pretrain(missing, missing, tmp_path, stages=("quantise",))
    with pytest.raises(UsageError, match="--size 48"):
        recipe.pretrain(missing, missing, tmp_path, size=48)
    with pytest.raises(UsageError, match="--part-minutes 0"):
        recipe.pretrain(missing, missing, tmp_path, part_minutes=0)
    with pytest.raises(UsageError, match="--batch-size 2"):
        recipe.pretrain(missing, missing, tmp_path, batch_size=2)
    with pytest.raises(UsageError, match="Run the stage vae first"):
        recipe.load_vae(setting(tmp_path))
    with pytest.raises(UsageError, match="Run the stage unet first"):
        recipe.export(NAMES, setting(tmp_path))
