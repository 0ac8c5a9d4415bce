"""Images of a GAN in the store of stage 2: drawn at random, or found by inversion, whatever is killed in between."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import content, write_images
from torch import Tensor, nn
from toy import toy_images
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.config.commands import ExportSettings, GanInvertSettings, GanSampleSettings, PushSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.data.images import LabelledImages, to_model_range, to_uint8
from diffusion_inversion.engine import faults, state
from diffusion_inversion.engine.faults import Point
from diffusion_inversion.engine.untrusted import read_header
from diffusion_inversion.errors import ConfigMismatchError, DataError, PartialError, UsageError
from diffusion_inversion.measure.extractors.extractor import Extractor
from diffusion_inversion.measure.extractors.lite0 import open_lite0
from diffusion_inversion.pretrain.gan import inversion
from diffusion_inversion.pretrain.gan.inversion import Objective, invert_data, invert_gan, psi, psnr
from diffusion_inversion.pretrain.gan.networks import GanGenerator
from diffusion_inversion.pretrain.gan.sampling import sample_for_run, sample_gan
from diffusion_inversion.pretrain.gan.weights import WEIGHTS, Gan, load_gan, save_gan
from diffusion_inversion.randomness import generator_for
from diffusion_inversion.run.export.publish import write_publication
from diffusion_inversion.run.export.stage import export
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.synthetic import SyntheticStore

CPU = torch.device("cpu")
SHORT = GanInvertSettings(steps=3, starts=2, batch_size=2)


def random_gan(
    names: tuple[str, ...] = ("dog", "cat"), trained_on: frozenset[str] = frozenset(), latent_dim: int = 4
) -> Gan:
    """A generator of random weights, its batch norm's statistics those of its maps, each class with its own gains.

    Its first layer's bias is larger than what latents add to it, so that images change slowly with them.
    """
    torch.manual_seed(0)
    generator = GanGenerator(len(names), 32, 2, latent_dim)
    with torch.no_grad():
        generator.first.weight *= 0.3 / generator.first.weight.std()
        generator.first.bias.normal_()
        for part in generator.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
            if isinstance(part, nn.Embedding):
                part.weight += 0.3 * torch.randn(part.weight.shape)
        generator(torch.randn(64, latent_dim), torch.arange(64) % len(names))
    generator.eval().requires_grad_(False)
    return Gan("random", generator, names, "0" * 64, trained_on, CPU)


def small_extractor() -> Extractor:
    """Features of 12 numbers: means over quarters."""

    def embed(images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images / 255, 2).flatten(1)

    return Extractor("quarters", "_quarters", 12, "none", "0" * 64, CPU, embed)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of 6 images to train on and 4 to test, of the classes cat and dog, 32 px."""
    images = toy_images(10, 32)
    write_images(tmp_path / "data" / "train", images, range(6))
    write_images(tmp_path / "data" / "test", images, range(6, 10))
    return tmp_path / "data"


