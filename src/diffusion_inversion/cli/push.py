"""`dinv push`: the synthetic images of a run as a data set of the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .command import hold
from .given import Given
from .options import Run

if TYPE_CHECKING:
    from ..config.commands import PushSettings


def push(*, run: Run, pushing: Given[PushSettings]) -> dict[str, Any]:
    """Publish the synthetic images of RUN: a data set with card, provenance, verdict and picture."""
    from ..run.export.publish import upload, write_publication
    from ..run.export.vectors import LEFT_OUT

    settings = pushing.settings()
    with hold(run):
        count = write_publication(run, settings)
    summary = {"out": str(settings.out), "hub_id": settings.hub_id, "images": count, "licence": settings.licence}
    if settings.dry_run:
        text = (
            f"{count} images with their card: {settings.out}. Nothing was uploaded; rows name files of your data.\n"
            f"{LEFT_OUT}"
        )
        return {**summary, "uploaded": False, "text": text}
    address = upload(settings)
    return {**summary, "uploaded": True, "address": address, "text": f"{count} images: {address}\n{LEFT_OUT}"}
