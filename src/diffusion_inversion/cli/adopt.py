"""`dinv adopt`: images that another method made, in a run folder of DATA that `dinv train` takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import data_settings, hold
from .given import Given
from .options import Restart

if TYPE_CHECKING:
    from ..config.sampling import AdoptSettings
    from ..config.settings import DataSettings


def adopt(
    *,
    source: Given[DataSettings],
    adopting: Given[AdoptSettings],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    restart: Restart = False,
) -> dict[str, Any]:
    """Put images that another method made into a run folder of DATA: `dinv train OUT` judges them as ours.

    Test images among IMAGES are refused, or left out with --drop-test-duplicates.
    """
    from ..data.sources import absolute
    from ..run.adoption import adopt as adopt_images
    from ..run.place import require_place

    data = data_settings(source)
    images = absolute(adopting.values["images"])
    settings = replace(adopting, values={**adopting.values, "images": images}).settings()
    require_place(out, data.data, data.test, settings.images)
    with hold(out, restart=restart):
        found = adopt_images(out, data, settings, anew=restart)
    made, left = out / "synthetic", found["left_out"]
    lines = [f"{found['images']} images of {found['name']} in {made}, {found['side']} px. Next: dinv train {out}"]
    if found["copies"]:
        lines.append(f"With exactly the pixels of a training image: {found['copies']} of them, which are `real` again.")
    if any(left.values()):
        lines.append("Left out: " + ", ".join(f"{count} {why}" for why, count in left.items()) + ".")
    return {"run": str(out), "folder": str(made), **found, "text": "\n".join(lines)}
