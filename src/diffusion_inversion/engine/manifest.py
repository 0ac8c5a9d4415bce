"""The list of committed work: one checked JSON object a line, appended after the work itself is on disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from ..errors import ConfigMismatchError, DataError, LockedError, UsageError
from .faults import fault_point
from .store import ask_guards, commit_bytes, disk_errors, sync_folder
from .untrusted import check_record

NAME = "manifest.jsonl"
_CHECK = b', "check": "'
_CHECK_DIGITS = 16

# What a record says, by its key "event": commit, drop (below); writing: a file that may be replaced later is about to
# get its name (engine/ledger.py); others belong to the stage that writes them (complete, time, header).
Record = dict[str, Any]


class Unit(TypedDict):
    """The event commit: a unit of work is done. A stage adds keys of its own."""

    event: str
    unit: str
    ids: list[str]  # what it did
    count: int  # of them
    files: dict[str, str]  # name relative to the manifest's folder => sha256 hex


class Dropped(TypedDict):
    """The event drop: a unit is not done any more, because its files were damaged or it was begun anew."""

    event: str
    unit: str


def line_of(record: Record) -> bytes:
    """The record as a line that carries the hash of itself, so that every changed bit is seen."""
    text = json.dumps(record, allow_nan=False).encode()
    check = hashlib.sha256(text).hexdigest()[:_CHECK_DIGITS].encode()
    return text[:-1] + _CHECK + check + b'"}\n'


def parse_line(line: bytes) -> Record | None:
    """The record of a whole line, its check removed; None where the line is torn or was changed."""
    text, found, check = line.rpartition(_CHECK)
    if not found or check != hashlib.sha256(text + b"}").hexdigest()[:_CHECK_DIGITS].encode() + b'"}\n':
        return None
    try:
        record = json.loads(text + b"}")
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("event"), str) else None


class Manifest:
    """Records in the order of their commits.

    A last line that a kill or power cut tore is not a record: readers skip it and the next append cuts it. Several
    processes may append; each sees what the others appended.
    """

    def __init__(self, path: Path, kinds: Mapping[str, type[Any]] | None = None) -> None:
        """`kinds` gives the TypedDict that records of an event must be: a manifest may come from somebody else."""
        self.path = path
        self._kinds = {"commit": Unit, "drop": Dropped, **(kinds or {})}
        self._forget()

    def _forget(self) -> None:
        self._records: list[Record] = []
        self._end = 0  # bytes that the records take
        self._identity: tuple[int, int] | None = None  # of the file that was read: a rewritten manifest is another

    def _refresh(self) -> None:
        """Read what was appended since the last time. Raises DataError for a damaged line before the last."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self._forget()
            return
        with file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            if identity != self._identity or status.st_size < self._end:
                self._forget()
            self._identity = identity
            file.seek(self._end)
            torn = False
            for line in file:  # cut at line feeds alone
                if torn:
                    raise DataError(
                        f"{self.path}, line {len(self._records) + 1}: not a record that was written here, but records "
                        f"follow, so the file was damaged since. `dinv repair {self.path.parent}` (or the folder "
                        "above) does the lost work again; or restore the file from a copy."
                    )
                if (record := parse_line(line)) is None:
                    torn = True
                    continue
                self.check(record, f"{self.path}, line {len(self._records) + 1}")
                self._records.append(record)
                self._end += len(line)

    def check(self, record: Record, where: str) -> None:
        """Raise DataError unless a record is what records of its event are here; `where` it was read."""
        if record["event"] in self._kinds:
            check_record(record, self._kinds[record["event"]], where)

    def records(self) -> list[Record]:
        """Every committed record in order; none if the file does not exist. Raises DataError if damaged."""
        self._refresh()
        return self._records

    def units(self) -> dict[str, Record]:
        """The commit record of every unit that is done, by unit name, in the order of the commits."""
        found: dict[str, Record] = {}
        for record in self.records():
            if record["event"] in ("commit", "drop"):
                found.pop(record["unit"], None)
            if record["event"] == "commit":
                found[record["unit"]] = record
        return found

    def jobs(self) -> set[str]:
        """What all the units that are done did: their ids."""
        return {job for record in self.units().values() for job in record["ids"]}

    def dropped(self) -> dict[str, Record]:
        """The last commit record of every unit that was dropped and is not done again, by unit name."""
        commits = {record["unit"]: record for record in self.records() if record["event"] == "commit"}
        done = self.units()
        return {unit: record for unit, record in commits.items() if unit not in done}

    def last(self, event: str) -> Record | None:
        """The last record of an event, None where there is none."""
        return next((record for record in reversed(self.records()) if record["event"] == event), None)

    def commit(self, unit: str, ids: Sequence[str], files: Mapping[str, str] | None = None, **more: Any) -> None:
        """Say that a unit is done, once its files are on disk; `more` are the keys that its stage adds, JSON data."""
        record = {"event": "commit", "unit": unit, "ids": list(ids), "count": len(ids), "files": dict(files or {})}
        self.append({**record, **more})

    def append(self, record: Record) -> None:
        """Add one record and wait until it is on disk. Raises DiskError; ValueError for NaN or infinity."""
        line = line_of(record)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            with os.fdopen(descriptor, "rb+", buffering=0) as file:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # until the file is closed
                self._refresh()
                ask_guards()
                file.truncate(self._end)
                file.seek(self._end)
                written = file.write(line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                fault_point("appended")
                os.fsync(descriptor)
            if self._end == 0:
                sync_folder(self.path.parent)
        self._records.append(record)
        self._end += len(line)
        fault_point("recorded")

    def rewrite(self, records: list[Record]) -> None:
        """Replace the whole manifest at once. Only for what must leave no trace, and to cut out damaged lines."""
        commit_bytes(self.path, b"".join(map(line_of, records)))

    def examine(self) -> tuple[list[Record], list[int], bool]:
        """Every good record, the numbers of the damaged lines, and whether the last line is torn. Never raises."""
        records: list[Record] = []
        bad: list[int] = []
        number = 0
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if (record := parse_line(line)) is None:
                    bad.append(number)
                else:
                    records.append(record)
        torn = bool(bad) and bad[-1] == number
        return records, bad[:-1] if torn else bad, torn


@contextmanager
def timed(manifest: Manifest) -> Iterator[None]:
    """Record the time of the block, also when it is interrupted, but not where it was refused: then nothing changes.

    Nor where it found everything done in less than a second: the same command then leaves the same records.
    """
    start, refused, before = time.monotonic(), False, len(manifest.records())
    try:
        yield
    except (UsageError, ConfigMismatchError, LockedError):
        refused = True
        raise
    finally:
        seconds = time.monotonic() - start
        if not refused and (seconds >= 1 or len(manifest.records()) > before):
            manifest.append({"event": "time", "seconds": round(seconds, 1)})
