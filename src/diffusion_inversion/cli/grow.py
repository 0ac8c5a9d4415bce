"""`dinv grow`: add synthetic images where they are needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .command import absolute_file, hold
from .given import Fields, Given, flag, settings_of
from .options import Device, Preset, Run

if TYPE_CHECKING:
    from ..config.growing import GrowSettings
    from ..config.training import TrainSettings

OF_THE_FOLDS = (
    "architecture", "recipe", "augmentations", "mixing", "me_ada_every", "me_ada_share", "me_ada_steps", "me_ada_rate",
    "me_ada_gamma", "me_ada_eta", "steps", "warm_up_steps", "batch_size", "learning_rate", "real_fraction", "seeds",
)  # fmt: skip
# What is not given: as the rounds before, or the classifiers of RUN, were trained.
AS_THE_RUN = dict.fromkeys(OF_THE_FOLDS, "RUN's, else dinv train's")


def grow(
    *,
    run: Run,
    growing: Given[GrowSettings],
    where: Device,
    preset: Preset = None,
    training: Annotated[Given[TrainSettings], Fields(only=OF_THE_FOLDS, unset=AS_THE_RUN)],
) -> dict[str, Any]:
    """Add synthetic images to RUN round by round, most for the classes recognised least, until they are enough."""
    from ..run.grow import grow as grow_run
    from ..run.growth_settings import require_growable
    from ..run.images import open_splits
    from ..run.reporting import report_command

    asked = growing.settings()
    if asked.balance != "class":  # which no file is
        asked = asked.model_copy(update={"balance": absolute_file(asked.balance)})
    require_growable(run)
    settings = _as_the_run(run, training, preset)
    with hold(run):
        found = grow_run(run, open_splits(run), asked, settings, None, where.settings().device)
    gain, low, high = (100 * one for one in found["gain"])
    text = (
        f"{found['added']} images were added to {run}: {found['reason']}. Of {found['images']} held-out training "
        f"images {100 * found['accuracy']:.1f} % are recognised, {gain:+.1f} points [{low:+.1f}, {high:+.1f}].\n"
        f"{found['sentence']}.\nNext: {report_command(run)}"
    )
    return {"run": str(run), **found, "text": text}


def _as_the_run(run: Path, training: Given[TrainSettings], preset: str | None) -> TrainSettings:
    """The settings of training that are given, over those of a preset, over those that RUN has; said on stderr."""
    from ..config.presets import read_preset
    from ..config.training import TrainSettings
    from ..run.growth_settings import taken_over, unusual
    from ..run.images import recorded_data

    data = recorded_data(run)
    before = {} if preset is None else read_preset(preset, data)["train"]
    file, taken = taken_over(run, {**before, **training.values})
    settings = settings_of(TrainSettings, preset, "train", of=data, **taken, **training.values)
    if told := unusual(settings, taken):
        each = ", ".join(f"{flag(name, TrainSettings.model_fields[name])} {_shown(told[name])}" for name in told)
        print(f"note: as {run / file} has it: {each}", file=sys.stderr, flush=True)
    return settings


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
