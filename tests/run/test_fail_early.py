"""What a later stage would refuse is refused before stage 1, and before --restart deletes anything."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import INVERT, SAMPLE, STAGES, TRAIN, Bench, content, finish, write_images
from toy import toy_images

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.errors import ConfigMismatchError, DataError, DiskError, UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.sample.sampling import check_settings
from diffusion_inversion.sample.synthetic import SyntheticStore

UNTRAINABLE: list[tuple[dict[str, Any], str]] = [
    ({"seeds": (0, 0)}, "a repeated seed"),
    ({"recipe": "fast"}, "steps=2: recipe fast .* needs 4 of them.*--train-steps 4"),
    ({"augmentations": ("none", "default")}, "'none' alone"),
    ({"architecture": "vgg16"}, "16 px is too small"),
    ({"architecture": "timm:no_such_net"}, "has no such network"),
    ({"architecture": "timm:densenet121"}, "timm:densenet121: takes no images of 16 px"),
]


@pytest.fixture
def pickled(bench: Bench, tmp_path: Path) -> Generator:
    """The generator of the bench with a safety checker that is a pickle."""
    folder = Path(shutil.copytree(bench.checkpoint, tmp_path / "toy"))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"pickle")
    return Generator.load(folder, device="cpu", dtype="float32")


def run_all(bench: Bench, run: Path, generator: Generator, sample: SampleSettings, train: TrainSettings) -> None:
    data = DataSettings(data=str(bench.data))
    pipeline.run_all(run, data, generator, invert=INVERT, sample=sample, train=train, command="dinv run")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"kept_steps": (2, 7, 9)}, DataError, r"kept_steps=\[7, 9\].*kept: \[2\].*--keep-steps 7,9"),
        ({"inference_steps": 1000, "scheduler": "pndm"}, UsageError, "inference_steps=1000"),
        ({"timestep_spacing": "learned"}, UsageError, "timestep_spacing=learned: toy has no timesteps for 2 steps"),
        ({"image_size": 17}, UsageError, "image_size=17: larger than the 16 px"),
        ({"resolution": 17}, UsageError, "resolution=17: not a multiple of 2"),
        ({"resolution": 24, "strict": True}, UsageError, "strict: the vectors were learned at 16 px"),
        ({"variants": 10**9}, DiskError, "12 vectors, 12000000000 images of 16 px.*nothing was computed"),
    ],
)
def test_images_that_cannot_be_drawn(
    bench: Bench, tmp_path: Path, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run_all(bench, tmp_path, bench.generator(), SAMPLE.model_copy(update=changes), TRAIN)
    assert not (tmp_path / "embeddings").exists()


@pytest.mark.parametrize(("changes", "said"), UNTRAINABLE)
def test_classifiers_that_cannot_be_trained(bench: Bench, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run_all(bench, tmp_path, bench.generator(), SAMPLE, TRAIN.model_copy(update=changes))
    assert not (tmp_path / "embeddings").exists()


def test_a_safety_checker_that_cannot_be_loaded(bench: Bench, run: Path, tmp_path: Path, pickled: Generator) -> None:
    with pytest.raises(UsageError, match="pickles are never loaded"):
        run_all(bench, tmp_path / "new", pickled, SAMPLE, TRAIN)
    assert not (tmp_path / "new" / "embeddings").exists()
    before = content(run)
    with pytest.raises(UsageError, match="pickles are never loaded"):
        pipeline.sample_stage(run, pickled, SAMPLE, anew=True)
    assert content(run) == before


def test_the_check_needs_no_vectors_and_gives_the_side(bench: Bench, pickled: Generator) -> None:
    about: dict[str, Any] = {"steps": (50, 100), "resolution": 16, "image_size": 28, "classes": 2}
    generator = bench.generator()
    assert check_settings(generator, SampleSettings(kept_steps=(50,)), **about) == 16
    assert check_settings(generator, SampleSettings(resolution=32), **about) == 28
    assert check_settings(generator, SampleSettings(image_size=8, partner="other-class"), **about) == 8
    assert check_settings(pickled, SampleSettings(safety_checker=False), **about) == 16
    with pytest.raises(UsageError, match="partner=other-class: the vectors are of one class"):
        check_settings(generator, SampleSettings(partner="other-class"), **about | {"classes": 1})
    with pytest.raises(DataError, match="--keep-steps 1"):
        check_settings(generator, SampleSettings(kept_steps=(1,)), **about)


def test_restart_of_training_deletes_nothing_where_it_cannot_begin(run: Path) -> None:
    splits, before = open_splits(run), content(run)
    for changes, said in UNTRAINABLE:
        with pytest.raises(UsageError, match=said):
            pipeline.train_stage(run, splits, TRAIN.model_copy(update=changes), "cpu", anew=True)
    other = replace(splits, test=replace(splits.test, class_names=("cat", "cow")))
    with pytest.raises(DataError, match="cow"):
        pipeline.train_stage(run, other, TRAIN, "cpu", anew=True)
    assert content(run) == before


def test_restart_deletes_nothing_where_no_real_fraction_can_be_chosen(bench: Bench, tmp_path: Path) -> None:
    images = toy_images(8)
    write_images(tmp_path / "data" / "train", images, range(2))  # one of each class: none to validate on
    write_images(tmp_path / "data" / "test", images, range(2, 8))
    few, run = Bench(bench.checkpoint, tmp_path / "data"), tmp_path / "run"
    for stage in STAGES:
        finish(few, run, stage)
    before = content(run)
    auto = TRAIN.model_copy(update={"real_fraction": "auto"})
    with pytest.raises(DataError, match="0 of 2 images to validate on"):
        pipeline.train_stage(run, open_splits(run), auto, "cpu", anew=True)
    assert content(run) == before


def test_training_asks_for_the_reconstructions_before_it_begins(bench: Bench, run: Path) -> None:
    """A kill between the last variant and the reconstructions: stage 2 is complete without them."""
    pipeline.Ledger(run).drop("reconstructions.safetensors")
    assert SyntheticStore(run, ("cat", "dog")).complete()
    before = content(run)
    with pytest.raises(UsageError, match=r"before it drew the reconstructions.*`dinv sample`"):
        finish(bench, run, "train")
    assert content(run) == before
    for stage in ("sample", "report"):
        finish(bench, run, stage)
    assert (run / "reconstructions.safetensors").is_file()


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("invert", {"weight_decay": 0.5}, r"weight_decay: was 0.01, now 0.5"),
        ("sample", {"interpolation": 0.3}, r"interpolation: was .*, now 0.3"),
        ("sample", {"resolution": 8}, r"resolution: was null, now 8"),
        ("train", {"momentum": 0.5}, r"momentum: was .*, now 0.5"),
    ],
)
def test_other_settings_than_a_run_was_begun_with(
    bench: Bench, run: Path, tmp_path: Path, stage: str, changes: dict[str, Any], said: str
) -> None:
    """Before images that were added since are inverted and drawn, which would take hours."""
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    write_images(data / "train", toy_images(30), range(28, 30))
    settings: dict[str, Any] = {"invert": INVERT, "sample": SAMPLE, "train": TRAIN}
    settings[stage] = settings[stage].model_copy(update=changes)
    before = content(run)
    with pytest.raises(ConfigMismatchError, match=rf"{stage} was run here with other settings:\n  {said}"):
        pipeline.run_all(run, DataSettings(data=str(data)), bench.generator(), **settings, command="dinv run")
    assert content(run) | {"data.json": before["data.json"]} == before, "beside where the images lie"
