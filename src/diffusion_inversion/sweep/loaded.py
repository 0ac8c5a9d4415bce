"""The images of data sets, loaded once for the jobs that need them, and compared with those that a sweep began with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..config.settings import DataSettings
from ..data.datasets import Splits
from ..data.images import changed
from ..engine.ledger import Ledger
from ..errors import ConfigMismatchError
from ..invert.embeddings import EmbeddingStore
from ..run.images import load
from ..train.training import fingerprint

KEPT_BYTES = 1 << 29  # of images in memory, those of the last data set apart
Contents = dict[str, tuple[str, int]]  # content hash and label of images, by id


@dataclass(frozen=True)
class Trained:
    """What is known of the training images of a data set without their pixels."""

    images: Contents
    size: int  # px


@dataclass
class Loaded:
    """Images that are in memory, those of the last data sets."""

    _splits: dict[str, Splits] = field(default_factory=dict)
    _trained_on: dict[str, Trained] = field(default_factory=dict)  # of data sets that have left memory too

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
            self._trained_on[key] = Trained(found.train.contents, found.train.size)
        return self._splits[key]

    def trained_on(self, folder: Path, settings: DataSettings, begun_with: str) -> Trained:
        """What the training images of a data set are; they are not loaded again for it. Raises as `splits`."""
        key = json.dumps(settings.described())
        if key not in self._trained_on:
            self.splits(folder, settings, begun_with)
        return self._trained_on[key]


def is_learned(vectors: Path, trained: Trained) -> bool:
    """Whether stage 1 went through in this folder, and for these images."""
    store = EmbeddingStore(vectors)
    return store.is_complete() and store.images() == trained.images


def require_learned_from(vectors: Path, trained: Trained, name: str, folder: Path) -> None:
    """Raise ConfigMismatchError where vectors in the sweep's folder are of other images than these, called `name`.

    Images that are new would have vectors too, but what was measured of those that are there speaks of fewer.
    """
    store, images = EmbeddingStore(vectors), trained.images
    tried = store.images()
    more = len(images) - len(tried) if store.is_complete() else 0  # else it was stopped, and goes on
    if (differing := sum(1 for _ in changed(tried, images)) + max(more, 0)) > 0:
        raise ConfigMismatchError(
            f"{name}: {differing} of the {len(images)} training images are not those whose vectors {folder} has. "
            "Restore them, or give another --out."
        )
