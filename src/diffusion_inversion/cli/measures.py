"""The command that compares two sets of images: metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .given import Given

if TYPE_CHECKING:
    from ..config.commands import MetricsSettings

Side = Annotated[str, typer.Argument(help="DATA, or an .npy file of features (N, D).")]


def metrics(real: Side, generated: Side, measuring: Given[MetricsSettings]) -> dict[str, Any]:
    """FID, KID, CMMD, precision, recall, density and coverage of GENERATED against REAL, with intervals."""
    from ..measure.measuring import measure

    found = measure(real, generated, **measuring.settings().model_dump())
    return {**found.record(), "text": found.table()}
