"""What a run may grow with: refusals before any work, and the settings of training that it has already."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config.training import TrainSettings
from ..engine.frozen_settings import differences, settings_file
from ..engine.ledger import Ledger
from ..errors import UsageError
from ..train.recipes import OVERRIDES, resolved
from .fidelity.stage import recorded_filter
from .layout import GROWTH_FILE, REPLICATES
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


def taken_over(run: Path, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The settings of training that a run has and that were not `given`, by field; and the file that has them.

    Those of the rounds where it has grown, which all have the same, else those that its classifiers were trained with,
    what was chosen for it among them; none where neither is there. With another recipe than the run's the numbers are
    that recipe's.
    """
    ledger = Ledger(run)
    rounds = (ledger.read_json(GROWTH_FILE) or {"rounds": []})["rounds"]
    file = settings_file("grow" if rounds else "train")
    frozen = ledger.read_json(file)
    if frozen is None:
        return file, {}
    found = {**frozen["settings"], "architecture": frozen["architecture"]}
    if "seed" in frozen:
        found["seeds"] = [frozen["seed"]]
    others = {*OVERRIDES, "warm_up_steps"} if given.get("recipe", found["recipe"]) != found["recipe"] else set()
    return file, {name: value for name, value in found.items() if name not in others and name not in given}


def unusual(settings: TrainSettings, names: Collection[str]) -> dict[str, Any]:
    """Those of the settings `names` that are not what they would be without being given, by field."""
    usual, own = resolved(TrainSettings(recipe=settings.recipe)), resolved(settings)
    found = {name: getattr(own, name) for name in names}
    return {name: value for name, value in found.items() if value != getattr(usual, name)}


def warn_of_others(run: Path, described: Mapping[str, Any]) -> None:
    """Say on stderr where the classifiers of the run were trained otherwise than those of its folds will be."""
    frozen = Ledger(run).read_json(settings_file("train"))
    if frozen is None:
        return
    own, theirs = ({**one["settings"], "architecture": one["architecture"]} for one in (described, frozen))
    if lines := list(differences(theirs, own)):
        print(
            f"warning: {run} was trained with other settings than its folds: {'; '.join(lines)}. What is grown is what "
            "these need; leave the options out to have the run's own.",
            file=sys.stderr,
            flush=True,
        )
