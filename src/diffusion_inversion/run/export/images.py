"""The synthetic images of a run, one at a time, with what is known of each, as they leave it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config.commands import SourceIds
from ...errors import UsageError
from ...sample.columns import COLUMNS, EARLIER
from ...sample.synthetic import SyntheticStore
from ...sample.xmp import is_generated, packet, with_xmp
from ..fidelity.copies_record import without_copies
from ..gathered import grown_rows
from ..images import read_record
from ..layout import GROWN, REDRAWN
from ..methods import ADOPTED, images_store
from .source_ids import named_as

if TYPE_CHECKING:
    import pyarrow as pa

_AT_ONCE = 64  # images in memory
_OFTEN_EMPTY = {name for name, value in EARLIER.items() if value == ""}  # columns of what most images have not
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

    rights: the licence that each image names that a model drew; a photograph names its own, where it has one.
    sign: makes of a PNG a signed one.
    """

    run: Path
    folder: Path
    class_names: tuple[str, ...]
    table: pa.Table
    again: frozenset[str] = frozenset()  # paths of those that were drawn again, in a folder of their own
    grown: frozenset[str] = frozenset()  # of those that `dinv grow` added, in another
    asked: int = 0  # of stage 2, with those that copied a training image
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

        Raises UsageError where stage 2 has not finished, nobody looked for copies in what was drawn since, or no image
        is left.
        """
        import pyarrow as pa

        record = read_record(run)
        store = images_store(run, () if record is None else tuple(record["class_names"]))
        table, more = store.asked_for(store.table()), grown_rows(run, store.class_names)
        asked = len(table)
        grown = frozenset[str](() if more is None else more["file_name"].to_pylist())
        if more is not None:
            table = pa.concat_tables([table, more], promote_options="permissive").sort_by("file_name")
        table, again = without_copies(run, store, table, grown)
        if not len(table):
            raise UsageError(
                f"{run}: nothing to export: no synthetic image is left that does not copy a training image. Draw "
                "farther from the vectors (--noise-strength, --interpolation), or accept copies (--copies report)."
            )
        known = table.select([name for name in table.column_names if _holds_anything(table, name)])
        named = named_as(known, run, source_ids)
        return cls(run, store.folder, store.class_names, named, again, grown, asked, rights, sign)

    @property
    def size(self) -> int:
        """Bytes of all files. Raises DataError for one that is missing."""
        return sum(store.size([name for _, name, _ in own]) for store, own in self._by_store())

    @property
    def metadata(self) -> pa.Table:
        """Name, label and provenance of every image, in the order of `__iter__`."""
        return self.table.select([name for name in COLUMNS if name in self.table.column_names])

    @property
    def drawn(self) -> bool:
        """Whether a model drew all of them; else some are photographs of a pool, or adopted."""
        return all(map(is_generated, self.table["method"].unique().to_pylist()))

    @property
    def adopted(self) -> bool:
        """Whether another program made them."""
        return ADOPTED in self.table["method"].unique().to_pylist()

    @property
    def how(self) -> str:
        """How they came to be, before "with" this program."""
        if self.adopted:
            return "made by another program and adopted"
        return "drawn by a generator" if self.drawn else "found in a pool of photographs"

    def some(self, places: Iterable[int]) -> Iterator[tuple[int, SyntheticImage]]:
        """Those of some rows of the table, each with its row, unsigned, in the order of `__iter__`."""
        rows = sorted(places)
        for place, image in replace(self, table=self.table.take(rows), sign=None)._each():
            yield rows[place], image

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[SyntheticImage]:
        """Each image, in the order of `SyntheticStore.pngs`, checked as there. Raises DataError."""
        for _, image in self._each():
            yield image

    def _each(self) -> Iterator[tuple[int, SyntheticImage]]:
        """Each with its row of the table."""
        found = heapq.merge(*(_placed(store, own) for store, own in self._by_store()))
        while some := list(islice(found, _AT_ONCE)):
            rows = self.table.take([place for place, _ in some]).to_pylist()
            for (place, png), row in zip(some, rows, strict=True):
                name, label = row["file_name"], row["label"]
                for key in ("path", "file_name", "sha256", "label"):
                    del row[key]
                png = with_xmp(png, self._said(row))
                yield place, SyntheticImage(name, png if self.sign is None else self.sign(png), label, row)

    def _by_store(self) -> list[tuple[SyntheticStore, list[tuple[int, str, str]]]]:
        """The stores that hold the images, each with (row, path, sha256) of those in it."""
        folders: dict[str, list[tuple[int, str, str]]] = {self.folder.name: [], REDRAWN: [], GROWN: []}
        each = zip(self.table["path"].to_pylist(), self.table["sha256"].to_pylist(), strict=True)
        for row, (path, digest) in enumerate(each):
            folder = REDRAWN if path in self.again else GROWN if path in self.grown else self.folder.name
            folders[folder].append((row, path, digest))
        return [(SyntheticStore(self.run, self.class_names, name), own) for name, own in folders.items() if own]

    def _said(self, row: dict[str, Any]) -> bytes:
        """What the file of an image says of itself."""
        made_from = [row.get("pool_id"), row.get("source_id"), row.get("partner_id"), *(row.get("further_ids") or ())]
        return packet(
            row["method"],
            generator=row["generator"],
            generator_hash=row["generator_hash"],
            sources=list(dict.fromkeys(one for one in made_from if one)),
            rights=self.rights if is_generated(row["method"]) else row.get("licence", ""),
        )


def _holds_anything(table: pa.Table, name: str) -> bool:
    if name in _OFTEN_EMPTY:
        return any(table[name].unique().to_pylist())
    return bool(table[name].null_count < len(table))


def _placed(store: SyntheticStore, own: Sequence[tuple[int, str, str]]) -> Iterator[tuple[int, bytes]]:
    """(row, PNG) of images of a store, given (row, path, sha256) of each."""
    for place, png in store.pngs([path for _, path, _ in own], [digest for *_, digest in own]):
        yield own[place][0], png
