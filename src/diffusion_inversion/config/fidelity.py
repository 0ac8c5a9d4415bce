"""Settings of label fidelity: what becomes of images that do not show their label."""

from __future__ import annotations

from typing import Literal

from .settings import Settings, setting


class FilterSettings(Settings):
    """Between stage 2 and training: images that a judge, which never saw their source, takes for another class."""

    filter: Literal["off", "drop", "redraw", "soft"] = setting(
        "off",
        "synthetic images that show another class are kept, left out, drawn again, or labelled as a judge says",
        "ours",
    )


OFF = FilterSettings()
