"""The settings that a stage was run with: written once, compared ever after."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigMismatchError
from .ledger import Ledger
from .lock import briefly, is_shared
from .object_store import agreed

_LONGEST_VALUE = 80  # characters of one value in a diff
_LONGEST_LIST = 10  # entries of a list that a diff shows whole
_MOST_DIFFERENCES = 20  # lines of a diff
_ABSENT = object()


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Yield one line per setting that differs between two JSON values; keys of nested settings are dotted."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and max(map(len, (old, new))) > _LONGEST_LIST:
        if len(old) != len(new):
            yield f"{key}: was {len(old)} entries, now {len(new)}"
            return
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{key}[{index}]")
    else:
        yield f"{key}: was {_show(old)}, now {_show(new)}"


def settings_file(stage: str) -> str:
    """The name of the file in a run folder that keeps the settings of a stage."""
    return f"{stage}.config.json"


def freeze_settings(folder: Path, stage: str, settings: dict[str, Any], *, begun: bool = True) -> None:
    """Write `<folder>/<stage>.config.json` the first time; later make sure that the settings are the same.

    `begun` says whether the stage has committed anything yet; until then settings may still change and are replaced.
    `settings` is JSON data, with everything that the stage's result depends on. Call it inside `run_lock`.
    Raises ConfigMismatchError, which lists every setting that differs, DataError for a damaged file, and DiskError.
    """
    name = settings_file(stage)
    ledger, as_read = Ledger(folder), json.loads(json.dumps(settings, allow_nan=False))
    with briefly(folder, f"claim-{stage}"):
        stored = ledger.read_json(name) if begun or is_shared(folder) else None
        if begun and stored is None:
            raise ConfigMismatchError(
                f"{folder / name}: missing, so nobody knows how {stage} was run here. `dinv repair {folder}` restores "
                "it where a record has a copy; else begin another run folder."
            )
        lines = [] if stored is None else list(differences(stored, as_read))
        if not lines:  # the same again only completes a record that a kill cut short
            require_agreed(folder, stage, as_read)
            ledger.commit_json(name, settings, copied=True, indent=2, allow_nan=False)
    _refuse(folder, stage, lines)


def require_unchanged(folder: Path, stage: str, settings: dict[str, Any], leave_out: Collection[str] = ()) -> None:
    """Raise what `freeze_settings` will raise for the `settings` among what it is given, before any work.

    Without those in `leave_out`, which are known later. For a stage that has committed something.
    """
    stored = Ledger(folder).read_json(settings_file(stage))
    if stored is None:  # which `freeze_settings` says when it comes to it
        return
    old, new = ({k: v for k, v in one.items() if k not in leave_out} for one in (stored["settings"], settings))
    _refuse(folder, stage, list(differences(old, json.loads(json.dumps(new)))))


def _refuse(folder: Path, stage: str, lines: list[str]) -> None:
    if lines:
        raise ConfigMismatchError(
            f"{folder}: {stage} was run here with other settings:\n"
            + listed(lines)
            + "\nUse the old settings to go on, or choose another run folder. The old ones are in "
            f"{folder / settings_file(stage)}"
        )


def require_agreed(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Raise ConfigMismatchError where others, who share a run in folders of their own, began it with other content."""
    lines = list(differences(agreed(folder, name, content), content))
    if lines:
        raise ConfigMismatchError(
            f"{folder}: those who share this run began it with other {name} settings or images:\n"
            + listed(lines)
            + "\nUse theirs, or choose another --store (an empty prefix) and run folder."
        )


def listed(lines: list[str]) -> str:
    """The lines of a diff, indented, the first 20 of them."""
    more = len(lines) - _MOST_DIFFERENCES
    return "\n".join(f"  {line}" for line in [*lines[:_MOST_DIFFERENCES], *([f"and {more} more"] if more > 0 else [])])
