"""Settings of label fidelity: what becomes of images that do not show their label."""

from __future__ import annotations

from typing import Literal

from .settings import Settings, setting


class FilterSettings(Settings):
    """Between stage 2 and training: images that a judge, which never saw their source, takes for another class."""

    filter: Literal["off", "drop", "redraw", "soft"] = setting(
        "off",
        "what becomes of synthetic images that show another class, left out, drawn again up to five times, or labelled "
        "by the judge's answer; each class keeps its number of images",
        "ours",
    )


OFF = FilterSettings()
