"""`dinv strips`: what the strengths of interpolation and noise make of some vectors, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .command import hold
from .given import Given
from .options import Run

if TYPE_CHECKING:
    from ..config.commands import StripsSettings


def strips(*, run: Run, drawing: Given[StripsSettings]) -> dict[str, Any]:
    """Draw vectors of a run at growing strengths of interpolation and of noise, one picture (paper, figures 9, 10)."""
    from ..invert.embeddings import read_embeddings
    from ..run.drawn_with import generator_of
    from ..run.images import open_splits
    from ..run.layout import STRIPS_PICTURE
    from ..run.strips import draw_strips

    settings = drawing.settings()
    with hold(run):
        embeddings = read_embeddings(run)
        draw_strips(run, embeddings, generator_of(run, settings.device), open_splits(run).train, settings)
    picture = run / STRIPS_PICTURE
    return {"picture": str(picture), "text": f"{picture}; `dinv train {run}` shows it in the report."}
