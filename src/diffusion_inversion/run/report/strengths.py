"""The section on noise strengths: how much noise the images of each class bear, and those that bear least and most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .pictures import ReportImages, picture_uri
from .templates import fill

_THUMB = 64  # px at which a picture is shown, at least


def strengths(run: Mapping[str, Any], images: ReportImages) -> str:
    """The section; "" where the settings had a number."""
    found = run.get("strengths")
    if found is None:
        return ""
    cards = [
        {"about": about, "real": picture_uri(real), "drawn": [picture_uri(one) for one in drawn]}
        for about, (real, drawn) in zip((*found["lowest"], *found["highest"]), images.strengths, strict=True)
    ]
    used = [level for level in range(len(found["ladder"])) if any(one["counts"][level] for one in found["classes"])]
    side, few = images.real.shape[-1], len(found["lowest"])
    ends = (("Least noise", cards[:few]), ("Most noise", cards[few:]))
    side = max(-(-_THUMB // side), 1) * side
    return fill("parts/strengths.html", run=run, found=found, used=used, ends=ends, side=side)
