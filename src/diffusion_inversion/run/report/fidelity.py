"""The section on labels: which synthetic images show another class than their own, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .pictures import ReportImages, picture_uri
from .templates import fill

_THUMB = 96  # px at which a picture is shown, at least


def fidelity(run: Mapping[str, Any], images: ReportImages) -> str:
    """The section; "" where labels were not judged."""
    found = run.get("fidelity")
    if found is None:
        return ""
    cards = []
    for about, (real, drawn, again) in zip(found["examples"], images.failed, strict=True):
        later = None if again is None else picture_uri(again)
        cards.append({"about": about, "real": picture_uri(real), "drawn": picture_uri(drawn), "again": later})
    side = images.real.shape[-1]
    return fill("parts/fidelity.html", run=run, found=found, cards=cards, side=max(-(-_THUMB // side), 1) * side)
