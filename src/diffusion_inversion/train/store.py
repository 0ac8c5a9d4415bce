"""The store of the downstream task: trained classifiers and what they were measured to do, listed by a manifest."""

from __future__ import annotations

from collections.abc import Mapping
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
        files = {name: classifier.save(self.folder / name)}
        self.manifest.commit(unit, [unit], files, arm=arm, seed=seed, seconds=seconds, **measured)

    def finish(self, settings: TrainSettings, data: Mapping[str, str], own_size: bool = False) -> None:
        """Mark the stage as complete with these arms and seeds, and perhaps the arm of the images' own size.

        data: the version of the images of each arm, as the names of its units end with it.
        """
        record: Record = {"event": "complete", "arms": list(settings.arms), "seeds": list(settings.seeds)}
        if own_size:
            record["own_size"] = True
        record["data"] = dict(data)
        if self.manifest.last("complete") != record or self._unfinished():
            self.manifest.append(record)

    def current(self, arm: str) -> dict[int, Record]:
        """The records of an arm by seed, of the images that training was last finished with.

        Where some were trained on others since and the rest was not, or where it is not on record (earlier versions),
        of the images of the last one.
        """
        units = {name: one for name, one in self.manifest.units().items() if one["arm"] == arm}
        later = [name for name in units if name in self._unfinished()]
        finished = (self.manifest.last("complete") or {}).get("data", {}).get(arm)
        versions = {name: name.rpartition("-")[2] for name in units}
        last = [versions[name] for name in later or units][-1:]
        version = finished if finished is not None and not later else "".join(last)
        return {one["seed"]: one for name, one in units.items() if versions[name] == version}

    def _unfinished(self) -> set[str]:
        """Units that were committed since training was last finished."""
        found: set[str] = set()
        for record in self.manifest.records():
            if record["event"] == "complete":
                found.clear()
            elif record["event"] == "commit":
                found.add(record["unit"])
        return found

    def record(self, unit: str) -> Record:
        """The results of a committed unit. Raises ConfigMismatchError where earlier versions built another network."""
        found = self.manifest.units()[unit]
        for name in found["files"]:
            require_form(self.folder / name)
        return found
