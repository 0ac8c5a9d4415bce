"""The rounds of a run that grows, and what run.json and the report have of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from ..engine.ledger import Ledger
from .layout import GROWTH_FILE
from .report.image_records import GrownPart, GrowthRecord


class RoundRecord(TypedDict):
    """One round; JSON data."""

    synthetic: int  # images that were trained on
    accuracy: float  # of held-out training images, each once, in [0, 1]
    correct: str  # 0 or 1 of each of them, in the order of the training images
    wanted: list[int]  # images of each class
    candidates: dict[str, int]  # of each source
    chosen: list[str]  # jobs of those that were added
    kept: int  # of them, that kept their label
    attribute: NotRequired[str]  # where shares went by one
    subgroups: NotRequired[list[GrownPart]]  # where they did
    seconds: float  # of all of it
    drawing: NotRequired[float]  # of them, for what was chosen; not there: not drawn yet, or by an earlier version


def growth_record(run: Path) -> GrowthRecord | None:
    """The rounds and their end; None where nothing grew, and where it has not ended."""
    kept = Ledger(run).read_json(GROWTH_FILE)
    if kept is None or kept["ended"] is None:
        return None
    rounds: list[RoundRecord] = kept["rounds"]
    ended = kept["ended"]
    every = [one["wanted"] for one in rounds]
    found: GrowthRecord = {
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
    if rounds and "subgroups" in rounds[0]:
        found["attribute"] = rounds[0]["attribute"]
        found["subgroups"] = [
            {**one, "added": sum(each["subgroups"][place]["added"] for each in rounds)}
            for place, one in enumerate(rounds[0]["subgroups"])
        ]
    return found


def as_text(correct: Tensor) -> str:
    """A record of which images (n,) bool were recognised: 0 or 1 of each."""
    return "".join(map(str, correct.int().tolist()))


def as_tensor(text: str) -> Tensor:
    """What `as_text` made a record of: (n,) bool."""
    return torch.tensor([one == "1" for one in text])
