"""The store of stage 2: class folders of PNG and metadata.parquet, which Hugging Face `datasets` opens."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from ..data.images import LabelledImages
from ..data.naming import class_folder, safe_name
from ..data.soft_labels import SoftLabels
from ..engine.ledger import Ledger
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Record, Unit
from ..engine.store import commit_many
from ..engine.units import unit_name
from ..engine.untrusted import inside
from ..errors import DataError, UsageError

FOLDER, METADATA = "synthetic", "metadata.parquet"
SCHEMA = 2
COLUMNS = (
    "file_name", "class_name", "label", "source_id", "partner_id", "variant", "interpolation", "noise_strength",
    "guidance_scale", "inversion_step", "scheduler", "inference_steps", "seed", "generator", "generator_hash",
    "source_version", "partner_version", "partner_label", "label_weight", "interpolation_kind", "partner",
    "unconditional", "group_size", "guidance_interval", "eta", "resolution", "method", "pool_id", "licence",
)  # fmt: skip
# Columns that differ between the images of a unit; the others are stored once for the unit.
VARYING = (
    "source_id", "partner_id", "variant", "label", "guidance_scale", "inversion_step", "source_version",
    "partner_version", "partner_label", "label_weight", "pool_id", "licence",
)  # fmt: skip
# What images have in the columns that records of earlier versions lack; their partner is of their own class.
EARLIER: dict[str, Any] = {
    "label_weight": 1.0, "interpolation_kind": "lerp", "partner": "same-class", "unconditional": "mean",
    "group_size": None, "guidance_interval": [0.0, 1.0], "eta": 0.0, "resolution": None,
    "method": "inversion", "pool_id": "", "licence": "",
}  # fmt: skip
Row = dict[str, Any]


def job_name(source_id: str, variant: int) -> str:
    """What identifies one synthetic image in the manifest."""
    return f"{source_id}#{variant}"


def parse_job(job: str) -> tuple[str, int]:
    """(source id, variant) of `job_name`."""
    source_id, _, variant = job.rpartition("#")
    return source_id, int(variant)


class Columns(TypedDict):
    """One value for each image of a unit; see `VARYING`."""

    source_id: list[str]
    partner_id: list[str]
    variant: list[int]
    label: list[int]
    guidance_scale: list[float]
    inversion_step: list[int]
    source_version: list[str]
    partner_version: list[str]
    partner_label: NotRequired[list[int]]  # not in the records of earlier versions
    label_weight: NotRequired[list[float]]  # of `label` in the target; partner_label has the rest
    pool_id: NotRequired[list[str]]  # of what was retrieved: which image of the pool it is
    licence: NotRequired[list[str]]


class DrawnUnit(Unit):
    """A commit record of stage 2."""

    columns: Columns
    blanked: NotRequired[int]  # drawings that a safety checker refused, of which none is here
    shared: dict[str, Any]  # what all images of the unit have in common, by column
    at_once: NotRequired[int]  # images computed at a time, where memory did not suffice for the unit


class Complete(TypedDict):
    """The record of a call that went through."""

    variants: int
    count: int


class SyntheticStore:
    """The synthetic images below RUN/synthetic, listed by their manifest, one record for each unit."""

    def __init__(self, run: Path, class_names: tuple[str, ...]) -> None:
        self.run, self.folder, self.class_names = run, run / FOLDER, class_names
        self.manifest = Manifest(self.folder / MANIFEST, {"commit": DrawnUnit, "complete": Complete})

    def rows(self) -> list[Row]:
        """Metadata of every committed image, its sha256 included."""
        return [row for record in self.manifest.units().values() for row in self._rows(record)]

    def _rows(self, record: Record) -> list[Row]:
        lengths = {len(record["files"]), len(record["ids"]), *map(len, record["columns"].values())}
        labels = {*record["columns"]["label"], *record["columns"].get("partner_label", ())}
        weighed = all(0 <= weight <= 1 for weight in record["columns"].get("label_weight", ()))
        if len(lengths) > 1 or not labels <= set(range(len(self.class_names))) or not weighed:
            raise DataError(
                f"{self.manifest.path}: unit {record['unit']}: lists of different lengths, an unknown label, or a "
                "weight of a label outside 0..1"
            )
        found = []
        for place, (name, digest) in enumerate(record["files"].items()):
            row = {key: values[place] for key, values in record["columns"].items()}
            class_name = self.class_names[row["label"]]
            known = {**EARLIER, "partner_label": row["label"], **row, **record["shared"]}
            if "method" not in record["shared"] and str(row["source_id"]).startswith(f"{class_name}: "):
                known["method"] = "prompts"  # a record of an earlier version, whose images of prompts did not say so
            found.append({"file_name": name, "class_name": class_name, "sha256": digest, **known})
        return found

    def blanked(self) -> int:
        """Drawings that a safety checker refused, over all units."""
        return sum(record.get("blanked", 0) for record in self.manifest.units().values())

    def commit(self, images: Tensor, rows: list[Row], *, at_once: int | None = None, blanked: int = 0) -> None:
        """Write a unit of images uint8 (B, 3, S, S) as PNG, then list them in the manifest as one record.

        `at_once` is how many of them were computed at a time, all of them by default; `blanked` how many drawings a
        safety checker refused.
        """
        files = {
            file_name(
                self.class_names[row["label"]], row["source_id"], row["variant"], self._folders.get(row["label"])
            ): encode_png(image)
            for image, row in zip(images, rows, strict=True)
        }
        digests = commit_many({self.folder / name: data for name, data in files.items()})
        ids = [job_name(row["source_id"], row["variant"]) for row in rows]
        self.manifest.append(
            {
                "event": "commit",
                "unit": unit_name(ids),
                "count": len(rows),
                "ids": ids,
                "files": {name: digests[self.folder / name] for name in files},
                "columns": {key: [row[key] for row in rows] for key in VARYING if key in rows[0]},
                "shared": {key: value for key, value in rows[0].items() if key not in VARYING},
                **({"at_once": at_once} if at_once is not None and at_once < len(rows) else {}),
                **({"blanked": blanked} if blanked else {}),
            }
        )

    @cached_property
    def _folders(self) -> dict[int, str]:
        """Folders that classes have here, by label: earlier versions renamed more of them than must be."""
        records = (*self.manifest.dropped().values(), *self.manifest.units().values())
        rows = [row for record in records for row in self._rows(record)]
        return {row["label"]: row["file_name"].partition("/")[0] for row in rows}

    def finish(self, variants: int) -> None:
        """Write metadata.parquet from the manifest and mark `variants` a source as complete."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = sorted(self.rows(), key=lambda row: row["file_name"])
        table = pa.Table.from_pylist([{column: row[column] for column in COLUMNS} for row in rows])
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        Ledger(self.run).commit(f"{FOLDER}/{METADATA}", buffer.getvalue())
        record = {"event": "complete", "variants": variants, "count": len(rows)}
        if self.manifest.last("complete") != record:
            self.manifest.append(record)

    def variants(self) -> int:
        """Variants a source that the last finished call asked for. Raises UsageError where none has finished."""
        if not (variants := self.complete()):
            raise UsageError(f"{self.folder}: stage 2 is not finished. Run `dinv sample {self.folder.parent}` first.")
        return variants

    def complete(self) -> int:
        """As `variants`, 0 where no call has finished."""
        last = self.manifest.last("complete")
        there = sum(len(unit["files"]) for unit in self.manifest.units().values())
        return int(last["variants"]) if last is not None and last["count"] == there else 0

    def read(self, variants: int | None = None) -> LabelledImages:
        """The first variants of every source, by default all that the last finished call asked for.

        The first of many are those that a call for fewer draws. Raises UsageError where there are not as many.
        """
        rows = self._drawn(variants)
        return replace(read_rows(self.folder, rows, self.class_names), soft=soft_labels(rows))

    def sources(self, variants: int | None = None) -> list[tuple[str, str]]:
        """Ids of the two real images, source and partner, that each image of `read` was made from, in its order."""
        return [(row["source_id"], row["partner_id"]) for row in self._drawn(variants)]

    def _drawn(self, wanted: int | None) -> list[Row]:
        finished = self.variants()
        variants = finished if wanted is None else wanted
        if variants > finished:
            raise UsageError(f"{self.folder}: holds {finished} variants of every source, not {variants}.")
        return sorted((row for row in self.rows() if row["variant"] < variants), key=lambda row: str(row["file_name"]))

    def remove(self, descends: Callable[[Row], bool]) -> int:
        """Delete the images for whose row `descends` is true, and their trace in the manifest; return how many."""
        records: list[Record] = []
        deleted: list[str] = []
        for record in self.manifest.units().values():
            rows = self._rows(record)
            keep = [not descends(row) for row in rows]
            deleted += [row["file_name"] for row, kept in zip(rows, keep, strict=True) if not kept]
            if not any(keep):
                continue
            ids = [job for job, kept in zip(record["ids"], keep, strict=True) if kept]
            columns = {
                key: [value for value, kept in zip(values, keep, strict=True) if kept]
                for key, values in record["columns"].items()
            }
            files = {row["file_name"]: row["sha256"] for row, kept in zip(rows, keep, strict=True) if kept}
            changed = {"unit": unit_name(ids), "ids": ids, "count": len(ids), "columns": columns, "files": files}
            records.append({**record, **changed})
        kept = [record for record in self.manifest.records() if record["event"] == "time"]
        if self.manifest.records():  # dropped units name their sources too
            self.manifest.rewrite([*records, *kept])
        for name in deleted:
            inside(self.folder, name).unlink(missing_ok=True)
        return len(deleted)


