"""What a run may grow with: refusals before any work, and the settings of training that it has already."""

from __future__ import annotations

from pathlib import Path

from ..config.training import TrainSettings
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..errors import UsageError
from .fidelity.stage import recorded_filter
from .layout import REPLICATES
from .methods import method_of
from .replicates import replicate_folders


def require_growable(run: Path) -> None:
    """Raise UsageError, before anything is loaded, for a run whose next training could not have what grows."""
    if method_of(run).again is not None:
        raise UsageError(f"{run}: has no learned vectors to draw around. Grow a run of `dinv sample`.")
    if replicate_folders(run)[1:] or run.resolve().parent.name == REPLICATES:
        raise UsageError(
            f"{run}: is one of several replicates, and one verdict would be of some that were trained with what grows "
            "and some without. Grow a run that has none (another --out, without --replicates)."
        )
    if (how := recorded_filter(run).filter) != "off":
        raise _anew(run, f"--filter {how}")
    if (frozen := Ledger(run).read_json(settings_file("train"))) is not None and frozen["settings"].get("online"):
        raise _anew(run, "--online")


def _anew(run: Path, how: str) -> UsageError:
    return UsageError(
        f"{run}: was trained with {how}, which images that are grown go without. Begin training anew without it "
        f"(`dinv train {run} --restart`), then grow."
    )


def require_trainable(settings: TrainSettings) -> None:
    """Raise UsageError for settings of training that no fold can have."""
    if settings.online or settings.real_fraction == "auto" or settings.mixing == "confidence":
        raise UsageError("dinv grow: not with online, real_fraction=auto or mixing=confidence; give other settings.")
