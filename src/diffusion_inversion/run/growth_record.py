"""What run.json and the report have of a run that grew."""

from __future__ import annotations

from pathlib import Path

from ..engine.ledger import Ledger
from .layout import GROWTH_FILE
from .report.image_records import GrowthRecord


def growth_record(run: Path) -> GrowthRecord | None:
    """The rounds and their end; None where nothing grew, and where it has not ended."""
    kept = Ledger(run).read_json(GROWTH_FILE)
    if kept is None or kept["ended"] is None:
        return None
    rounds, ended = kept["rounds"], kept["ended"]
    every = [one["wanted"] for one in rounds]
    return {
        "reason": ended["reason"],
        "added": ended["added"],
        "images": ended["images"],
        "synthetic": [*(one["synthetic"] for one in rounds), ended["synthetic"]],
        "accuracies": [*(one["accuracy"] for one in rounds), ended["accuracy"]],
        "wanted": [sum(found) for found in zip(*every, strict=True)],
        "kept": sum(one["kept"] for one in rounds),
        "gain": ended["gain"],
        "sentence": ended["sentence"],
    }
