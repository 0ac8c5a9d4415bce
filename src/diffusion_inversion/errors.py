"""Errors that a user can act on; each carries the exit code of the command that met it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DinvError(Exception):
    """Base of every expected error. The message names the thing, the cause and the remedy.

    `details` is JSON data that the command adds to its summary.
    """

    exit_code = 1

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details or {})


class UsageError(DinvError):
    """An argument is wrong: nothing was computed."""

    exit_code = 2


class PartialError(DinvError):
    """Some of the work is done and kept, some failed; the message says which."""

    exit_code = 3


class DataError(DinvError):
    """The images, labels or splits cannot be used as they are."""

    exit_code = 4


class ConfigMismatchError(DinvError):
    """The run folder was made with other settings, data or weights."""

    exit_code = 5


class LockedError(DinvError):
    """Another process works in the run folder."""

    exit_code = 6


class DiskError(DinvError):
    """The disk is full or not writable."""

    exit_code = 7


def how_to_install(extras: str) -> str:
    """The command that installs extras of this package, for the end of a message. It is on no package index yet."""
    return f"in a clone: pip install '.[{extras}]'"
