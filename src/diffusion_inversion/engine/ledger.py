"""The run folder's own manifest: files that have one name and may be replaced, such as configs and the report."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..errors import DataError
from .lock import briefly
from .manifest import NAME, Manifest
from .store import commit_bytes
from .untrusted import inside, parse_json


class Ledger:
    """Files of a run folder by name. `manifest` holds two records for each write: before its rename and after.

    Between the two a kill leaves the old or the new content; both are whole, and the next command writes again.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.manifest = Manifest(run / NAME)

    def commit(self, name: str, content: bytes, note: dict[str, Any] | None = None) -> None:
        """Write `name`, whole or not at all, and record it; nothing happens where it holds that content already.

        `note` goes into the record: what a damaged file can be made from again.
        """
        digest = hashlib.sha256(content).hexdigest()
        with briefly(self.run, "ledger"):
            if digest != self._committed(name) or _hash(self.run / name) != digest:
                commit_bytes(inside(self.run, name), content, lambda _: self._record("writing", name, digest, note))
                self._record("commit", name, digest, note)

    def commit_json(
        self, name: str, value: Any, note: dict[str, Any] | None = None, *, copied: bool = False, **layout: Any
    ) -> None:
        """Write JSON data, laid out as `json.dumps` does, and a line feed; as `commit`.

        copied: the note is the text itself, from which `dinv repair` restores a damaged file.
        """
        text = json.dumps(value, **layout) + "\n"
        self.commit(name, text.encode(), {"copy": text} if copied else note)

    def adopt(self, name: str) -> None:
        """Record `name` as it is, where its own record was lost."""
        self._record("commit", name, _hash(inside(self.run, name)), None)

    def _record(self, event: str, name: str, digest: str | None, note: dict[str, Any] | None) -> None:
        files = {name: digest}
        self.manifest.append({"event": event, "unit": name, "ids": [name], "count": 1, "files": files, "note": note})

    def note(self, name: str) -> dict[str, Any] | None:
        """The note of the last commit of `name`, also where it was lost since; None where there is none."""
        for record in reversed(self.manifest.records()):
            if record.get("unit") == name and record["event"] == "commit":
                return dict(record["note"]) if isinstance(record["note"], dict) else None
            if record.get("unit") == name and record["event"] == "drop" and not record.get("lost"):
                return None
        return None

    def read(self, name: str) -> bytes | None:
        """The content of `name`; None where it was never committed. Raises DataError where it is not what was written.

        A write that a kill cut short counts as not made where there was none before.
        """
        intended = self.intended(name)
        if not intended:
            return None
        path = inside(self.run, name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            if self._committed(name) is None:
                return None
            raise DataError(
                f"{path}: missing, but it was written here. `dinv repair {self.run}` makes it again."
            ) from None
        if hashlib.sha256(data).hexdigest() not in intended:
            raise DataError(f"{path}: changed since it was written. `dinv repair {self.run}` makes it again.")
        return data

    def read_json(self, name: str) -> Any:
        """The JSON data in `name`; None where it was never committed. Raises DataError as `read` does."""
        content = self.read(name)
        return None if content is None else parse_json(content, self.run / name)

    def holds(self, name: str) -> bool:
        """Whether `name` was committed, not dropped, and is there with what was written."""
        digest = self._committed(name)
        return digest is not None and _hash(self.run / name) == digest

    def drop(self, name: str, *, lost: bool = False) -> None:
        """Delete `name`, so that it can be made anew; `lost` says that it was damaged, so its note still counts."""
        if self.intended(name):
            self.manifest.append({"event": "drop", "unit": name, "lost": lost})
        inside(self.run, name).unlink(missing_ok=True)

    def intended(self, name: str) -> list[str]:
        """Hashes that `name` may have: of its last commit, and of writes that were begun since."""
        found: list[str] = []
        for record in self.manifest.records():
            if record.get("unit") == name:
                if record["event"] in ("commit", "drop"):
                    found = []
                if record["event"] != "drop":
                    found.append(record["files"][name])
        return found

    def _committed(self, name: str) -> str | None:
        record = self.manifest.units().get(name)
        return None if record is None else str(record["files"][name])


def _hash(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
