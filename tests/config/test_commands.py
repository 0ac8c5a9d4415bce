"""Settings of commands beside the functions that they are for: the same names, defaults and choices."""

from __future__ import annotations

import inspect
from typing import get_args

from diffusion_inversion.config.commands import CompareSettings, MetricsSettings, PretrainSettings
from diffusion_inversion.measure.measuring import measure
from diffusion_inversion.pretrain.figures import Amounts
from diffusion_inversion.pretrain.recipe import DEFAULT_STAGES, STAGES, pretrain


def test_metrics_takes_what_measure_takes() -> None:
    parameters = inspect.signature(measure).parameters
    keywords = {name: one.default for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    ours = {name: info.default for name, info in MetricsSettings.model_fields.items()}
    assert ours.items() <= keywords.items() and keywords.keys() - ours.keys() == {"batch_size", "cache", "confidence"}


def test_compare_measures_as_much_as_figures() -> None:
    settings, amounts = CompareSettings(), Amounts()
    for name in ("images", "sources", "samples", "steps", "guidance_scales"):
        assert getattr(settings, name) == getattr(amounts, name), name


def test_pretrain_knows_the_stages() -> None:
    fields = PretrainSettings.model_fields
    assert get_args(get_args(fields["stages"].annotation)[0]) == STAGES
    assert fields["stages"].default == DEFAULT_STAGES
    assert fields["size"].default == inspect.signature(pretrain).parameters["size"].default
