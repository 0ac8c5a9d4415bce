"""Images through the VAE: what comes out, where it lies, and that a kill or other settings do no harm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import MINI_SCHEDULER, build_checkpoint, toy_images
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.data.datasets import load_images, load_splits
from diffusion_inversion.data.images import LabelledImages, resize, to_model_range, to_uint8
from diffusion_inversion.data.inspection import inspect
from diffusion_inversion.data.naming import class_folder
from diffusion_inversion.engine import faults
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, DataError, UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.randomness import generator_for
from diffusion_inversion.sample.autoencoding import (
    autoencode,
    autoencoded,
    mean_psnr,
    read_autoencoded,
    write_autoencoded,
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("vae") / "toy", MINI_SCHEDULER)


@pytest.fixture(scope="module")
def toy(folder: Path) -> Generator:
    return Generator.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def mini() -> Generator:
    return Generator.load("mini", device="cpu", dtype="float32")


def pictures(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def test_the_chain_is_resize_encode_to_the_mean_decode_resize_back(toy: Generator, tmp_path: Path) -> None:
    images = toy_images(5, size=10)
    large = to_model_range(resize(images.images, 16))
    latents = toy.encode(large)
    expected = resize(to_uint8(toy.decode(latents.mean)), 10)
    found = autoencode(images, toy, tmp_path, resolution=16, batch_size=5)
    assert torch.equal(found.images, expected)
    assert found.class_names == images.class_names and torch.equal(found.labels, images.labels)
    drawn = autoencode(images, toy, tmp_path / "drawn", resolution=16, batch_size=5, sample=True, seed=3)
    shape = latents.mean.shape[1:]
    streams = [generator_for(3, "autoencode", "train", image_id) for image_id in images.ids]
    noise = torch.stack([torch.randn(shape, generator=stream) for stream in streams])
    deviation = (latents.logvar / 2).exp()
    assert torch.equal(drawn.images, resize(to_uint8(toy.decode(latents.mean + deviation * noise)), 10))
    assert not torch.equal(drawn.images, found.images)


def test_mini_keeps_smooth_images_better_at_its_size_than_below(mini: Generator, tmp_path: Path) -> None:
    images = toy_images(8, size=32)
    measured = {
        side: write_autoencoded(images, mini, tmp_path / str(side), resolution=side).psnr for side in (32, 64, 128)
    }
    assert measured[64] > 27, measured
    assert measured[32] + 3 < measured[64] < measured[128] + 0.5, measured  # Table 1's trend


def test_psnr_is_between_input_and_output(toy: Generator, tmp_path: Path) -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    images = toy_images(3)
    done = write_autoencoded(images, toy, tmp_path, resolution=16)
    found = load_images(tmp_path / "train")
    source_of = {path.rsplit("-", 1)[0].rsplit("/", 1)[1]: path for path in found.ids}
    rows = [found.ids.index(source_of[f"{row:03d}"]) for row in range(3)]
    theirs = peak_signal_noise_ratio(
        found.images[rows].float(), images.images.float(), data_range=255.0, dim=(1, 2, 3), reduction="none"
    )
    assert done.psnr == pytest.approx(float(theirs.mean()), rel=1e-5)


def test_psnr_closed_forms() -> None:
    assert mean_psnr([255.0**2]) == 0
    assert mean_psnr([1.0, 100.0]) == pytest.approx(48.1308 - 10, abs=1e-4)
    assert mean_psnr([0.0]) == 100


def test_memory_is_bounded_by_pixels_and_changes_nothing(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_inversion.sample import autoencoding

    images = toy_images(5).images
    noise = torch.randn(5, 4, 8, 8)
    whole = autoencoded(images, toy, 16, noise)
    monkeypatch.setattr(autoencoding, "VAE_PIXELS", 2 * 16 * 16)
    assert int((autoencoded(images, toy, 16, noise).int() - whole.int()).abs().max()) <= 1


# --- what is written ------------------------------------------------------------------------------------------------


def test_what_is_written_is_data_again(toy: Generator, tmp_path: Path) -> None:
    train, test = toy_images(12).subset(range(6)), toy_images(12).subset(range(6, 12))
    parts = {
        "train": autoencode(train, toy, tmp_path, resolution=16, part="train"),
        "test": autoencode(test, toy, tmp_path, resolution=16, part="test"),
    }
    splits = load_splits(tmp_path, allow_near_duplicates=True)
    assert splits.how == "own" and splits.train.class_names == train.class_names
    for read, written, sources in ((splits.train, parts["train"], train), (splits.test, parts["test"], test)):
        rows = [[image_id.split("/", 1)[1] for image_id in read.ids].index(name) for name in written.ids]
        again = read.subset(rows)
        assert torch.equal(again.images, written.images) and torch.equal(again.labels, sources.labels)
        assert again.hashes == written.hashes
        for source_id, name in zip(sources.ids, written.ids, strict=True):
            assert Path(source_id).stem in name
    assert len(load_images(tmp_path / "train", limit=4)) == 4
    found = inspect(str(tmp_path), allow_near_duplicates=True)
    assert found.usable and (found.train.images, found.test.images) == (6, 6)
    noted = {problem.file for problem in (*found.train.problems, *found.test.problems)} - set(splits.test.ids)
    ours = {".lock", "manifest.jsonl", "autoencode.config.json", "train/manifest.jsonl", "test/manifest.jsonl"}
    assert noted <= ours


ODD = ("two words", "ünï", "T-shirt/top", ".hidden", "Thumbs.db", "C:x", "a\nb", "x" * 300, "granulocytes(a, b)", "-x")


def test_odd_class_names_stay_or_are_said_to_change(toy: Generator, tmp_path: Path) -> None:
    images = replace(toy_images(2 * len(ODD)), class_names=ODD, labels=torch.arange(2 * len(ODD)) % len(ODD))
    done = write_autoencoded(images, toy, tmp_path, resolution=16)
    assert set(done.renamed) == {"T-shirt/top", ".hidden", "Thumbs.db", "C:x", "a\nb", "x" * 300}
    read = load_images(tmp_path / "train")
    assert set(read.class_names) == {done.renamed.get(name, name) for name in ODD}
    assert len(read) == len(images) and not any(problem.fatal for problem in read.problems)
    assert sorted(torch.bincount(read.labels).tolist()) == [2] * len(ODD)


def test_class_folders_are_distinct_and_inside() -> None:
    folders = [class_folder(name) for name in (*ODD, "manifest.jsonl", "T-shirt_top", "..", ".", "", "a\\b")]
    assert len(set(folders)) == len(folders)
    assert all(name and not name.startswith(".") and "/" not in name and len(name.encode()) <= 255 for name in folders)
    assert [class_folder(name) for name in folders] == folders


# --- going on and refusing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", faults.POINTS)
def test_a_killed_call_goes_on_and_equals_one_that_was_not(
    toy: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    images = toy_images(7, size=12)
    options: dict[str, Any] = {"resolution": 16, "batch_size": 3, "sample": True}
    whole = autoencode(images, toy, tmp_path / "whole", **options)
    cut, kills = tmp_path / "cut", 0
    for hit in range(2, 9):
        seen = 0

        def die(reached: str, hit: int = hit) -> None:
            nonlocal seen
            seen += reached == point
            if seen == hit:
                raise Killed

        monkeypatch.setattr(faults, "on_point", die)
        try:
            autoencode(images, toy, cut, **options)
            break
        except Killed:
            kills += 1
    monkeypatch.setattr(faults, "on_point", None)
    assert kills >= 2
    found = autoencode(images, toy, cut, **options)
    assert pictures(cut) == pictures(tmp_path / "whole")
    assert torch.equal(found.images, whole.images) and found.ids == whole.ids


def test_nothing_is_done_twice_and_what_changed_is_made_again(toy: Generator, tmp_path: Path) -> None:
    images = toy_images(7)
    write_autoencoded(images, toy, tmp_path, resolution=16, batch_size=3)
    before, times = pictures(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    write_autoencoded(images, toy, tmp_path, resolution=16, batch_size=3)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    first, last = sorted(times)[0], sorted(times)[-1]
    first.write_bytes(first.read_bytes()[:50])
    last.unlink()
    write_autoencoded(images, toy, tmp_path, resolution=16, batch_size=3)
    assert pictures(tmp_path) == before


def test_more_images_are_added(toy: Generator, tmp_path: Path) -> None:
    images = toy_images(7)
    write_autoencoded(images.subset(range(4)), toy, tmp_path, resolution=16, batch_size=2)
    old = pictures(tmp_path)
    assert write_autoencoded(images, toy, tmp_path, resolution=16, batch_size=2).images == 7
    assert len(pictures(tmp_path)) == 7 and old.items() <= pictures(tmp_path).items()
    with pytest.raises(ConfigMismatchError, match=r"toy/006\.png: gone, or not selected any more"):
        write_autoencoded(images.subset(range(6)), toy, tmp_path, resolution=16, batch_size=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 32}, "resolution: was 16, now 32"),
        ({"sample": True}, 'latent: was "mean", now "sample"'),
        ({"batch_size": 2}, "batch_size: was 100, now 2"),
        ({"part": "test", "resolution": 32}, "resolution: was 16, now 32"),  # parts of one folder belong together
    ],
)
def test_other_settings_are_refused(toy: Generator, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    images = toy_images(4)
    write_autoencoded(images, toy, tmp_path, resolution=16)
    before = pictures(tmp_path)
    with pytest.raises(ConfigMismatchError, match=message):
        write_autoencoded(images, toy, tmp_path, **{"resolution": 16, **change})
    assert pictures(tmp_path) == before


def test_other_images_sizes_and_classes_are_refused(toy: Generator, tmp_path: Path) -> None:
    images = toy_images(4)
    write_autoencoded(images, toy, tmp_path, resolution=16)

    def refused(other: LabelledImages, message: str) -> None:
        with pytest.raises(ConfigMismatchError, match=message):
            write_autoencoded(other, toy, tmp_path, resolution=16)

    refused(replace(images, hashes=("0" * 64, "f" * 64, *images.hashes[2:])), r"toy/001\.png: other pixels")
    refused(replace(images, labels=1 - images.labels), "another class")
    refused(images.resized(12), "size: was 16, now 12")
    refused(replace(images, class_names=("cat", "cow")), "class_names")


def test_what_was_made_of_another_image_of_the_same_name_is_not_read(toy: Generator, tmp_path: Path) -> None:
    images = toy_images(4)
    write_autoencoded(images, toy, tmp_path, resolution=16)
    assert len(read_autoencoded(images.subset([3, 1]), tmp_path)) == 2
    edited = replace(images, hashes=("0" * 64, "f" * 64, *images.hashes[2:]))
    with pytest.raises(ConfigMismatchError, match=r"1 of its 3 images .*\n.*toy/001\.png: other pixels"):
        read_autoencoded(edited.subset([0, 1, 2]), tmp_path)


def test_settings_may_change_until_something_is_committed(
    toy: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And images that a kill left, listed nowhere, do not become data."""

    def die(reached: str) -> None:
        if reached == "renamed" and list((tmp_path / "train").glob("*/*.png")):
            raise Killed

    monkeypatch.setattr(faults, "on_point", die)
    with pytest.raises(Killed):
        write_autoencoded(toy_images(6), toy, tmp_path, resolution=16)
    monkeypatch.setattr(faults, "on_point", None)
    assert len(pictures(tmp_path)) == 6
    assert write_autoencoded(toy_images(4), toy, tmp_path, resolution=32).images == 4
    assert len(pictures(tmp_path)) == 4


