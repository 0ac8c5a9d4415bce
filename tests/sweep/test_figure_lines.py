"""What the lines of a sweep's figures may stand for, and which of them metrics are drawn of."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from diffusion_inversion.sweep.figure import _last_line, _others
from diffusion_inversion.sweep.outcome import MetricsRow, SweepResult
from diffusion_inversion.sweep.plan import SweepPlan

STRENGTHS = (0.0, 0.1)


def planned(lines: str, x: str = "sample.noise_strength") -> SweepPlan:
    content: dict[str, Any] = {"name": "lines", "title": "Lines", "data": {"data": "digits"}}
    content["cases"] = [{"name": name, "set": {"sample.interpolation": value}} for name, value in (("A", 0), ("B", 1))]
    grid = {"sample.noise_strength": STRENGTHS}
    return SweepPlan.model_validate({**content, "grid": grid, "figure": {"x": x, "lines": lines}})


def test_metrics_are_drawn_of_the_last_case() -> None:
    at = [{"case": name, "sample.noise_strength": strength} for name in "AB" for strength in STRENGTHS]
    rows = tuple(MetricsRow(one, (place,), ({},), 10, 10) for place, one in enumerate(at))
    shown, called = _last_line(SweepResult(planned("case"), "", (), (), rows, ()))
    assert [row.at for row in shown] == at[2:] and called == " (case B)"


def test_images_are_an_axis_and_no_lines() -> None:
    assert planned("case", x="images").figure is not None
    with pytest.raises(ValidationError, match=r"\['images'\] does not vary here"):
        planned("images")


def test_what_varies_beside_axis_and_lines_has_lines_of_its_own() -> None:
    plan = planned("case")
    row = MetricsRow({"case": "A", "sample.noise_strength": 0.1}, (0,), ({},), 10, 10)
    assert _others(row, plan) == ""
    assert plan.figure is not None
    alone = plan.model_copy(update={"figure": plan.figure.model_copy(update={"lines": None})})
    assert _others(row, alone) == "A"
    of_images = alone.model_copy(
        update={
            "grid": {"sample.variants": (1, 3), "sample.noise_strength": STRENGTHS},
            "figure": plan.figure.model_copy(update={"x": "images"}),
        }
    )
    assert _others(MetricsRow({**row.at, "sample.variants": 3}, (0,), ({},), 10, 10), of_images) == "noise_strength 0.1"
