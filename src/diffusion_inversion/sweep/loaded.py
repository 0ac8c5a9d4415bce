"""The images of data sets, loaded once for the jobs that need them, and compared with those that a sweep began with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..config.settings import DataSettings
from ..data.datasets import Splits
from ..engine.ledger import Ledger
from ..errors import ConfigMismatchError
from ..run.images import load
from ..train.training import fingerprint

KEPT_BYTES = 1 << 29  # of images in memory, those of the last data set apart


@dataclass
class Loaded:
    """Images that are in memory, those of the last data sets."""

    _splits: dict[str, Splits] = field(default_factory=dict)

    def splits(self, folder: Path, settings: DataSettings, begun_with: str) -> Splits:
        """The images of a data set. `begun_with`, below the sweep's folder, has their fingerprints if it was written.

        Raises ConfigMismatchError where they are not those that this sweep began with.
        """
        key = json.dumps(settings.described())
        if key not in self._splits:
            while sum(one.train.images.nbytes + one.test.images.nbytes for one in self._splits.values()) > KEPT_BYTES:
                self._splits.pop(next(iter(self._splits)))
            found = load(folder, settings, None)
            begun = Ledger(folder).read_json(begun_with)
            for part, images in (("train", found.train), ("test", found.test)):
                if begun is not None and begun[part] != fingerprint(images):
                    raise ConfigMismatchError(
                        f"{images.name}: the {part} images are not those that {folder} began with. Restore them, "
                        "or give another --out."
                    )
            self._splits[key] = found
        return self._splits[key]
