"""Every field of every settings model, changed on resume: refused with its name, or known to be harmless."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import Bench, content, write_images
from image_files import class_folders
from toy import MINI_SCHEDULER, build_checkpoint, toy_images

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import DataSettings, InvertSettings, Settings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.errors import ConfigMismatchError
from diffusion_inversion.generator.checkpoints import hash_weights
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.verify import verify

INVERT = InvertSettings(steps=2, keep_steps=(1,), init="random", batch_size=4, eval_draws=1, resolution=16)
SAMPLE = SampleSettings(
    variants=2, inference_steps=2, batch_size=4, guidance_scales=(2.0,), kept_steps=(2,), image_size=16,
    scheduler="ddim", unconditional="group-mean",
)  # fmt: skip
TRAIN = TrainSettings(architecture="resnet20", steps=2, batch_size=4, seeds=(0,), arms=("real", "synthetic"))

# Another valid value of each field. A field that is missing here fails the test, so none is forgotten.
OTHER: dict[str, dict[str, Any]] = {
    "InvertSettings": {
        "steps": 3, "keep_steps": (), "learning_rate": 0.01, "weight_decay": 0.0, "tokens": 4, "init": "class-mean",
        "batch_size": 3, "eval_draws": 2, "resolution": 8, "seed": 1,
        "grouping": "joint", "group_size": 3, "joint_batch_size": 2, "gradient_checkpointing": True,
        "vector_dtype": "int8", "early_stopping": 0.5,
    },
    "SampleSettings": {
        "variants": 1, "balance": "class", "guidance_scales": (1.0,), "kept_steps": (1,), "noise_strength": 0.2,
        "interpolation": 0.3,
        "scheduler": "dpm++", "inference_steps": 3, "image_size": 8, "batch_size": 3, "seed": 1,
        "interpolation_kind": "slerp", "partner": "nearest", "unconditional": "zero", "group_size": 3,
        "guidance_interval": (0.0, 0.5), "eta": 0.5, "resolution": 32, "strict": True,
        "safety_checker": False, "combinations": "grid", "mixture_size": 4, "shared_noise": 0.5, "rival_weight": 0.5,
        "timestep_spacing": "learned",
        "storage": "parquet",
    },
    "TrainSettings": {
        "architecture": "resnet18", "recipe": "fast", "steps": 3, "batch_size": 6, "learning_rate": 0.05,
        "momentum": 0.5, "weight_decay": 0.0, "augmentations": ("none",), "mixing": "sequential",
        "real_fraction": 0.25, "me_ada_every": 1, "me_ada_share": 0.2, "me_ada_steps": 2, "me_ada_rate": 0.1,
        "me_ada_gamma": 2.0, "me_ada_eta": 0.5, "arms": ("real",), "seeds": (0, 1), "warm_up_steps": 1, "online": 3,
        "online_keep": True,
    },
    "DataSettings": {
        "data": "copy", "test": "test-copy", "size": 8, "limit": 6, "test_limit": 3, "holdout": 0.4, "seed": 1,
        "root": "elsewhere", "drop_test_duplicates": True, "allow_near_duplicates": True, "balanced": True,
        "per_class": 3, "groups": r"\d+", "licence": "CC-BY-4.0",
    },
}  # fmt: skip
BESIDE = {
    "mixture_size": {"interpolation_kind": "dirichlet"},
    "online_keep": {"online": 3},
    "timestep_spacing": {"scheduler": "dpm++"},
    "recipe": {"steps": 4},
}  # without which a field may not change
# What may change: more or fewer results of the same kind, where files lie, and what makes no difference to the images.
HARMLESS = {
    "InvertSettings": {"gradient_checkpointing"},
    # This checkpoint has no safety checker; test_safety.py has one.
    "SampleSettings": {"variants", "balance", "strict", "safety_checker"},
    "TrainSettings": {"arms", "seeds"},
    # `balanced` is the rule of a limit, and there is none; with one: test_the_rule_of_a_subset_is_kept.
    "DataSettings": {"data", "root", "drop_test_duplicates", "allow_near_duplicates", "balanced", "licence"},
}
FIELDS = [
    (model, name)
    for model in (InvertSettings, SampleSettings, TrainSettings, DataSettings)
    for name in model.model_fields
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A folder without a test split, so that holdout and seed matter."""
    folder = tmp_path_factory.mktemp("bench")
    write_images(folder / "data", toy_images(20), range(20))
    write_images(folder / "test", toy_images(26), range(20, 26))
    toy = build_checkpoint(folder / "toy", MINI_SCHEDULER)
    learned = {"generator": hash_weights(toy), "timesteps": {"dpm++": {"2": [900, 400]}}}
    (toy / "timesteps.json").write_text(json.dumps(learned))
    return Bench(toy, folder / "data")


