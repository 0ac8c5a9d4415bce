"""The store of stage 2: class folders of PNG and metadata.parquet, or Parquet files alone; `datasets` opens both."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.sampling import Storage
from ..data.images import LabelledImages
from ..data.naming import METADATA, class_folder, safe_name
from ..data.soft_labels import SoftLabels
from ..data.tables import class_label_metadata
from ..engine.ledger import Ledger
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Record
from ..engine.store import commit_bytes, commit_many
from ..engine.units import unit_name
from ..engine.untrusted import inside
from ..errors import DataError, UsageError
from . import packed
from .columns import (
    COLUMNS,
    EARLIER,
    PARENTS,
    Complete,
    DrawnUnit,
    check_labels,
    check_unit,
    in_record,
    parents,
    table_of,
)
from .png import decode_pngs, encode_png, read_png, read_pngs
from .xmp import is_generated, packet, with_xmp

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "synthetic"
SCHEMA = 2
NAMED = ("source_id", "variant", "file_name")  # columns that `asked_for` takes
Row = dict[str, Any]


def job_name(source_id: str, variant: int) -> str:
    """What identifies one synthetic image in the manifest."""
    return f"{source_id}#{variant}"


def parse_job(job: str) -> tuple[str, int]:
    """(source id, variant) of `job_name`."""
    source_id, _, variant = job.rpartition("#")
    return source_id, int(variant)


class SyntheticStore:
    """The synthetic images below RUN/synthetic, listed by their manifest, one record for each unit."""

    def __init__(self, run: Path, class_names: tuple[str, ...], folder: str = FOLDER) -> None:
        self.run, self.folder, self.class_names = run, run / folder, class_names
        self.manifest = Manifest(self.folder / MANIFEST, {"commit": DrawnUnit, "complete": Complete})

    @property
    def storage(self) -> Storage | None:
        """How the images that were committed are kept; None where none were."""
        first = next((record for record in self.manifest.records() if record["event"] == "commit"), None)
        return None if first is None else "parquet" if packed.is_packed(first) else "png"

    def table(self, *columns: str) -> pa.Table:
        """Metadata of every committed image, in the order of the commits: `COLUMNS` and the images' sha256, or some.

        Raises DataError for records, and Parquet files, that cannot be.
        """
        import pyarrow as pa

        if self.storage == "parquet" and self.manifest.units():
            return pa.concat_tables(self.tables(*columns), promote_options="permissive")
        return table_of(list(self.manifest.units().values()), columns, self.class_names, self.manifest.path)

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """What `table` has, of one unit after the other."""
        columns = tuple(dict.fromkeys(columns))
        for record in list(self.manifest.units().values()):
            if packed.is_packed(record):
                table = packed.columns_of(self.folder, record, columns or (*COLUMNS, "sha256"))
                check_labels(table, self.class_names, f"{self.folder}: unit {record['unit']}")
                yield table
            else:
                yield table_of([record], columns, self.class_names, self.manifest.path)

    def blanked(self) -> int:
        """Drawings that a safety checker refused, over all units."""
        return sum(record.get("blanked", 0) for record in self.manifest.units().values())

    def commit(
        self,
        images: Tensor,
        rows: list[Row],
        *,
        at_once: int | list[int] | None = None,
        blanked: int = 0,
        storage: Storage = "png",
    ) -> None:
        """Write a unit of images uint8 (B, 3, S, S) as PNG, then list them in the manifest as one record.

        Each PNG that a model drew says so (`xmp.packet`). With `storage` parquet they and their rows are one file.

        `at_once` is how many of them were computed at a time, or of each drawing in turn where that changed; None is
        all of them. `blanked` is how many drawings a safety checker refused.
        """
        files = {
            file_name(
                self.class_names[row["label"]], row["source_id"], row["variant"], self._folders.get(row["label"])
            ): _marked(encode_png(image), row)
            for image, row in zip(images, rows, strict=True)
        }
        ids = [job_name(row["source_id"], row["variant"]) for row in rows]
        unit = unit_name(ids)
        if storage == "parquet":
            held = {packed.unit_file(unit): packed.encode(files, rows, self.class_names)}
            columns = {}
        else:
            held, columns = files, in_record(rows)
        digests = commit_many({self.folder / name: data for name, data in held.items()})
        self.manifest.append(
            {
                "event": "commit",
                "unit": unit,
                "count": len(rows),
                "ids": ids,
                "files": {name: digests[self.folder / name] for name in held},
                **columns,
                **({} if at_once is None else {"at_once": at_once}),
                **({"blanked": blanked} if blanked else {}),
            }
        )

    @cached_property
    def _folders(self) -> dict[int, str]:
        """Folders that classes have here, by label: earlier versions renamed more of them than must be."""
        found: dict[int, str] = {}
        for record in (*self.manifest.dropped().values(), *self.manifest.units().values()):
            if packed.is_packed(record):
                continue
            check_unit(record, self.class_names, self.manifest.path)
            folders = [name.partition("/")[0] for name in record["files"]]
            found.update(zip(record["columns"]["label"], folders, strict=True))
        return found

    def finish(self, variants: int, counts: Mapping[str, int] | None = None, balance: str = "none") -> None:
        """Write metadata.parquet from the manifest, unless Parquet files hold the images; mark as complete.

        That is `variants` a source, or so many by `balance`.
        """
        if self.storage != "parquet":
            self._write_metadata()
        record: Record = {"event": "complete", "variants": variants, "count": self.count}
        if counts is not None:
            record["balance"] = balance
            record["counts"] = {source: count for source, count in counts.items() if count}
        if self.manifest.last("complete") != record:
            self.manifest.append(record)

    def _write_metadata(self) -> None:
        import pyarrow.parquet as pq

        table = self.table(*COLUMNS).sort_by("file_name")
        table = table.replace_schema_metadata(class_label_metadata(self.class_names))
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        Ledger(self.run).commit(f"{FOLDER}/{METADATA}", buffer.getvalue())

    @property
    def count(self) -> int:
        """Images that are there."""
        return sum(len(unit["ids"]) for unit in self.manifest.units().values())

    def variants(self) -> int:
        """Variants a source that the last finished call asked for. Raises UsageError where none has finished."""
        if not (variants := self.complete()):
            raise UsageError(f"{self.folder}: stage 2 is not finished. Run `dinv sample {self.folder.parent}` first.")
        return variants

    def complete(self) -> int:
        """As `variants`, 0 where no call has finished."""
        last = self.manifest.last("complete")
        return int(last["variants"]) if last is not None and last["count"] == self.count else 0

    def holds(self, counts: Mapping[str, int]) -> bool:
        """Whether the first variants of each source are there, so many of each."""
        there = self.manifest.jobs()
        return all(job_name(source, variant) in there for source, most in counts.items() for variant in range(most))

    def read(self, counts: Mapping[str, int] | None = None) -> LabelledImages:
        """The first variants of each source, so many of each; by default those that the last finished call asked for.

        The first of many are those that a call for fewer draws. Raises UsageError where there are not as many.
        """
        own = ("file_name", "sha256", "label")
        rows = self._drawn(counts, *own, "partner_label", "label_weight", "answers", "source_id", "confidence")
        found = self.images(*(rows[name].to_pylist() for name in own))
        sources, judged = rows["source_id"].to_pylist(), rows["confidence"].to_pylist()
        confidence = None if None in judged else torch.tensor(judged, dtype=torch.float32)
        return replace(found, soft=soft_labels(rows), source_ids=tuple(sources), confidence=confidence)

    def images(self, names: Sequence[str], hashes: Sequence[str], labels: Sequence[int]) -> LabelledImages:
        """The images of these names, each checked against its sha256 hex, in this order. Raises DataError."""
        if self.storage != "parquet":
            return read_images(self.folder, self.class_names, names, hashes, labels)
        place_of = {name: place for place, name in enumerate(names)}

        def part(record: Record) -> Iterator[tuple[int, Path, bytes]]:
            for place, name, data in packed.pngs_of(self.folder, record, place_of):
                yield place, self.folder / name, data

        parts = [partial(part, record) for record in self.manifest.units().values()]
        pixels = decode_pngs(parts, hashes, f"`dinv repair {self.run}` draws it again.")
        return _labelled(pixels, self.class_names, names, hashes, labels)

    def pngs(self, names: Sequence[str], hashes: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """(place, PNG bytes) of the images of these names: in this order, of Parquet files in theirs, by their names.

        Each is checked against its sha256 hex. Raises DataError.
        """
        remedy = f"`dinv repair {self.run}` draws it again."
        place_of = {name: place for place, name in enumerate(names)}
        units = sorted(self.manifest.units().values(), key=lambda record: str(record["unit"]))
        if self.storage == "parquet":
            found = (one for record in units for one in packed.pngs_of(self.folder, record, place_of))
        else:
            found = ((place, name, read_png(self.folder, name, remedy)) for name, place in place_of.items())
        for place, name, data in found:
            if hashlib.sha256(data).hexdigest() != hashes[place]:
                raise DataError(f"{self.folder / name}: changed since it was written. {remedy}")
            yield place, data

    def size(self, names: Sequence[str]) -> int:
        """Bytes of the files that hold the images of these names. Raises DataError for one that is missing."""
        if self.storage == "parquet":
            names = [name for unit in self.manifest.units().values() for name in unit["files"]]
        try:
            return sum(inside(self.folder, name).stat().st_size for name in names)
        except FileNotFoundError as error:
            remedy = f"`dinv repair {self.run}` draws it again."
            raise DataError(f"{error.filename}: listed in the manifest but missing. {remedy}") from error

    def sources(self, counts: Mapping[str, int] | None = None) -> list[tuple[str, ...]]:
        """Ids of the real images, source and partners, that each image of `read` was made from, in its order."""
        rows = self._drawn(counts, *PARENTS, "file_name")
        return list(parents(*(rows[name].to_pylist() for name in PARENTS)))

    def _drawn(self, wanted: Mapping[str, int] | None, *columns: str) -> pa.Table:
        """Columns of the images of `read`, in its order; the file names are one of them."""
        if wanted is None:
            return self.asked_for(self.table(*columns, "source_id", "variant"))
        found = _first(self.table(*columns, "source_id", "variant"), wanted)
        if (lacking := sum(wanted.values()) - len(found)) > 0:
            raise UsageError(f"{self.folder}: lacks {lacking} of the images that are asked for. Draw them first.")
        return found

    def asked_for(self, rows: pa.Table) -> pa.Table:
        """Of rows with the columns `NAMED` those that the last finished call asked for, by name.

        Raises UsageError where none has finished.
        """
        variants = self.variants()
        counts = (self.manifest.last("complete") or {}).get("counts")
        if counts is not None:
            return _first(rows, counts)
        return rows.filter(rows["variant"].to_numpy() < variants).sort_by("file_name")

    def remove(self, files: Collection[str]) -> int:
        """Delete the images of these names, and their trace in the manifest; return how many there were."""
        records: list[Record] = []
        deleted: list[str] = []  # names of files
        gone, count = set(files), 0
        for record in list(self.manifest.units().values()):
            is_packed = packed.is_packed(record)
            if not is_packed:
                check_unit(record, self.class_names, self.manifest.path)
            names = self._names(record)
            keep = [name not in gone for name in names]
            count += len(names) - sum(keep)
            if all(keep):
                records.append(record)
                continue
            deleted += record["files"] if is_packed else (name for name in names if name in gone)
            if not any(keep):
                continue
            ids = list(compress(record["ids"], keep))
            changed: Record = {"unit": unit_name(ids), "ids": ids, "count": len(ids)}
            if is_packed:
                path = self.folder / packed.unit_file(changed["unit"])
                changed["files"] = {path.name: commit_bytes(path, packed.without(self.folder, record, gone))}
            else:
                changed["files"] = dict(compress(record["files"].items(), keep))
                changed["columns"] = {key: list(compress(each, keep)) for key, each in record["columns"].items()}
            records.append({**record, **changed})
        kept = [record for record in self.manifest.records() if record["event"] == "time"]
        if self.manifest.records():  # dropped units name their sources too
            self.manifest.rewrite([*records, *kept])
        for name in deleted:
            inside(self.folder, name).unlink(missing_ok=True)
        return count

    def _names(self, record: Record) -> list[str]:
        """Of the images of a unit."""
        if not packed.is_packed(record):
            return list(record["files"])
        names: list[str] = packed.columns_of(self.folder, record, ["file_name"])["file_name"].to_pylist()
        return names


def _marked(png: bytes, row: Row) -> bytes:
    """The PNG with what made it, where a model did: its hash, not its name, since folders move."""
    method = row.get("method", EARLIER["method"])
    return with_xmp(png, packet(method, generator_hash=row["generator_hash"])) if is_generated(method) else png


def read_synthetic(run: str | Path, class_names: tuple[str, ...]) -> LabelledImages:
    """The synthetic images (N, 3, S, S) of a run folder, uint8 RGB, at the side they were saved at.

    `class_names` gives the classes their numbers. A soft label comes along where a partner was of another class.

    Raises UsageError where stage 2 has not finished, DataError where a file is missing or changed.
    """
    return SyntheticStore(Path(run), class_names).read()


def _first(rows: pa.Table, counts: Mapping[str, int]) -> pa.Table:
    """The first variants of each source, so many of each, by name."""
    pairs = zip(rows["source_id"].to_pylist(), rows["variant"].to_pylist(), strict=True)
    return rows.filter(np.array([variant < counts.get(source, 0) for source, variant in pairs], bool)).sort_by(
        "file_name"
    )


def soft_labels(rows: pa.Table) -> SoftLabels | None:
    """What makes targets of the labels of these images; None where each has but one class."""
    weight = rows["label_weight"].to_numpy()
    if (weight == 1).all():
        return None
    second = torch.tensor(rows["partner_label"].to_pylist(), dtype=torch.int64)
    soft, answers = SoftLabels(second, torch.from_numpy(weight.astype(np.float32))), rows["answers"].to_pylist()
    if not any(answers):
        return soft
    width = max(len(one) for one in answers if one is not None)
    rest = [F.one_hot(k, width).tolist() if one is None else one for k, one in zip(second, answers, strict=True)]
    return replace(soft, answers=torch.tensor(rest, dtype=torch.float32))


def refused_drawings(run: Path) -> int:
    """Drawings of a run that a safety checker refused; others were drawn in their place."""
    return SyntheticStore(run, ()).blanked()


def read_images(
    folder: Path, class_names: tuple[str, ...], names: Sequence[str], hashes: Sequence[str], labels: Sequence[int]
) -> LabelledImages:
    """Read the PNG files of these names below `folder`, each checked against the sha256 hex it was committed with."""
    pixels = read_pngs(folder, names, hashes, f"`dinv repair {folder.parent}` draws it again.")
    return _labelled(pixels, class_names, names, hashes, labels)


def _labelled(
    pixels: Tensor, class_names: tuple[str, ...], names: Sequence[str], hashes: Sequence[str], labels: Sequence[int]
) -> LabelledImages:
    return LabelledImages(
        name=FOLDER,
        ids=tuple(names),
        hashes=tuple(hashes),
        labels=torch.tensor(labels, dtype=torch.int64),
        class_names=class_names,
        images=pixels,
        native_size=pixels.shape[-1],
    )


def file_name(class_name: str, source_id: str, variant: int, folder: str | None = None) -> str:
    """A path `class/stem-hash-vNNN.png`; the hash keeps sources of one stem apart. Default folder: `class_folder`."""
    stem, digest = safe_name(Path(source_id).stem), hashlib.sha256(source_id.encode()).hexdigest()[:8]
    return f"{class_folder(class_name) if folder is None else folder}/{stem}-{digest}-v{variant:03d}.png"
