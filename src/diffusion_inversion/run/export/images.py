"""The synthetic images of a run, one at a time, with what is known of each, as they leave it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config.commands import SourceIds
from ...engine.untrusted import inside
from ...errors import DataError
from ...sample.synthetic import COLUMNS
from ...sample.xmp import is_generated, packet, with_xmp
from ..fidelity.copies_record import without_copies
from ..gathered import grown_rows
from ..images import read_record
from ..layout import GROWN, REDRAWN
from ..methods import images_store
from .source_ids import named_as

if TYPE_CHECKING:
    import pyarrow as pa

Signer = Callable[[bytes], bytes]  # a PNG => the same one, signed


@dataclass(frozen=True)
class SyntheticImage:
    """One image: its name `class/stem.png` outside the run, PNG bytes, label, and provenance by column."""

    name: str
    png: bytes
    label: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class SyntheticImages:
    """All synthetic images of a run, by name; `table` has their columns and the sha256 that each was written with.

    rights: the licence that each image names, "" for its own, where it has one.
    sign: makes of a PNG a signed one.
    """

    run: Path
    folder: Path
    class_names: tuple[str, ...]
    table: pa.Table
    again: frozenset[str] = frozenset()  # paths of those that were drawn again, in a folder of their own
    grown: frozenset[str] = frozenset()  # of those that `dinv grow` added, in another
    rights: str = ""
    sign: Signer | None = None

    @classmethod
    def of(
        cls,
        run: Path,
        source_ids: SourceIds = "plain",
        rights: str = "",
        sign: Signer | None = None,
    ) -> SyntheticImages:
        """Those of a run folder, grown ones too; where copies were drawn again without these (`without_copies`).

        Raises UsageError where stage 2 has not finished, or nobody looked for copies in what was drawn since.
        """
        import pyarrow as pa

        record = read_record(run)
        store = images_store(run, () if record is None else tuple(record["class_names"]))
        table, more = store.asked_for(store.table()), grown_rows(run, store.class_names)
        grown = frozenset[str](() if more is None else more["file_name"].to_pylist())
        if more is not None:
            table = pa.concat_tables([table, more], promote_options="permissive").sort_by("file_name")
        table, again = without_copies(run, store, table, grown)
        known = [name for name in table.column_names if table[name].null_count < len(table)]
        named = named_as(table.select(known), run, source_ids)
        return cls(run, store.folder, store.class_names, named, again, grown, rights, sign)

    @property
    def size(self) -> int:
        """Bytes of all files. Raises DataError for one that is missing."""
        return sum(self._path(name).stat().st_size for name in self.table["path"].to_pylist())

    @property
    def metadata(self) -> pa.Table:
        """Name, label and provenance of every image, in the order of `__iter__`."""
        return self.table.select([name for name in COLUMNS if name in self.table.column_names])

    @property
    def drawn(self) -> bool:
        """Whether a model drew all of them; else some are photographs of a pool."""
        return all(map(is_generated, self.table["method"].unique().to_pylist()))

    def some(self, places: Iterable[int]) -> Iterator[tuple[int, SyntheticImage]]:
        """Those of some rows of the table, each with its row, unsigned."""
        rows = sorted(places)
        return zip(rows, replace(self, table=self.table.take(rows), sign=None), strict=True)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[SyntheticImage]:
        """Each image, checked against the hash it was written with. Raises DataError."""
        for batch in self.table.to_batches(max_chunksize=1000):
            for row in batch.to_pylist():
                path, name, digest, label = (row.pop(key) for key in ("path", "file_name", "sha256", "label"))
                png = self._path(path).read_bytes()
                if hashlib.sha256(png).hexdigest() != digest:
                    raise DataError(f"{self.folder / path}: changed since it was written. {self._remedy}")
                png = with_xmp(png, self._said(row))
                yield SyntheticImage(name, png if self.sign is None else self.sign(png), label, row)

    def _said(self, row: dict[str, Any]) -> bytes:
        """What the file of an image says of itself."""
        made_from = [row.get("pool_id"), row.get("source_id"), row.get("partner_id"), *(row.get("further_ids") or ())]
        return packet(
            row["method"],
            generator=row["generator"],
            generator_hash=row["generator_hash"],
            sources=list(dict.fromkeys(one for one in made_from if one)),
            rights=row.get("licence") or self.rights,
        )

    def _path(self, name: str) -> Path:
        folder = self.run / REDRAWN if name in self.again else self.run / GROWN if name in self.grown else self.folder
        path = inside(folder, name)
        if not path.is_file():
            raise DataError(f"{path}: listed in the manifest but missing. {self._remedy}")
        return path

    @property
    def _remedy(self) -> str:
        return f"`dinv repair {self.run}` draws it again."
