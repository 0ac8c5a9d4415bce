"""The store of the downstream task: trained classifiers and what they were measured to do, listed by a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.training import TrainSettings
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Record
from .classifiers import Classifier, require_form

FOLDER = "classifiers"
SCHEMA = 3


class ClassifierStore:
    """The trained classifiers below RUN/classifiers, each a unit, with what they were measured to do."""

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self.manifest = Manifest(self.folder / MANIFEST)

    def commit(
        self, unit: str, arm: str, seed: int, classifier: Classifier, measured: dict[str, Any], seconds: float
    ) -> None:
        """Write a classifier durably, then list it with what was measured, which is JSON data, in the manifest."""
        name = f"{unit}.safetensors"
        self.manifest.append(
            {
                "event": "commit",
                "unit": unit,
                "ids": [unit],
                "count": 1,
                "files": {name: classifier.save(self.folder / name)},
                "arm": arm,
                "seed": seed,
                "seconds": seconds,
                **measured,
            }
        )

    def finish(self, settings: TrainSettings, own_size: bool = False) -> None:
        """Mark the stage as complete with these arms and seeds, and perhaps the arm of the images' own size."""
        record: Record = {"event": "complete", "arms": list(settings.arms), "seeds": list(settings.seeds)}
        if own_size:
            record["own_size"] = True
        if self.manifest.last("complete") != record:
            self.manifest.append(record)

    def record(self, unit: str) -> Record:
        """The results of a committed unit. Raises ConfigMismatchError where earlier versions built another network."""
        found = self.manifest.units()[unit]
        for name in found["files"]:
            require_form(self.folder / name)
        return found
