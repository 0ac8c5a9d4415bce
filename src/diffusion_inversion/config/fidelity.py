"""Settings of label fidelity: what becomes of images that do not show their label."""

from __future__ import annotations

from typing import Literal

from .settings import Settings, setting


class FilterSettings(Settings):
    """Between stage 2 and training: images that a judge, which never saw their source, takes for another class."""

    filter: Literal["off", "drop", "redraw", "soft"] = setting(
        "off",
        "of images that do not show their class, left out, drawn again up to five times, or given the judge's answer "
        "as label; classes keep their number of images",
        "ours",
    )


OFF = FilterSettings()