def test_samples_are_those_of_their_class_and_identity(data: Path, tmp_path: Path) -> None:
    """The run's classes are cat, dog, the GAN's dog, cat: names count, not numbers."""
    gan, run, out = random_gan(), tmp_path / "run", tmp_path / "out"
    splits = open_splits(run, DataSettings(data=str(data)))
    assert sample_for_run(gan, run, out, GanSampleSettings(variants=2, seed=5, batch_size=4)) == 12
    store = SyntheticStore(out, splits.train.class_names)
    made = store.read()
    assert torch.equal(made.labels.bincount(), 2 * splits.train.labels.bincount()) and made.size == 32
    by_file = dict(zip(made.ids, zip(made.images, made.labels.tolist(), strict=True), strict=True))
    for unit in store.manifest.units().values():
        shared, columns = unit["shared"], unit["columns"]
        assert (shared["method"], shared["generator_hash"], shared["seed"]) == ("gan", gan.hash, 5)
        rows = zip(unit["files"], columns["source_id"], columns["variant"], columns["label"], strict=True)
        for name, source, variant, label in rows:
            class_name = source.partition(": latent ")[0]
            latent = torch.randn(1, 4, generator=generator_for(5, "gan", source, variant))
            image = to_uint8(gan.images(latent, torch.tensor([gan.class_names.index(class_name)])))[0]
            assert splits.train.class_names[label] == class_name and by_file[name][1] == label
            assert int((by_file[name][0].int() - image.int()).abs().max()) <= 1
    assert json.loads((out / "data.json").read_text()) == json.loads((run / "data.json").read_text())
    assert verify(out).findings == () and verify(out).foreign == ()
    sample_gan(gan, {"dog": 2, "cat": 1}, tmp_path / "few", GanSampleSettings())
    assert SyntheticStore(tmp_path / "few", ("dog", "cat")).read().labels.bincount().tolist() == [2, 1]
    sample_gan(gan, {"dog": 3, "cat": 3}, tmp_path / "few", GanSampleSettings())  # more may be asked for
    with pytest.raises(ConfigMismatchError, match="seed: was 0, now 1"):
        sample_gan(gan, {"dog": 2, "cat": 1}, tmp_path / "few", GanSampleSettings(seed=1))


def test_the_objective_is_that_of_the_formula() -> None:
    gan, extractor = random_gan(), small_extractor()
    targets, labels = to_model_range(toy_images(2, 32).images), torch.tensor([1, 0])
    latents = torch.randn(2, 3, 4, generator=generator_for("latents"))
    found = Objective.of(gan, extractor, targets, labels, 0.5)(latents)
    for row in range(2):
        for start in range(3):
            image = gan.images(latents[row, start][None], labels[row][None])
            features = psi(extractor, image) - psi(extractor, targets[row][None])
            expected = float(features.square().sum()) / 12
            expected += 0.5 * float((image[0] - targets[row]).square().sum()) / (3 * 32 * 32)
            assert float(found[row, start]) == pytest.approx(expected, rel=1e-4)


def test_inversion_finds_the_image_of_a_planted_latent(tmp_path: Path) -> None:
    gan = random_gan(latent_dim=2)
    latents = torch.randn(2, 2, generator=generator_for("planted"))
    planted = to_uint8(gan.images(latents, torch.tensor([0, 1])))
    images = LabelledImages(
        "planted", ("a", "b"), ("a" * 64, "b" * 64), torch.tensor([0, 1]), ("dog", "cat"), planted, 32
    )
    settings = GanInvertSettings(steps=40, starts=2, batch_size=2)
    found = invert_gan(gan, images, open_lite0(CPU), tmp_path, settings)
    made = SyntheticStore(tmp_path, images.class_names).read()
    both = zip(made.images, made.labels.tolist(), strict=True)
    each = [psnr(image[None], planted[[label]]) for image, label in both]
    assert min(each) > 30 and found == pytest.approx(sum(each) / 2)
    start = inversion.starts(gan, images.ids, settings)[:, 0]
    assert psnr(to_uint8(gan.images(start, torch.tensor([0, 1]))), planted) < 25  # not for nothing


def test_psnr_is_that_of_the_formula() -> None:
    black = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    other = black + torch.tensor([10, 20], dtype=torch.uint8)[:, None, None, None]
    assert psnr(other, black) == pytest.approx(sum(20 * math.log10(255 / d) for d in (10, 20)) / 2)


class Killed(BaseException):
    pass