@pytest.fixture(scope="module")
def made(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("made") / "run"
    everything(bench, run, {})
    return run


def everything(bench: Bench, run: Path, changed: dict[str, Settings]) -> None:
    data = changed.get("DataSettings", DataSettings(data=str(bench.data)))
    invert, sample = changed.get("InvertSettings", INVERT), changed.get("SampleSettings", SAMPLE)
    train = changed.get("TrainSettings", TRAIN)
    assert isinstance(data, DataSettings) and isinstance(invert, InvertSettings)
    assert isinstance(sample, SampleSettings) and isinstance(train, TrainSettings)
    splits = open_splits(run, data)
    pipeline.invert_stage(run, splits, bench.generator(), invert)
    pipeline.sample_stage(run, bench.generator(), sample)
    pipeline.train_stage(run, splits, train, "cpu")


def other(model: type[Settings], name: str, bench: Bench, folder: Path) -> Any:
    value = OTHER[model.__name__][name]
    if (model, name) == (DataSettings, "data"):
        return str(shutil.copytree(bench.data, folder / "copy"))
    if (model, name) == (DataSettings, "test"):
        return str(bench.data.parent / "test")
    return value


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=[f"{model.__name__}.{name}" for model, name in FIELDS])
def test_a_changed_field_is_refused_by_name_or_harmless(
    model: type[Settings], name: str, bench: Bench, made: Path, tmp_path: Path
) -> None:
    assert name in OTHER[model.__name__], f"{model.__name__}.{name} is new: say here what it may be changed to"
    base = {
        "InvertSettings": INVERT, "SampleSettings": SAMPLE, "TrainSettings": TRAIN,
        "DataSettings": DataSettings(data=str(bench.data)),
    }[model.__name__]  # fmt: skip
    value = other(model, name, bench, tmp_path)
    changed = model.model_validate({**base.model_dump(), **BESIDE.get(name, {}), name: value})
    assert changed != base
    run = Path(shutil.copytree(made, tmp_path / "run"))
    before = content(run)
    records = {path: path.read_bytes() for path in run.rglob("manifest.jsonl")}
    if name in HARMLESS.get(model.__name__, ()):
        everything(bench, run, {model.__name__: changed})
        assert read_embeddings(run).digest == read_embeddings(made).digest
        kept = {file: digest for file, digest in content(run).items() if file in before}
        lines = {"data.json", "synthetic/metadata.parquet"}
        assert {k: v for k, v in kept.items() if k not in lines} == {k: v for k, v in before.items() if k not in lines}
        return
    with pytest.raises(ConfigMismatchError) as caught:
        everything(bench, run, {model.__name__: changed})
    said = str(caught.value)
    # Options that select images are named by what they did to the images.
    named = dict.fromkeys(("limit", "per_class", "test_limit", "test"), "gone, or not selected")
    assert named.get(name, f"{name}:" if model is not DataSettings else name) in said or f".{name}" in said, said
    assert content(run) == before, "a refusal changes nothing"
    manifest = {"InvertSettings": "embeddings", "SampleSettings": "synthetic", "TrainSettings": "classifiers"}
    if model is not DataSettings:
        refusing = run / manifest[model.__name__] / "manifest.jsonl"
        assert refusing.read_bytes() == records[refusing]


def test_the_rule_of_a_subset_is_kept(bench: Bench, tmp_path: Path) -> None:
    class_folders(tmp_path / "data", {"a": 24, "b": 8})
    fresh = DataSettings(data=str(tmp_path / "data"), limit=8)
    even, run = fresh.model_copy(update={"balanced": True}), tmp_path / "run"
    splits = open_splits(run, even)
    assert splits.train.labels.bincount().tolist() == [4, 4]
    pipeline.invert_stage(run, splits, bench.generator(), INVERT)
    with pytest.raises(ConfigMismatchError, match="balanced: was True, now False"):
        open_splits(run, fresh)
    more = open_splits(run, even.model_copy(update={"limit": 10})).train
    assert set(more.ids) > set(splits.train.ids) and more.labels.bincount().tolist() == [5, 5]


def test_other_weights_are_refused(bench: Bench, made: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(bench.checkpoint, tmp_path / "toy"))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"][0] += 1e-3
    save_file(weights, path)
    run = Path(shutil.copytree(made, tmp_path / "run"))
    splits = open_splits(run)
    with pytest.raises(ConfigMismatchError, match=r"generator\.hash: was"):
        pipeline.invert_stage(run, splits, Generator.load(folder, device="cpu", dtype="float32"), INVERT)
    with pytest.raises(ConfigMismatchError, match=r"generator\.dtype: was .float32., now .bfloat16."):
        pipeline.invert_stage(run, splits, Generator.load(bench.checkpoint, device="cpu", dtype="bfloat16"), INVERT)
    assert verify(run).findings == ()


def test_data_that_grows_keeps_its_split(bench: Bench, tmp_path: Path) -> None:
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    run = tmp_path / "run"
    settings = DataSettings(data=str(data))
    first = open_splits(run, settings)
    pipeline.invert_stage(run, first, bench.generator(), INVERT)
    write_images(data, toy_images(40), range(20, 40))
    grown = open_splits(run, settings)
    assert set(first.train.ids) < set(grown.train.ids) and set(first.test.ids) < set(grown.test.ids)
    assert not set(grown.train.ids) & set(grown.test.ids)
    assert len(grown.train) + len(grown.test) == 40 and len(grown.test) == 8
    pipeline.invert_stage(run, grown, bench.generator(), INVERT)
    assert read_embeddings(run).ids == tuple(sorted(grown.train.ids))
