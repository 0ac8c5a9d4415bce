"""Problems of single files, grouped by their cause."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MOST_PROBLEMS = 200  # that the page lists of each cause; the run's data.json lists all
# Causes that go on with the name of another file, as `data.duplicates` writes them; the longer first.
_WITH_A_NAME = (
    "conflicting labels",
    "near-duplicate of training image",
    "near-duplicate of",
    "same pixels as training image",
    "same pixels as",
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def cause_of_many(cause: str) -> str:
    """What a cause has in common with those that differ in a file or a number: "same pixels as another image"."""
    for beginning in _WITH_A_NAME:
        if cause.startswith(beginning):
            rest = " another image" if beginning.endswith(" as") or beginning.endswith(" of") else ""
            left_out = ", left out of test" if cause.endswith(", left out of test") else ""
            return beginning + rest + left_out
    return _NUMBER.sub("…", cause)


def grouped(problems: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Problems (`ProblemRecord`) by what their causes have in common, the most frequent first.

    A cause that one file alone has is shown as it is.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for problem in problems:
        groups.setdefault(cause_of_many(problem["cause"]), []).append(problem)
    found = [(cause if len(rows) > 1 else rows[0]["cause"], rows) for cause, rows in groups.items()]
    return sorted(found, key=lambda group: -len(group[1]))
