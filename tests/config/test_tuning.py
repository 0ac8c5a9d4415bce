"""`--tune` in words: grids, names of settings, and one line for what cannot be chosen."""

from __future__ import annotations

import pytest

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.config.tuning import FULL_SEEDS, GRIDS, MODELS, Axis, read_tuning
from diffusion_inversion.errors import UsageError


@pytest.mark.parametrize("name", GRIDS)
def test_the_grids_hold_the_defaults_and_fit_their_models(name: str) -> None:
    found = read_tuning([name])
    assert found.seeds == (FULL_SEEDS if name == "full" else 1)
    for axis in found.axes:
        base = MODELS[axis.stage]()
        assert len(axis.others(base)) == len(axis.values) - 1, f"{axis.key}: the default is one of the values"


def test_fast_is_two_trainings_a_fold_beside_the_default() -> None:
    found = read_tuning(["fast"])
    assert [axis.key for axis in found.axes] == ["sample.interpolation", "train.real_fraction"]
    assert sum(len(axis.others(MODELS[axis.stage]())) for axis in found.axes) == 2


def test_settings_of_stage_two_come_first_whatever_the_order() -> None:
    found = read_tuning(["train.learning_rate=.1,.2", "noise-strength=0,.2", "augmentations=default,none+cutout"])
    assert [axis.key for axis in found.axes] == ["sample.noise_strength", "train.learning_rate", "train.augmentations"]
    assert found.of("sample") == (Axis("sample", "noise_strength", ("0", ".2")),)
    augmented = found.axes[-1].others(TrainSettings())
    assert list(augmented) == [("none", "cutout")]
    assert augmented["none", "cutout"].augmentations == ("none", "cutout")


def test_a_value_is_tried_once_and_the_runs_own_not_against_itself() -> None:
    (axis,) = read_tuning(["guidance_scales=1,1.0,2,1+2"]).axes
    assert list(axis.others(SampleSettings())) == [(2.0,), (1.0, 2.0)]
    assert list(axis.others(SampleSettings(guidance_scales=(2.0,)))) == [(1.0,), (1.0, 2.0)]


ONLY_STAGE_1 = [
    name
    for name in InvertSettings.model_fields
    if name not in SampleSettings.model_fields and name not in TrainSettings.model_fields
]


@pytest.mark.parametrize("name", [*ONLY_STAGE_1, *(f"invert.{name}" for name in InvertSettings.model_fields)])
def test_every_setting_of_stage_one_is_refused_and_the_line_says_why(name: str) -> None:
    with pytest.raises(UsageError, match="every value would need vectors of its own") as caught:
        read_tuning([f"{name}=1,2"])
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slow", "give fast, full, or NAME="),
        ("interpolation", "give fast, full, or NAME="),
        ("interpolation=", "give fast, full, or NAME="),
        ("interpolaton=.1,.2", "no such setting"),
        ("steps=10,20", "a setting of invert and train; give train.steps"),
        ("learning_rate=.1,.2", "give train.learning_rate"),
        ("seed=1,2", "luck"),
        ("sample.seed=1,2", "luck"),
        ("seeds=1+2", "what is measured"),
        ("architecture=resnet56", "the classifier of the run"),
        ("image_size=32", "another side"),
        ("storage=png,parquet", "no image depends on it"),
        ("online=0,500", "every value is the same"),
        ("train.online_keep=true", "no classifier depends on it"),
        ("limit=10,20", "which images there are"),
        ("real_fraction=auto,.5", "give numbers"),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_tuning([text])
    assert "\n" not in str(caught.value) and str(caught.value).startswith("--tune")


def test_a_setting_that_is_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"sample.interpolation: named twice"):
        read_tuning(["fast", "interpolation=.2"])


@pytest.mark.parametrize("text", ["eta=.5", "interpolation=1.5", "train.steps=0", "noise_strength=much"])
def test_values_that_a_model_refuses_are_named(text: str) -> None:
    (axis,) = read_tuning([text]).axes
    with pytest.raises(UsageError, match=f"--tune {axis.key}={axis.values[0]}: ") as caught:
        axis.others(MODELS[axis.stage]())
    assert "\n" not in str(caught.value)
