"""The arm "real (own size)": trained where images were shrunk, the baseline then, and never trained twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import INVERT, SAMPLE, TRAIN, Bench, write_images
from toy import toy_images
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.errors import DataError
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.stages import run_all, train_stage
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.train.arms import train_arms
from diffusion_inversion.train.evaluation import OWN_SIZE, evaluate
from diffusion_inversion.train.own_size import OWN_SIZE_LIMIT, Sides, at_own_size, own_side
from diffusion_inversion.train.store import ClassifierStore
from diffusion_inversion.train.training import train

WHOLE = TRAIN.model_copy(update={"seeds": (0, 1, 2)})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of 40 px, as the bench's of 16 px, which is the generator's size."""
    folder, images = tmp_path_factory.mktemp("large"), toy_images(20, size=40)
    write_images(folder / "train", images, range(12))
    write_images(folder / "test", images, range(12, 20))
    return folder


def whole(bench: Bench, run: Path, data: Path, **more: Any) -> dict[str, Any]:
    run_all(
        run, DataSettings(data=str(data)), bench.generator(), invert=INVERT, sample=SAMPLE,
        train=more.pop("train", WHOLE), command="dinv run data", **more,
    )  # fmt: skip
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


@pytest.fixture(scope="module")
def run(bench: Bench, large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images that are larger than the generator."""
    folder = tmp_path_factory.mktemp("own") / "run"
    whole(bench, folder, large)
    return folder


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "classifiers").glob("*.safetensors"))


def test_shrunk_images_have_their_own_size_as_the_baseline(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert list(record["arms"]) == ["real", OWN_SIZE, "synthetic", "real+synthetic"]
    assert record["sides"] == {"native": 40, "used": 16, "own": 40, "limit": OWN_SIZE_LIMIT}
    assert [c["baseline"] for c in record["verdict"]["comparisons"]] == [OWN_SIZE] * 2
    assert [c["baseline"] for c in record["verdict"]["beside"]] == ["real"] * 2
    shrinking = record["verdict"]["shrinking"]
    assert shrinking["arm"] == OWN_SIZE and shrinking["baseline"] == "real"
    means = {arm: found["mean"] for arm, found in record["arms"].items()}
    assert shrinking["difference"] == pytest.approx(means[OWN_SIZE] - means["real"])
    assert "synthetic images at 16 px against real ones at 40 px" in record["verdict"]["sentence"]
    page = " ".join((run / "report.html").read_text().split())
    for part in ("The real images have 40 px; every arm but “real (own size)”, at 40 px, sees 16 px.",
                 "Difference to real images alone at 40 px", "Difference to real images alone at 16 px"):  # fmt: skip
        assert part in page, part
    assert not verify(run).findings


def test_its_classifiers_are_what_training_on_those_images_gives(run: Path) -> None:
    splits = open_splits(run)
    (record,) = (
        json.loads(line)
        for line in (run / "classifiers" / "manifest.jsonl").read_text().splitlines()
        if '"real-own-size-seed1-' in line and '"commit"' in line
    )
    assert splits.train.size == 40
    plain = train(splits.train, settings=WHOLE, seed=1, device="cpu")
    assert record["predictions"] == evaluate(plain, splits.test).predictions.tolist()
    assert record["arm"] == OWN_SIZE


def test_nothing_is_trained_twice_and_it_can_be_left_out(run: Path, bench: Bench, large: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "classifiers").glob("*.safetensors")}
    assert len(before) == 12
    without = whole(bench, run, large, own_size=False)
    assert list(without["arms"]) == ["real", "synthetic", "real+synthetic"]
    assert [c["baseline"] for c in without["verdict"]["comparisons"]] == ["real"] * 2
    assert without["sides"]["own"] is None and "beside" not in without["verdict"]
    assert "all at 16 px, of the 40 px real images have" in without["verdict"]["sentence"]
    assert "What more px would give real images alone was not measured" in (run / "report.html").read_text()
    again = whole(bench, run, large)
    assert OWN_SIZE in again["arms"]
    assert before == {path: path.stat().st_mtime_ns for path in (run / "classifiers").glob("*.safetensors")}


def test_a_lost_classifier_of_this_arm_is_trained_again_by_repair(run: Path, bench: Bench, large: Path) -> None:
    record = whole(bench, run, large)
    lost = next((run / "classifiers").glob("real-own-size-seed2-*"))
    content = lost.read_bytes()
    lost.unlink()
    discard(run, verify(run))
    assert resume(run, "cpu") == []
    assert lost.read_bytes() == content
    assert json.loads((run / "run.json").read_text())["arms"] == record["arms"]


def test_the_option_of_the_commands(run: Path, bench: Bench) -> None:
    options = ["--device", "cpu", "--architecture", "resnet20", "--train-steps", "2", "--train-batch-size", "4"]
    options += ["--seeds", "0,1,2"]
    for more, arms in (
        (["--no-own-size"], ["real", "synthetic", "real+synthetic"]),
        ([], ["real", OWN_SIZE, "synthetic", "real+synthetic"]),
    ):
        done = CliRunner().invoke(app, ["train", str(run), "--json", *options, *more])
        assert done.exit_code == 0, done.output
        assert list(json.loads(done.stdout)["arms"]) == arms
        assert "note: The images have 40 px and are shrunk to 16 px" in done.stderr


def test_images_that_are_not_larger_change_nothing(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert list(record["arms"]) == ["real", "synthetic", "real+synthetic"] and len(files(finished)) == 3 * 2
    assert record["sides"] == {"native": 16, "used": 16, "own": None, "limit": OWN_SIZE_LIMIT}
    assert " px" not in record["verdict"]["sentence"]


def test_without_the_arm_real_there_is_no_baseline_to_train(bench: Bench, large: Path, tmp_path: Path) -> None:
    train = WHOLE.model_copy(update={"arms": ("synthetic",)})
    record = whole(bench, tmp_path / "run", large, train=train)
    assert list(record["arms"]) == ["synthetic"] and record["sides"]["own"] is None


def test_replicates_pair_over_the_same_baseline(bench: Bench, large: Path, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"seeds": (0,)})
    record = whole(bench, tmp_path / "run", large, train=train, replicates=3)
    assert record["arms"][OWN_SIZE]["n"] == 3
    assert [c["baseline"] for c in record["verdict"]["comparisons"]] == [OWN_SIZE] * 2
    assert all(OWN_SIZE in one["arms"] for one in record["replicates"])


def striped(count: int, size: int) -> LabelledImages:
    """Stripes of one pixel, upright or level: at half the size both are grey."""
    stripes = (255 * (torch.arange(size) % 2)).to(torch.uint8)
    both = torch.stack([stripes.expand(3, size, size), stripes[:, None].expand(3, size, size)])
    images = toy_images(count, size=size)
    return LabelledImages(
        images.name, images.ids, images.hashes, images.labels, images.class_names, both[images.labels], size
    )


def test_a_generator_that_is_too_coarse_for_the_task_is_called_so() -> None:
    real, test = striped(16, 16), striped(200, 16)
    settings = TrainSettings(
        architecture="resnet20", steps=30, batch_size=16, arms=("real", "synthetic"), seeds=(0, 1, 2), recipe="fast",
        augmentations=("none",),
    )  # fmt: skip
    small = real.resized(8)
    found = train_arms(small, small, test.resized(8), own_size=(real, test), settings=settings, device="cpu")
    accuracies = found.accuracies()
    assert min(accuracies[OWN_SIZE]) == 1.0 and max(accuracies["real"]) < 0.8
    verdict = found.verdict()
    assert verdict.too_coarse and verdict.outcome == "harms", "synthetic images equal to the real ones at 8 px"
    assert [c.difference for c in verdict.beside] == [pytest.approx(0)]


def test_sides() -> None:
    images = toy_images(2, size=40)
    assert [own_side(images, used) for used in (16, 39, 40, 64)] == [40, 40, None, None]
    assert own_side(toy_images(2, size=200), 64) == OWN_SIZE_LIMIT
    assert own_side(toy_images(2, size=200), 96) is None, "no larger arm than its limit"
    assert Sides(250, 64, 96).sentence == "synthetic images at 64 px against real ones at 96 px of the 250 px they have"
    assert Sides(32, 32).sentence == "" and "all at 64 px" in Sides(250, 64).sentence


def test_images_of_another_set_are_refused() -> None:
    real, other = toy_images(8), toy_images(8, size=24)
    settings = TrainSettings(steps=1, arms=("real",), seeds=(0,), architecture="resnet20")
    with pytest.raises(DataError, match="not the images of the arm real"):
        train_arms(real, None, real, own_size=(other.subset([1, 0, *range(2, 8)]), other), settings=settings)
    with pytest.raises(DataError, match="at 16 px"):
        train_arms(real, None, real, own_size=(other, real), settings=settings)


def test_own_size_images_are_those_of_the_splits(run: Path) -> None:
    splits = open_splits(run)
    pair = at_own_size(splits, 16)
    assert pair is not None and (pair[0].ids, pair[1].ids) == (splits.train.ids, splits.test.ids)
    assert at_own_size(splits, 40) is None
    before = ClassifierStore(run).manifest.units()
    assert len(train_stage(run, splits, WHOLE, "cpu").runs) == 12
    assert ClassifierStore(run).manifest.units() == before, "none is trained again"
