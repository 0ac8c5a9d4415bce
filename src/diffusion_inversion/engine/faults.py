"""Named places between the steps of a commit, where the chaos tests kill the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Point = Literal["written", "synced", "renamed", "committed", "appended", "recorded"]
# Of one commit, in this order: the temporary file is written; it is on disk; it has its name; the folder is on disk
# too; the manifest has the record; the record is on disk.
POINTS: tuple[Point, ...] = ("written", "synced", "renamed", "committed", "appended", "recorded")

on_point: Callable[[Point], None] | None = None  # set by tests alone


def fault_point(name: Point) -> None:
    """Do nothing, unless a test listens."""
    if on_point is not None:
        on_point(name)
