"""Named settings as TOML files: tables [invert], [sample] and [train], each with fields of its settings model.

[medmnist.train] lies over [train] where DATA is one of MedMNIST's sets, for which the paper has its own recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...engine.text import did_you_mean
from ...engine.toml import read_toml
from ...errors import UsageError
from ..sampling import SampleSettings
from ..settings import InvertSettings, Settings
from ..training import TrainSettings

FOLDER = Path(__file__).parent
MEDMNIST = ("pathmnist", "dermamnist", "bloodmnist")  # as DATA names them
OVER = "medmnist"
TABLES: dict[str, type[Settings]] = {"invert": InvertSettings, "sample": SampleSettings, "train": TrainSettings}


def names() -> tuple[str, ...]:
    """The presets that ship with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_preset(preset: str, data: str | None = None) -> dict[str, dict[str, Any]]:
    """The tables of a preset for this DATA: a name that ships, or the path of a TOML file.

    A table that is not there is empty. Raises UsageError, which lists everything that is wrong: an unknown name, a
    file that is no TOML, unknown tables and keys, values that the settings refuse.
    """
    path = FOLDER / f"{preset}.toml" if preset in names() else Path(preset)
    if path.suffix != ".toml" or not path.is_file():
        near = did_you_mean(preset, names())
        raise UsageError(f"--preset {preset}: neither {', '.join(names())} nor the path of a TOML file{near or '.'}")
    tables = read_toml(path)
    if faults := _faults(tables):
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UsageError(f"{path}: a preset that cannot be used:\n{lines}\nCorrect these lines in the file.")
    over = tables.get(OVER, {}) if data in MEDMNIST else {}
    return {table: {**tables.get(table, {}), **over.get(table, {})} for table in TABLES}


def _faults(tables: dict[str, Any]) -> list[str]:
    from pydantic import ValidationError

    found = []
    parts = {table: (table, values) for table, values in tables.items() if table != OVER}
    if isinstance(over := tables.get(OVER, {}), dict):
        # What lies over a table is checked together with it: a warm-up needs its steps.
        below = {table: values for table, values in tables.items() if isinstance(values, dict)}
        parts |= {
            f"{OVER}.{table}": (table, {**below.get(table, {}), **values} if isinstance(values, dict) else values)
            for table, values in over.items()
        }
    else:
        parts[OVER] = (OVER, over)
    for shown, (table, values) in parts.items():
        if table not in TABLES or not isinstance(values, dict):
            known = ", ".join(f"[{name}]" for name in (*TABLES, f"{OVER}.train"))
            found.append(f"{shown}: unknown; tables are {known}")
            continue
        try:
            TABLES[table].model_validate(values)
        except ValidationError as error:
            for fault in error.errors():
                place = ".".join(map(str, (shown, *fault["loc"])))
                unknown = fault["type"] == "extra_forbidden"
                found.append(f"{place}: unknown key" if unknown else f"{place}={fault['input']!r}: {fault['msg']}")
    return found
