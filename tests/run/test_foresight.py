"""What is said before the work: tests that are too small, images that are shrunk; and what data was let pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import INVERT, SAMPLE, TRAIN, Bench, write_images
from PIL import Image
from report_pages import RUN, page, words
from toy import toy_images

from diffusion_inversion.cli.summary import summarise
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.datasets import Splits, load_splits
from diffusion_inversion.data.duplicates import doubts
from diffusion_inversion.data.problems import Problem
from diffusion_inversion.run.foresight import forewarnings, too_few, visible_gain
from diffusion_inversion.run.report import ReportImages
from diffusion_inversion.run.stages import run_all

FIVE = TrainSettings()


def test_a_test_set_that_cannot_show_five_points_is_called_so() -> None:
    labels = torch.arange(200) % 2
    said = too_few(labels, FIVE)
    assert said is not None and said.startswith("200 test images and 5 seeds are too few to see a gain of 5 points")
    assert visible_gain(labels, FIVE) == pytest.approx(0.065, abs=0.002) and "about 7 points" in said
    assert too_few(torch.arange(1000) % 2, FIVE) is None
    rare = too_few(torch.tensor([0] * 970 + [1] * 30), FIVE)
    assert rare is not None and "(30 of the rarest class)" in rare


def test_few_seeds_are_said_before_the_work_and_replicates_count_instead() -> None:
    labels = torch.arange(1000) % 2
    two = TrainSettings(seeds=(0, 1))
    assert too_few(labels, two) == "There will be no verdict: it takes at least 3 seeds, and this run has 2."
    assert visible_gain(labels, two) is None and visible_gain(labels, two, replicates=5) is not None
    assert too_few(labels, two, replicates=5) is None
    assert "3 replicates, and this run has 2" in (too_few(labels, FIVE, replicates=2) or "")
    alone = TrainSettings(arms=("real",), seeds=(0,))
    assert too_few(labels, alone) is None and visible_gain(labels, alone) is None, "nothing is to be compared"


def test_shrunk_images_are_said_before_the_work() -> None:
    images = toy_images(8, size=40)
    splits = Splits(images, images, "own")
    plain = TrainSettings(arms=("real",))
    assert forewarnings(splits, plain, 16) == [
        "The images have 40 px and are shrunk to 16 px; real ones are tried at 40 px too."
    ]
    (said,) = forewarnings(splits, plain, 16, own_size=False)
    assert said.endswith("what more px would give is not measured.")
    assert forewarnings(splits, TrainSettings(arms=("synthetic",)), 16) == [said], "no real images, no own size"
    assert forewarnings(splits, plain, 40) == []


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 8 test images, 2 more that are training images encoded anew, and one with a wrong label."""
    folder = tmp_path_factory.mktemp("flawed")
    images = toy_images(20, size=32)
    write_images(folder / "train", images, range(12))
    write_images(folder / "test", images, range(12, 20))
    for row in (0, 1):
        label = images.class_names[int(images.labels[row])]
        Image.fromarray(images.images[row].permute(1, 2, 0).numpy()).save(
            folder / "test" / label / f"copy{row}.jpg", quality=95
        )
    wrong = images.class_names[1 - int(images.labels[3])]
    Image.fromarray(images.images[3].permute(1, 2, 0).numpy()).save(folder / "train" / wrong / "wrong.png")
    return folder


def test_what_was_let_pass_is_counted(flawed: Path) -> None:
    splits = load_splits(flawed, allow_near_duplicates=True)
    assert doubts((*splits.train.problems, *splits.test.problems)) == (2, 1)
    dropped = load_splits(flawed, drop_duplicates=True)
    assert doubts((*dropped.train.problems, *dropped.test.problems)) == (0, 1), "what was left out is no doubt"
    assert doubts([Problem("a.png", "same pixels as b.png", "delete one of them", fatal=False)]) == (0, 0)


def test_doubts_and_a_small_test_stand_beside_the_verdict(
    flawed: Path, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataSettings(data=str(flawed), allow_near_duplicates=True)
    run_all(
        tmp_path, data, bench.generator(), invert=INVERT, sample=SAMPLE,
        train=TRAIN.model_copy(update={"seeds": (0, 1, 2), "arms": ("real", "synthetic")}), command="dinv run",
    )  # fmt: skip
    before, _, _ = capsys.readouterr().err.partition("invert:")
    few = "10 test images and 3 seeds are too few to see a gain of 5 points"
    assert f"note: {few}" in before and "note: The images have 32 px and are shrunk to 16 px" in before
    record: Any = json.loads((tmp_path / "run.json").read_text())
    assert (record["data"]["near_duplicates"], record["data"]["conflicting_labels"]) == (2, 1)
    summary = summarise(tmp_path, record)
    report = " ".join((tmp_path / "report.html").read_text().split())
    for part in (
        few,
        "Of 10 test images, near-duplicates of training images: 2.",
        "Images with a label that an equal or nearly equal image contradicts: 1.",
    ):
        assert part in summary["text"] and part in report, part


def test_without_doubts_nothing_is_said(tmp_path: Path) -> None:
    grey = torch.full((1, 3, 4, 4), 90, dtype=torch.uint8)
    run: Any = json.loads(json.dumps(RUN))
    run["data"] |= {"near_duplicates": 0, "conflicting_labels": 0}
    text = words(page(run, ReportImages(grey, grey, grey[:, None], torch.tensor([1])), tmp_path))
    assert "near-duplicates" not in text and "contradicts" not in text and "before the work" not in text


def test_pictures_in_train_and_test_are_said(tmp_path: Path) -> None:
    """Boxes of one picture are nearly one image; `--groups` holds out whole ones."""
    images = toy_images(12)
    names = tuple(f"photos/{row // 3}.png#{row % 3}" for row in range(len(images)))
    part = replace(images, ids=names)
    splits = Splits(part.subset([0, 2, 3, 5, 6, 8, 9, 11]), part.subset([1, 4, 7, 10]), "holdout")
    [said] = [one for one in forewarnings(splits, FIVE, 32) if "File names suggest" in one]
    assert "4 groups, 4 of them in train and test" in said and "--groups '^([^#]+)#'" in said
    grouped = replace(splits, train=replace(splits.train, groups=("a",) * 8))
    for one in (grouped, replace(splits, how="given")):
        assert not any("File names suggest" in note for note in forewarnings(one, FIVE, 32))
