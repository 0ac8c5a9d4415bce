"""What a run may cost and what it will look like: settings of `dinv plan`, of a time limit, a preview and logs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from .settings import Settings, setting

_UNITS = {"d": 86400, "h": 3600, "min": 60, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)\s*(d|h|min|m|s))\s*")


def seconds(text: object) -> object:
    """Seconds of a duration such as `2h`, `1h30m`, `45 min` or `90s`; what is no text is left as it is.

    Raises ValueError for a number without its unit, and for anything else.
    """
    if not isinstance(text, str):
        return text
    parts = _DURATION.findall(text.strip())
    if not parts or _DURATION.sub("", text.strip()):
        raise ValueError("not a duration; give a number with its unit, such as 90s, 45min, 2h, 1h30m or 1d")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


Duration = Annotated[float, BeforeValidator(seconds)]


class LimitSettings(Settings):
    """How long a run may take."""

    time_limit: Duration | None = setting(
        None,
        "end within e.g. 45min, 2h or 1d: steps are timed first, and variants, seeds and then steps are cut as far as "
        "they must be",
        unset="no end",
        gt=0,
    )


class PlanSettings(LimitSettings):
    """What a forecast is asked for, beside the settings of the run."""

    workers: int = setting(1, "processes that share the run (--join), each with a machine like this one", ge=1)
    price: float | None = setting(
        None, "price of an hour of one machine, in any currency", unset="cost is not said", ge=0
    )


TRACKERS = ("tensorboard", "trackio", "wandb")


class LogSettings(Settings):
    """Where a run logs what it does, beside its own files."""

    log_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = setting(
        (), "losses, accuracies, pictures and settings, as the run goes; needs the extra of that name", unset="nowhere"
    )
    log_dir: Path | None = setting(None, "folder of the logs, which runs may share", unset="logs beside the run folder")


class PreviewSettings(Settings):
    """What is drawn for a first look."""

    images: int = setting(8, "real images to look at, as many of each class as of any other", ge=1, le=64)
    stronger: float = setting(
        3.0, "times the noise strength and the interpolation, for the variants beside those of the run", ge=0
    )
    out: Path | None = setting(
        None, "FILE.png, with FILE.html beside it, or a folder for both", unset="runs/<name of DATA>-preview.png"
    )
