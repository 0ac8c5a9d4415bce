"""`dinv grow`: add synthetic images where they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .command import hold
from .given import Given
from .options import Device, Preset, Run

if TYPE_CHECKING:
    from ..config.growing import GrowSettings
    from ..config.training import TrainSettings


def grow(
    *,
    run: Run,
    growing: Given[GrowSettings],
    where: Device,
    preset: Preset = None,
    training: Given[TrainSettings],
) -> dict[str, Any]:
    """Add synthetic images to RUN round by round, most for the classes recognised least, until they are enough."""
    from ..run.grow import grow as grow_run
    from ..run.images import open_splits, recorded_data

    asked, settings = growing.settings(), training.settings(preset, of=recorded_data(run))
    with hold(run):
        found = grow_run(run, open_splits(run), asked, settings, None, where.settings().device)
    gain, low, high = (100 * one for one in found["gain"])
    text = (
        f"{found['added']} images were added to {run}: {found['reason']}. Of {found['images']} held-out training "
        f"images {100 * found['accuracy']:.1f} % are recognised, {gain:+.1f} points [{low:+.1f}, {high:+.1f}].\n"
        f"{found['sentence']}.\nNext: dinv train {run}"
    )
    return {"run": str(run), **found, "text": text}
