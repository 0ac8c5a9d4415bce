"""The command that says from another terminal how far a run is: status."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .options import Run


def status(
    *,
    run: Run,
    watch: Annotated[
        float | None,
        typer.Option(min=1, help="Look again every so many seconds, until nobody works there. [default: once]"),
    ] = None,
) -> dict[str, Any]:
    """Say how far RUN is and who works there, while it works or after: nobody is kept from it."""
    from ..run.status import status as look

    found = look(run)
    while watch is not None and found.state == "working":
        typer.echo("\n".join(found.lines()), err=True)
        time.sleep(watch)
        found = look(run)
    return {**found.record(), "text": "\n".join(found.lines())}
