"""`dinv retrieve`: images of a pool that are nearest to those of DATA, a run folder for each k."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import data_settings, hold
from .given import Given
from .options import Device, Restart

if TYPE_CHECKING:
    from ..config.sampling import RetrieveSettings
    from ..config.settings import DataSettings


def retrieve(
    *,
    out: Annotated[Path, typer.Option(help="Folder; the set of each k is a run folder in it.")],
    retrieving: Given[RetrieveSettings],
    source: Given[DataSettings],
    where: Device,
    restart: Restart = False,
) -> dict[str, Any]:
    """Find the images of a pool that are nearest to the training images of DATA: what no generator is needed for."""
    from ..data.sources import absolute
    from ..run.retrieval import retrieve_sets

    data = data_settings(source)
    pool = absolute(retrieving.values["pool"])
    settings = replace(retrieving, values={**retrieving.values, "pool": pool}).settings()
    with ExitStack() as held:
        for number in settings.k:
            held.enter_context(hold(out / f"k{number}", restart=restart))
        found = retrieve_sets(out, data, settings, device=where.settings().device, anew=restart)
    lines = []
    for number, one in found.items():
        run = out / f"k{number}"
        counts = f"{one['images']} images, of {one['asked_for']} asked for"
        lines.append(f"k = {number}: {counts}, in {run / 'synthetic'}. Next: dinv train {run}")
    left_out = next(iter(found.values()))["left_out"]
    lines.append("Left out of the pool: " + ", ".join(f"{count} {why}" for why, count in left_out.items()) + ".")
    sets = {str(number): {"run": str(out / f"k{number}"), **one} for number, one in found.items()}
    return {"sets": sets, "text": "\n".join(lines)}