def test_killed_inversion_goes_on_with_the_same_bits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gan, extractor, whole = random_gan(), small_extractor(), tmp_path / "whole"
    images = open_splits(tmp_path / "run", DataSettings(data=str(data))).train

    def run(out: Path) -> float:
        return invert_gan(gan, images, extractor, out, SHORT)

    found = run(whole)
    points: tuple[Point, ...] = ("written", "renamed", "appended", "recorded")
    for point in points:
        for nth in (2, 3, 5):
            left = nth

            def kill(reached: Point, wanted: Point = point) -> None:
                nonlocal left
                left -= reached == wanted
                if left == 0:
                    raise Killed

            out = tmp_path / f"{point}-{nth}"
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(faults, "on_point", kill)
                run(out)
            assert run(out) == found
            assert content(out) == content(whole), (point, nth)
    cut, calls = tmp_path / "cut", 0  # in the middle of the second unit, whose state was saved
    save, embed = state.UnitState.save, inversion.Objective.__call__

    def saved_often(objective: Objective, latents: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4 + 2 + 1:  # three steps and the last look at the first unit, two steps of the second
            raise Killed
        return embed(objective, latents)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(state, "EVERY", 0.0)
        patch.setattr(inversion.Objective, "__call__", saved_often)
        run(cut)
    assert len(list((cut / "synthetic").glob("state-*"))) == 2 and save is state.UnitState.save
    calls = -100
    with monkeypatch.context() as patch:
        patch.setattr(inversion.Objective, "__call__", saved_often)
        assert run(cut) == found
    assert calls + 100 == 1 + 1 + 4  # of the second unit's steps the third alone is done again, then all of the third
    assert content(cut) == content(whole)
    name = next(iter(SyntheticStore(cut, ()).manifest.units().values()))["files"]
    (cut / "synthetic" / next(iter(name))).write_bytes(b"damaged")
    discard(cut, verify(cut))
    assert run(cut) == found and verify(cut).findings == ()


def test_what_inversion_cannot_use_gets_one_line(data: Path, tmp_path: Path) -> None:
    settings, extractor = DataSettings(data=str(data)), small_extractor()
    splits = open_splits(tmp_path / "run", settings)
    out = tmp_path / "out"

    def refused(kind: type[Exception], message: str, call: Any) -> None:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert not (out / "synthetic").exists()

    wolf = random_gan(("dog", "wolf"))
    for call in (
        lambda: invert_gan(wolf, splits.train, extractor, out, SHORT),
        lambda: sample_for_run(wolf, tmp_path / "run", out, GanSampleSettings()),
    ):
        refused(UsageError, "class 'cat' .1 in all. is none of those that random was trained on", call)
    refused(
        UsageError,
        "images of 16 px, smaller than the 32 px",
        lambda: invert_gan(random_gan(), splits.train.resized(16), extractor, out, SHORT),
    )
    cheat = random_gan(trained_on=frozenset(splits.test.hashes[:2]))
    for call in (
        lambda: invert_data(cheat, settings, out, SHORT),
        lambda: sample_for_run(cheat, tmp_path / "run", out, GanSampleSettings()),
    ):
        refused(DataError, "was trained on 2 of the 4 test images", call)
    refused(UsageError, "not a run folder", lambda: sample_for_run(cheat, tmp_path / "none", out, GanSampleSettings()))
    (tmp_path / "run" / "embeddings").mkdir()
    refused(
        UsageError,
        "a run of learned vectors",
        lambda: sample_gan(cheat, {"dog": 1}, tmp_path / "run", GanSampleSettings()),
    )
    weights = random_gan()
    with torch.no_grad():
        weights.generator.first.weight.fill_(float("nan"))
    with pytest.raises(PartialError, match="not finite from any start"):  # met in the work, whose time is kept
        invert_gan(weights, splits.train, extractor, out, SHORT)
    assert not list(out.rglob("*.png"))


def test_a_restart_that_is_refused_deletes_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    invert_data(random_gan(), DataSettings(data=str(data)), out, SHORT)
    before = content(out)
    for gan, message in (
        (random_gan(("dog", "wolf")), "class 'cat' .1 in all. is none of those"),
        (replace(random_gan(), generator=GanGenerator(2, 64, 2, 4)), "images of 32 px, smaller than the 64 px"),
    ):
        with pytest.raises(UsageError, match=message):
            invert_data(gan, DataSettings(data=str(data)), out, SHORT, anew=True)
        assert content(out) == before
    invert_data(random_gan(), DataSettings(data=str(data)), out, SHORT.model_copy(update={"seed": 1}), anew=True)
    assert content(out) != before


def test_images_that_changed_are_refused(data: Path, tmp_path: Path) -> None:
    gan, images = random_gan(), open_splits(tmp_path / "run", DataSettings(data=str(data))).train
    invert_gan(gan, images.subset(range(4)), small_extractor(), tmp_path / "out", SHORT)
    invert_gan(gan, images, small_extractor(), tmp_path / "out", SHORT)  # new ones are welcome
    with pytest.raises(ConfigMismatchError, match="1 of the 6 images that were inverted changed"):
        invert_gan(gan, images.subset(range(5)), small_extractor(), tmp_path / "out", SHORT)


def test_the_licence_of_what_a_gan_learned_goes_with_its_images(tmp_path: Path) -> None:
    learned = toy_images(4, 32)
    for name, licence in (("gan", "CC-BY-SA-4.0"), ("earlier", "")):
        (tmp_path / name).mkdir()
        random = random_gan(learned.class_names).generator
        assert isinstance(random, GanGenerator)
        save_gan(random, replace(learned, licence=licence), tmp_path / name / WEIGHTS)
        assert load_gan(tmp_path / name, CPU).licence == licence
    metadata = [read_header(tmp_path / name / WEIGHTS, max_bytes=2**30)[1] for name in ("gan", "earlier")]
    assert ["licence" in json.loads(one["dinv-gan"]) for one in metadata] == [True, False]
    sample_gan(load_gan(tmp_path / "gan", CPU), {"cat": 1, "dog": 1}, tmp_path / "drawn", GanSampleSettings())
    done = export(tmp_path / "drawn", ExportSettings(to="imagefolder", out=tmp_path / "out"))
    line = "licence of the images that gan learned: CC-BY-SA-4.0 (attribution, share-alike)"
    assert line in done.licences
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Synthetic images of a GAN\n" in card and line[1:] in card and "prompts" not in card
    (png, _) = sorted((tmp_path / "out").rglob("*.png"))
    assert b"Drawn from images under CC-BY-SA-4.0<" in png.read_bytes()
    with pytest.raises(UsageError, match="MIT: without share-alike of the images that gan learned"):
        write_publication(tmp_path / "drawn", PushSettings(hub_id="a/b", out=tmp_path / "no", licence="MIT"))


def test_the_three_commands(data: Path, tmp_path: Path) -> None:
    def dinv(*arguments: object) -> Any:
        return CliRunner().invoke(app, [*map(str, arguments)])

    small = ("--steps", 1, "--width", 1, "--latent-dim", 2, "--batch-size", 2, "--discriminator-steps", 1)
    done = dinv("gan", "train", data, "--out", tmp_path / "gan", *small, "--augmentations", "none", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["images"] == 6, done.output
    done = dinv("gan", "invert", tmp_path / "gan", data, "--out", tmp_path / "run", "--steps", 1, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["psnr"] > 0, done.output
    done = dinv("gan", "sample", tmp_path / "gan", "--run", tmp_path / "run", "--out", tmp_path / "drawn", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["images"] == 6, done.output
    done = dinv("gan", "sample", tmp_path / "gan" / "gan.safetensors", "--per-class", 3, "--out", tmp_path / "more")
    assert done.exit_code == 0 and "6 images" in done.stdout, done.output
    for arguments, message in (
        (("sample", tmp_path / "gan", "--out", tmp_path / "x"), "give one of them"),
        (("train", data, "--out", tmp_path / "x", "--size", 16), "images of 16 px; the GAN has 32 or 64"),
        (
            ("train", data, "--out", tmp_path / "x", "--augmentations", "colour"),
            "--augmentations colour: give color, translation, cutout or none",
        ),
        (("invert", tmp_path / "none", data, "--out", tmp_path / "x"), "no such file. Make it with"),
    ):
        done = dinv("gan", *arguments)
        assert done.exit_code == 2 and message in done.output, done.output
        assert not (tmp_path / "x").exists()
