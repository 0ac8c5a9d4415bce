"""Presets: committed TOML files that commands read, and one clear error for a file that cannot be used."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from diffusion_inversion.cli.given import settings_of
from diffusion_inversion.config.presets import FOLDER, MEDMNIST, TABLES, names, read_preset
from diffusion_inversion.config.sampling import PromptSettings, SampleSettings
from diffusion_inversion.config.settings import DataSettings, InvertSettings, Settings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.sources import BUILTINS
from diffusion_inversion.errors import UsageError
from diffusion_inversion.sample.variants import combination
from diffusion_inversion.sweep.plan import read_plan
from diffusion_inversion.train.recipes import Recipe, resolve

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def test_the_shipped_files_are_those_under_experiments() -> None:
    assert names() == ("fast", "paper", "reference")
    for name in names():
        assert (EXPERIMENTS / f"{name}.toml").resolve() == (FOLDER / f"{name}.toml").resolve()
        for table, model in TABLES.items():
            model.model_validate(read_preset(name)[table])


def test_paper_is_the_text() -> None:
    """Sections 3 and B: 3,000 steps at 0.03, checkpoints mixed, w in {2, 3, 4}, 45 variants, 100 steps of DDIM."""
    invert = settings_of(InvertSettings, "paper", "invert")
    assert (invert.steps, invert.learning_rate, invert.tokens, invert.grouping) == (3000, 0.03, 5, "independent")
    sample = settings_of(SampleSettings, "paper", "sample")
    w = (2, 3, 4)
    assert sample.guidance_scales == tuple(1.0 + each for each in w)
    assert (sample.variants, sample.scheduler, sample.inference_steps) == (45, "ddim", 100)
    assert sample.kept_steps == invert.keep_steps == (1000, 2000, 3000)
    assert (sample.noise_strength, sample.interpolation) == (0.1, 0.1)
    assert sample.combinations == "grid"
    train = settings_of(TrainSettings, "paper", "train")
    assert train.architecture == "resnet18"
    assert resolve(train) == Recipe("sgd", 0.1, 0.9, 5e-4, "cosine", 0.0, 128, 1000)


@pytest.mark.parametrize("name", ["paper", "reference"])
def test_classifiers_train_as_in_the_code_and_on_medmnist_by_adamw(name: str) -> None:
    """README.md and train_net.py of the code: 50,000 steps, 1,000 of warm-up; section B.1: AdamW for MedMNIST."""
    for data in (None, "cifar10", "my-images", "fashion-mnist"):
        train = settings_of(TrainSettings, name, "train", of=data)
        assert (train.steps, train.warm_up_steps, train.recipe) == (50_000, 1000, "paper-sgd"), data
    for data in ("pathmnist", "dermamnist", "bloodmnist"):
        train = settings_of(TrainSettings, name, "train", of=data)
        assert (train.steps, train.warm_up_steps) == (50_000, 1000)
        assert resolve(train) == Recipe("adamw", 1e-3, 0.9, 5e-4, "cosine", 0.0, 128, 1000)
        assert settings_of(TrainSettings, name, "train", of=data, recipe="paper-sgd").recipe == "paper-sgd"
    assert all(data in BUILTINS for data in MEDMNIST)


def test_reference_is_nine_combinations_of_five_in_the_convention_of_its_file_names() -> None:
    sample = settings_of(SampleSettings, "reference", "sample")
    assert sample.guidance_scales == (2.0, 3.0, 4.0) and sample.combinations == "grid"
    stream = torch.Generator()
    drawn = Counter(combination(sample, (2000, 4000, 6000), variant, stream) for variant in range(sample.variants))
    assert drawn == dict.fromkeys(itertools.product((2000, 4000, 6000), (2.0, 3.0, 4.0)), 5)


def test_an_experiment_file_gets_the_preset_of_its_data(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "t"\npreset = "paper"\n[data]\ndata = "pathmnist"\n[grid]\n"data.limit" = [9]\n')
    assert read_plan(path).train["recipe"] == "medmnist-adamw"
    assert read_plan(path, data="cifar10").train["recipe"] == "paper-sgd"


def test_fast_is_what_no_preset_does() -> None:
    for table, model in TABLES.items():
        assert model.model_validate(read_preset("fast")[table]) == model(), table


def test_every_default_says_where_it_comes_from() -> None:
    """The paper's text, its code, or neither: what is in neither is ours."""
    lacking = [
        f"{model.__name__}.{name}: {field.description}"
        for model in TABLES.values()
        for name, field in model.model_fields.items()
        if not re.search(r"\((text|code|ours|random: text)\b", field.description or "")
    ]
    assert lacking == []
    for model, name, source in (
        (InvertSettings, "tokens", "code"), (InvertSettings, "weight_decay", "code"),
        (InvertSettings, "learning_rate", "text"), (SampleSettings, "partner", "ours"),
        (SampleSettings, "scheduler", "ours"), (TrainSettings, "momentum", "code"),
    ):  # fmt: skip
        assert f"({source}" in str(model.model_fields[name].description) or f"; {source}" in name


def test_options_win_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[invert]\nsteps = 7\ntokens = 3\n")
    found = settings_of(InvertSettings, str(path), "invert", steps=9, seed=None)
    assert (found.steps, found.tokens, found.seed) == (9, 3, 0)
    assert settings_of(TrainSettings, str(path), "train") == TrainSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[invert\n", "not a readable TOML file"),
        ("[invert]\nsteps = 1\nsteps = 2\n", "not a readable TOML file"),
        ("[invert]\nstep = 1\n[train]\nepochs = 3\n", r"invert\.step: unknown key\n  train\.epochs: unknown key"),
        ("[invent]\nsteps = 1\n", r"invent: unknown; tables are \[invert\], \[sample\], \[train\]"),
        ("[medmnist.train]\nstep = 1\n[medmnist.data]\n", r"medmnist\.train\.step: unknown key\n  medmnist\.data: unk"),
        ("medmnist = 3\n", "medmnist: unknown; tables are"),
        ("[train]\nsteps = 9\n[medmnist.train]\nwarm_up_steps = 9\n", r"warm_up_steps=9: not fewer than steps=9"),
        ("steps = 1\n", "steps: unknown; tables are"),
        ("[sample]\nguidance_scales = [nan]\n", r"sample\.guidance_scales\.0=nan: .*finite"),
        ('[sample]\nscheduler = "best"\n', r"sample\.scheduler='best': .*'ddim'"),
        ("[invert]\nsteps = 5\nkeep_steps = [9]\n", "keep_steps"),
        ("[invert]\nsteps = 1\n\udcff", "not a readable TOML file"),
    ],
)
def test_a_bad_file_is_one_error_that_names_every_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=message):
        settings_of(InvertSettings, str(path), "invert", steps=3)


@pytest.mark.parametrize("name", ["default", "papers", "missing.toml", "../paper", "."])
def test_an_unknown_name_lists_the_names(name: str) -> None:
    with pytest.raises(UsageError, match=f"--preset {name}: neither fast, paper, reference nor the path"):
        read_preset(name)


@pytest.mark.parametrize("model", [InvertSettings, SampleSettings, PromptSettings, DataSettings])
def test_a_seed_that_no_table_holds_is_refused_before_anything_is_drawn(model: type[Settings]) -> None:
    need = {"data": "digits"} if model is DataSettings else {}
    assert model(**need, seed=2**63 - 1).model_dump()["seed"] == 2**63 - 1
    with pytest.raises(ValidationError, match="less than or equal to 9223372036854775807"):
        model(**need, seed=2**63)
