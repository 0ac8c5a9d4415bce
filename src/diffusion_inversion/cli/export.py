"""`dinv export`: what a run made, for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .command import hold
from .given import Given
from .options import Run

if TYPE_CHECKING:
    from ..config.commands import ExportSettings


def export(*, run: Run, exporting: Given[ExportSettings]) -> dict[str, Any]:
    """Write the classifiers or the synthetic images of RUN in a format of other programs."""
    from ..run.export.stage import export as write
    from ..run.export.vectors import LEFT_OUT, WRITTEN

    settings = exporting.settings()
    with hold(run):
        done = write(run, settings)
    said = WRITTEN if settings.with_vectors else LEFT_OUT
    lines = [f"{done.count} {done.what} as {settings.to}: {settings.out}", said, *done.licences]
    summary = {"out": str(settings.out), "to": settings.to, "count": done.count, "what": done.what}
    vectors = {"vectors": settings.with_vectors}
    return {**summary, **vectors, "licences": list(done.licences), "text": "\n".join(lines)}
