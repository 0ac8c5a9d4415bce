"""A class of the data is read, or said to be lost; splits are known by the names that are in use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import class_folders, noise, save
from PIL import Image

from diffusion_inversion.data.datasets import load_images, load_splits
from diffusion_inversion.errors import DataError


def jpegs(folder: Path, name: Callable[[int], str]) -> None:
    folder.mkdir(parents=True)
    for row in range(3):
        Image.fromarray(noise(8, 8, 3)).save(folder / name(row), "JPEG")


@pytest.mark.parametrize("name", ["{}.jfif", "{}.JFIF", "{}.jpe", "{}", "IMG.2020-01-0{}", "scan.{}", "{}."])
def test_images_by_other_suffixes_and_by_content(tmp_path: Path, name: str) -> None:
    """PhotoMapAI#364: a class of such files vanished."""
    class_folders(tmp_path, {"a": 3})
    jpegs(tmp_path / "b", lambda row: name.format(row))
    images = load_images(tmp_path)
    assert images.class_names == ("a", "b") and len(images) == 6 and images.problems == ()


def test_text_without_a_suffix_is_no_image(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3})
    for row, text in enumerate(("BMW 2002 turbo, red", "P5 of the series", "MM", "II* a note", "RIFF raff", "")):
        (tmp_path / "a" / f"note{row}").write_text(text)
    images = load_images(tmp_path)
    assert len(images) == 6 and len(images.problems) == 6


@pytest.mark.parametrize("suffix", [".bak", ".dng", ".heic", ".npy"])
def test_a_class_of_other_files_is_lost_with_a_word(tmp_path: Path, suffix: str) -> None:
    """What a suffix says is believed: a camera's raw file begins as a TIFF, which is its thumbnail."""
    class_folders(tmp_path, {"a": 3, "c": 3})
    jpegs(tmp_path / "b", lambda row: f"{row}{suffix}")
    with pytest.raises(DataError, match=r"b +class folder without a usable image: its class is lost"):
        load_images(tmp_path)
    save(tmp_path / "b" / "0.png")
    images = load_images(tmp_path)
    assert images.class_names == ("a", "b", "c") and len(images.problems) == 3
    assert f"an image, but not by its suffix {suffix}" in images.problems[0].cause


def test_a_class_of_links_is_lost_with_a_word(tmp_path: Path) -> None:
    data, elsewhere = class_folders(tmp_path / "data", {"a": 3, "c": 3}), class_folders(tmp_path, {"b": 3})
    (data / "b").symlink_to(elsewhere / "b")
    with pytest.raises(DataError, match=r"b +symbolic link to a folder, not followed: its class is lost"):
        load_images(data)
    (data / "b").unlink()
    (data / "b").mkdir()
    (data / "b" / "0.png").symlink_to(elsewhere / "b" / "000.png")
    with pytest.raises(DataError, match=r"b +class folder without a usable image: its class is lost \(symbolic link\)"):
        load_images(data)
    shutil.rmtree(data / "b")
    (data / "b").mkdir()
    (data / "b" / ".gitkeep").touch()  # nothing was there to be lost
    assert load_images(data).class_names == ("a", "c")


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "valid"), ("Train", "Test"), ("Training", "Testing"), ("TRAIN", "VAL"), ("train", "validation")],
)
def test_names_of_splits_that_are_in_use(tmp_path: Path, train: str, test: str) -> None:
    """huggingface/datasets#4839: the advice was to move every image."""
    class_folders(tmp_path / train, {"a": 3, "b": 3})
    class_folders(tmp_path / test, {"a": 2, "b": 2})
    splits = load_splits(tmp_path)
    assert splits.how == "own" and (len(splits.train), len(splits.test)) == (6, 4)
    assert splits.train.class_names == ("a", "b") and splits.test.ids[0] == f"{test}/a/000.png"


def test_splits_that_are_not_clear(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"a": 3, "b": 3})
    with pytest.raises(DataError, match=r"no test/, val/ or valid/ is beside it; give .*/train itself"):
        load_splits(tmp_path)
    class_folders(tmp_path / "Train", {"a": 3, "b": 3})
    with pytest.raises(DataError, match="Train and train are one split"):
        load_splits(tmp_path)


def test_what_is_not_used_is_counted_on_the_terminal_and_in_json(tmp_path: Path) -> None:
    from toy import MINI_SCHEDULER, build_checkpoint
    from typer.testing import CliRunner

    from diffusion_inversion.cli import app

    data = class_folders(tmp_path / "data", {"a": 4, "b": 4})
    (data / "a" / "notes.txt").touch()
    toy = build_checkpoint(tmp_path / "toy", MINI_SCHEDULER)
    arguments = ["invert", str(data), "--generator", str(toy), "--steps", "1", "--init", "random", "--size", "32"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.strip().splitlines()[-1])["notes"] == 1
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")])
    assert f"1 note on the data: dinv inspect {data}\n" in done.stdout
