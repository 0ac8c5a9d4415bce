"""The store of few-shot trainings: one JSON file each, listed by a manifest, so that none is done twice."""

from __future__ import annotations

import hashlib
from pathlib import Path

from typing_extensions import TypedDict

from ...engine.manifest import NAME as MANIFEST
from ...engine.manifest import Manifest
from ...engine.store import commit_bytes
from ...engine.units import unit_name
from ...engine.untrusted import check_record, inside, parse_json
from ...errors import DataError

FOLDER = "few-shot"


class Answers(TypedDict):
    """What a training answered on the test images, in their order, and what it chose on folds of its shots."""

    predictions: list[int]
    alpha: float | None
    beta: float | None
    fold_accuracy: float | None
    synthetic_images: int
    seconds: float


class TrainingStore:
    """The trainings below OUT/few-shot."""

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER
        self.manifest = Manifest(self.folder / MANIFEST)

    def commit(self, job: str, answers: bytes) -> None:
        """Write the answers of a training durably, then list it."""
        unit = unit_name([job])
        name = f"{unit}.json"
        digest = commit_bytes(self.folder / name, answers)
        self.manifest.commit(unit, [job], {name: digest})

    def read(self, job: str) -> Answers:
        """What a committed training answered. Raises DataError where its file is gone or changed."""
        found = self.manifest.units().get(unit_name([job]))
        if found is None:
            raise DataError(f"{self.folder}: {job} is not there yet. Run the same command again.")
        (name,) = found["files"]
        path = inside(self.folder, name)
        if (content := _content(path)) is None or hashlib.sha256(content).hexdigest() != found["files"][name]:
            raise DataError(f"{path}: missing or changed since it was written. Run the same command again.")
        return check_record(parse_json(content, path), Answers, path)

    def drop_lost(self) -> None:
        """Take trainings whose file is gone or changed off the list, so that they are done again."""
        for unit, record in list(self.manifest.units().items()):
            for name, digest in record["files"].items():
                content = _content(inside(self.folder, name))
                if content is None or hashlib.sha256(content).hexdigest() != digest:
                    self.manifest.append({"event": "drop", "unit": unit})


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
