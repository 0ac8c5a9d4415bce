"""What was measured so far, piece by piece in one JSON file: a piece that is there for the same inputs is kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..engine.store import commit_bytes
from ..engine.untrusted import read_json

SCHEMA = 2


class Pieces:
    """The pieces in `path`, beside `described`: what this call measured, as JSON data for those who read the file.

    Pieces of earlier calls stay in the file, so that a generator or a data set more costs its own pieces alone.
    """

    def __init__(self, path: Path, described: dict[str, Any]) -> None:
        before = read_json(path) if path.is_file() else {}
        kept = before["pieces"] if before.get("schema") == SCHEMA else {}
        self.path = path
        self.content: dict[str, Any] = {"schema": SCHEMA, **described, "pieces": kept}

    def keep(
        self, key: str, made_from: dict[str, Any], compute: Callable[[], dict[str, Any]], files: Sequence[Path] = ()
    ) -> dict[str, Any]:
        """What `compute` gives, computed and committed unless it is there from `made_from` with all its `files`.

        Both are JSON data; a number that is not finite is an error.
        """
        inputs = json.loads(json.dumps(made_from))
        piece = self.content["pieces"].get(key)
        if piece is None or piece["made_from"] != inputs or not all(file.is_file() for file in files):
            print(f"measure {key}", file=sys.stderr, flush=True)
            started = time.monotonic()
            found = compute()
            piece = {"made_from": inputs, "seconds": round(time.monotonic() - started, 1), "found": found}
            self.content["pieces"][key] = piece
            self.save()
        result: dict[str, Any] = piece["found"]
        return result

    def save(self) -> None:
        """Commit the file. Raises DiskError."""
        commit_bytes(self.path, (json.dumps(self.content, indent=2, allow_nan=False) + "\n").encode())


def found_in(content: dict[str, Any], key: str) -> dict[str, Any] | None:
    """A piece of the file's content; None where it was not measured."""
    piece = content["pieces"].get(key)
    return None if piece is None else piece["found"]