def read_synthetic(run: str | Path, class_names: tuple[str, ...]) -> LabelledImages:
    """The synthetic images of a run.

    Raises UsageError where stage 2 has not finished, DataError where a file is missing or changed.
    """
    return SyntheticStore(Path(run), class_names).read()


def soft_labels(rows: Sequence[Row]) -> SoftLabels | None:
    """What makes targets of the labels of these images; None where each has but one class."""
    if all(row["label_weight"] == 1 for row in rows):
        return None
    return SoftLabels(
        second=torch.tensor([row["partner_label"] for row in rows], dtype=torch.int64),
        weight=torch.tensor([row["label_weight"] for row in rows], dtype=torch.float32),
    )


def refused_drawings(run: Path) -> int:
    """Drawings of a run that a safety checker refused; others were drawn in their place."""
    return SyntheticStore(run, ()).blanked()


def read_rows(folder: Path, rows: Iterable[dict[str, Any]], class_names: tuple[str, ...]) -> LabelledImages:
    """Decode the PNG of each metadata row, checking it against the hash it was committed with."""
    from PIL import Image

    rows = list(rows)
    images = torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    for place, row in enumerate(rows):
        path = inside(folder, row["file_name"])
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: listed in the manifest but missing. `dinv repair {folder.parent}` draws it again."
            ) from error
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise DataError(f"{path}: changed since it was written. `dinv repair {folder.parent}` draws it again.")
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
        if place == 0:
            images = torch.empty(len(rows), *pixels.shape, dtype=torch.uint8)
        images[place] = pixels
    return LabelledImages(
        name=FOLDER,
        ids=tuple(row["file_name"] for row in rows),
        hashes=tuple(row["sha256"] for row in rows),
        labels=torch.tensor([row["label"] for row in rows]),
        class_names=class_names,
        images=images,
        native_size=images.shape[-1],
    )


def file_name(class_name: str, source_id: str, variant: int, folder: str | None = None) -> str:
    """A path `class/stem-hash-vNNN.png`; the hash keeps sources of one stem apart. Default folder: `class_folder`."""
    stem, digest = safe_name(Path(source_id).stem), hashlib.sha256(source_id.encode()).hexdigest()[:8]
    return f"{class_folder(class_name) if folder is None else folder}/{stem}-{digest}-v{variant:03d}.png"


def encode_png(image: Tensor) -> bytes:
    """uint8 (3, H, W) => PNG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
