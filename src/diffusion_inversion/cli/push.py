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
        done = write_publication(run, settings)
    summary = {"out": str(settings.out), "hub_id": settings.hub_id, "images": done.count, "licence": settings.licence}
    summary["licences"] = list(done.licences)
    if settings.dry_run:
        names = "; rows name files of your data" if settings.source_ids == "plain" else ""
        text = f"{done.count} images with their card: {settings.out}. Nothing was uploaded{names}."
        return {**summary, "uploaded": False, "text": "\n".join([text, LEFT_OUT, *done.licences])}
    address = upload(settings)
    text = "\n".join([f"{done.count} images: {address}", LEFT_OUT, *done.licences])
    return {**summary, "uploaded": True, "address": address, "text": text}