def test_arguments_that_cannot_be_used(toy: Generator, tmp_path: Path) -> None:
    images = toy_images(2)
    for resolution in (15, 0, -2):
        with pytest.raises(UsageError, match=r"not a multiple of 2"):
            write_autoencoded(images, toy, tmp_path / "new", resolution=resolution)
    with pytest.raises(UsageError, match="batch_size"):
        write_autoencoded(images, toy, tmp_path / "new", resolution=16, batch_size=0)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds cat, which `dinv autoencode` did not write"):
        write_autoencoded(images, toy, tmp_path / "mine", resolution=16)


def test_a_record_that_does_not_fit_is_refused(toy: Generator, tmp_path: Path) -> None:
    images = toy_images(2)
    write_autoencoded(images, toy, tmp_path, resolution=16)
    manifest = Manifest(tmp_path / "train" / "manifest.jsonl")
    (record,) = manifest.records()
    manifest.rewrite([{**record, "labels": [0]}])
    with pytest.raises(DataError, match="lists of different lengths"):
        write_autoencoded(images, toy, tmp_path, resolution=16)
    manifest.rewrite([{**record, "files": {"../../x.png": "0" * 64, "b.png": "0" * 64}}])
    with pytest.raises(DataError, match="no name inside the folder"):
        write_autoencoded(images, toy, tmp_path, resolution=16)


def test_the_command(folder: Path, toy: Generator, tmp_path: Path) -> None:
    def dinv(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    autoencode(toy_images(8), toy, tmp_path / "data", resolution=16)  # any folder of class folders
    data, out = tmp_path / "data" / "train", tmp_path / "out"
    options = ["--generator", folder, "--out", out, "--holdout", 0.25, "--allow-near-duplicates"]
    done = dinv("autoencode", data, "--resolution", 32, "--split", "both", "--json", *options)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["train"]["images"], summary["test"]["images"]) == (6, 2)
    assert summary["latent"] == "mean" and summary["data"] == str(out) and summary["train"]["psnr"] > 0
    assert dinv("inspect", out, "--allow-near-duplicates").exit_code == 0
    only = dinv("autoencode", data, "--resolution", 32, "--split", "test", *options)
    assert only.exit_code == 0 and f"Use it as DATA or --test: {out / 'test'}" in only.stdout
    assert dinv("autoencode", data, "--resolution", 16, *options).exit_code == 5
    assert dinv("autoencode", data, "--resolution", 33, *options).exit_code == 2
    assert dinv("autoencode", data, "--resolution", 32, "--split", "all", *options).exit_code == 2
