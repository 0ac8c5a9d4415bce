"""What is wrong with one file, and how it is shown so that no name can mislead a terminal or a spreadsheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.text import shown
from ..errors import DataError

_SHOWN_PROBLEMS = 10
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Problem:
    """Something about one file that a user should know; `fatal` means that the image cannot be used."""

    file: str  # as it is named on disk; put it through `shown` before it meets a terminal
    cause: str
    remedy: str
    fatal: bool


def csv_cell(text: str) -> str:
    """`shown`, with an apostrophe before what a spreadsheet would run as a formula (OWASP, "CSV Injection")."""
    safe = shown(text)
    return f"'{safe}" if safe.lstrip().startswith(_FORMULA) else safe


def aligned(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """One line a row, columns padded to the width that a terminal gives them, all cells escaped."""
    from rich.cells import cell_len

    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    return [
        indent + "  ".join(c + " " * (w - cell_len(c)) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def raise_fatal(name: str, problems: Sequence[Problem]) -> None:
    """Raise `DataError` with a table of the fatal problems (the first 10 and how many more), if there are any."""
    fatal = [problem for problem in problems if problem.fatal]
    if not fatal:
        return
    rows = [("file", "cause", "remedy"), *((p.file, p.cause, p.remedy) for p in fatal[:_SHOWN_PROBLEMS])]
    lines = aligned(rows)
    if len(fatal) > _SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(fatal) - _SHOWN_PROBLEMS} more")
    count = "1 file" if len(fatal) == 1 else f"{len(fatal)} files"
    raise DataError("\n".join([f"{name}: {count} cannot be used; nothing was computed.", *lines]))
