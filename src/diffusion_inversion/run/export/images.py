"""The synthetic images of a run, one at a time, with what is known of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.untrusted import inside
from ...errors import DataError
from ...sample.synthetic import COLUMNS
from ..images import read_record
from ..methods import images_store

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class SyntheticImage:
    """One image: its name `class/stem.png` in the run, PNG bytes, label, and provenance by column."""

    name: str
    png: bytes
    label: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class SyntheticImages:
    """All synthetic images of a run, by name; `table` has their columns and the sha256 that each was written with."""

    run: Path
    folder: Path
    class_names: tuple[str, ...]
    table: pa.Table

    @classmethod
    def of(cls, run: Path) -> SyntheticImages:
        """Those of a run folder. Raises UsageError where stage 2 has not finished."""
        record = read_record(run)
        store = images_store(run, () if record is None else tuple(record["class_names"]))
        table = store.asked_for(store.table())
        known = [name for name in table.column_names if table[name].null_count < len(table)]
        return cls(run, store.folder, store.class_names, table.select(known))

    @property
    def size(self) -> int:
        """Bytes of all files. Raises DataError for one that is missing."""
        return sum(self._path(name).stat().st_size for name in self.table["file_name"].to_pylist())

    @property
    def metadata(self) -> pa.Table:
        """Name, label and provenance of every image, in the order of `__iter__`."""
        return self.table.select([name for name in COLUMNS if name in self.table.column_names])

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[SyntheticImage]:
        """Each image, checked against the hash it was written with. Raises DataError."""
        for batch in self.table.to_batches(max_chunksize=1000):
            for row in batch.to_pylist():
                name, digest, label = row.pop("file_name"), row.pop("sha256"), row.pop("label")
                png = self._path(name).read_bytes()
                if hashlib.sha256(png).hexdigest() != digest:
                    raise DataError(f"{self.folder / name}: changed since it was written. {self._remedy}")
                yield SyntheticImage(name, png, label, row)

    def _path(self, name: str) -> Path:
        path = inside(self.folder, name)
        if not path.is_file():
            raise DataError(f"{path}: listed in the manifest but missing. {self._remedy}")
        return path

    @property
    def _remedy(self) -> str:
        return f"`dinv repair {self.run}` draws it again."
