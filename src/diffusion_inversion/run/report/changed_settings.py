"""Which settings of a run differ from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...config.sampling import SampleSettings
from ...config.settings import InvertSettings
from ...config.training import TrainSettings
from ...train.recipes import RECIPES, resolved


def changed(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Stage => setting => (value, default) of those of invert, sample and train that are not the default.

    A value that a recipe stands for is no change of its own: the defaults are those of the run's recipe. Settings
    without a default, as those of retrieval, are not compared.
    """
    plain = TrainSettings()
    recipe = settings.get("train", {}).get("recipe")
    used = plain.model_copy(update={"recipe": recipe}) if recipe in RECIPES else plain
    train = resolved(used).model_dump(mode="json")
    defaults: dict[str, dict[str, Any]] = {
        "invert": InvertSettings().model_dump(mode="json"),
        "sample": SampleSettings().model_dump(mode="json"),
        "train": {**train, "recipe": plain.recipe},
    }
    found = {
        stage: {
            name: (value, defaults[stage][name])
            for name, value in values.items()
            if name in defaults.get(stage, {}) and value != defaults[stage][name]
        }
        for stage, values in settings.items()
    }
    return {stage: values for stage, values in found.items() if values}
