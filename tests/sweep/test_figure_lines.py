"""What the lines of a sweep's figures may stand for, and which of them metrics are drawn of."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from diffusion_inversion.sweep.figure import _last_line
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
