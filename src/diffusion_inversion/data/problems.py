"""What is wrong with one file, and how it is shown so that no name can mislead a terminal or a spreadsheet."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..engine.text import shown
from ..errors import DataError

_SHOWN_PROBLEMS, _ALIKE = 10, 3  # rows of a table, and of them files that are alike
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Problem:
    """Something about one file that a user should know; `fatal` means that the image cannot be used."""

    file: str  # as it is named on disk; put it through `shown` before it meets a terminal
    cause: str
    remedy: str
    fatal: bool


def say(what: str, problems: Iterable[Problem]) -> None:
    """A note on stderr for each problem of `what`, where no command shows them otherwise."""
    for one in problems:
        print(f"note: {shown(what)}: {shown(one.file)}: {one.cause}; {one.remedy}", file=sys.stderr, flush=True)


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
    """Raise `DataError` with a table of the fatal problems (the first 10 rows and how many more), if there are any.

    Of more than three files with the same cause and remedy two are named.
    """
    fatal = [problem for problem in problems if problem.fatal]
    if not fatal:
        return
    alike: dict[tuple[str, str], list[str]] = {}
    for problem in fatal:
        alike.setdefault((problem.cause, problem.remedy), []).append(problem.file)
    rows = []
    for (cause, remedy), files in alike.items():
        few = len(files) <= _ALIKE
        rows += [(file, cause, remedy) for file in (files if few else files[: _ALIKE - 1])]
        rows += [] if few else [(f"and {len(files) - _ALIKE + 1} more", cause, remedy)]
    lines = aligned([("file", "cause", "remedy"), *rows[:_SHOWN_PROBLEMS]])
    if len(rows) > _SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(rows) - _SHOWN_PROBLEMS} more")
    count = "1 file" if len(fatal) == 1 else f"{len(fatal)} files"
    raise DataError("\n".join([f"{name}: {count} cannot be used; nothing was computed.", *lines]))
