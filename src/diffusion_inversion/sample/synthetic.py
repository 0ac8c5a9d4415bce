"""The store of stage 2: class folders of PNG and metadata.parquet, which Hugging Face `datasets` opens."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from ..data.images import LabelledImages
from ..data.naming import METADATA, class_folder, safe_name
from ..data.soft_labels import SoftLabels
from ..data.tables import class_label_metadata
from ..engine.ledger import Ledger
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Record, Unit
from ..engine.store import commit_many
from ..engine.units import unit_name
from ..engine.untrusted import inside
from ..errors import DataError, UsageError
from .png import encode_png, read_pngs
from .xmp import is_generated, packet, with_xmp

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "synthetic"
SCHEMA = 2
COLUMNS = (
    "file_name", "class_name", "label", "source_id", "partner_id", "variant", "interpolation", "noise_strength",
    "guidance_scale", "inversion_step", "scheduler", "inference_steps", "seed", "generator", "generator_hash",
    "source_version", "partner_version", "partner_label", "label_weight", "interpolation_kind", "partner",
    "unconditional", "group_size", "guidance_interval", "eta", "resolution", "method", "pool_id", "licence",
    "clip", "clip_hash", "confidence", "answers", "further_ids", "further_versions", "mixture_weights",
    "shared_noise", "rival_weight", "rival_label", "generator_licence", "timesteps",
)  # fmt: skip
# The real images that one was made from, and the versions of their vectors; what `parents` takes.
PARENTS = ("source_id", "partner_id", "further_ids")
PARENT_VERSIONS = ("source_version", "partner_version", "further_versions")
# Columns that differ between the images of a unit; the others are stored once for the unit.
VARYING = (
    "source_id", "partner_id", "variant", "label", "guidance_scale", "inversion_step", "source_version",
    "partner_version", "partner_label", "label_weight", "pool_id", "licence", "confidence", "answers", "further_ids",
    "further_versions", "mixture_weights", "rival_label", "attempt", "failed", "copied", "noise_strength",
)  # fmt: skip
# What images have in the columns that records of earlier versions lack; their partner is of their own class.
EARLIER: dict[str, Any] = {
    "label_weight": 1.0, "interpolation_kind": "lerp", "partner": "same-class", "unconditional": "mean",
    "group_size": None, "guidance_interval": [0.0, 1.0], "eta": 0.0, "resolution": None,
    "method": "inversion", "pool_id": "", "licence": "", "clip": "", "clip_hash": "",
    "confidence": None, "answers": None, "further_ids": None, "further_versions": None, "mixture_weights": None,
    "shared_noise": 0.0, "rival_weight": 0.0, "rival_label": None, "copied": False, "audit": "",
    "generator_licence": "", "timesteps": None,
}  # fmt: skip
Row = dict[str, Any]


def job_name(source_id: str, variant: int) -> str:
    """What identifies one synthetic image in the manifest."""
    return f"{source_id}#{variant}"


def parents(
    sources: Sequence[str], partners: Sequence[str], further: Sequence[Sequence[str] | None]
) -> Iterator[tuple[str, ...]]:
    """For each image all that it was made from, the source first: ids of columns `PARENTS`, or their versions."""
    for source, partner, others in zip(sources, partners, further, strict=True):
        yield (source, partner, *(others or ()))


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
    confidence: NotRequired[list[float | None]]  # CLIP's, in the label
    answers: NotRequired[list[list[float] | None]]  # CLIP's, over all classes: what has the rest of label_weight
    further_ids: NotRequired[list[list[str] | None]]  # partners beside partner_id, of a mixture of several vectors
    further_versions: NotRequired[list[list[str] | None]]
    mixture_weights: NotRequired[list[list[float] | None]]  # in a mixture, of source, partner and the further ones
    rival_label: NotRequired[list[int | None]]  # the class that rival_weight is of
    attempt: NotRequired[list[int]]  # of what was drawn again: see `variants.plan_variant`
    noise_strength: NotRequired[list[float]]  # earlier versions had it in `shared`
    failed: NotRequired[list[bool]]  # of that: whether it still shows another class than its label
    copied: NotRequired[list[bool]]  # of that: whether it still copies a training image
    interpolation: NotRequired[list[float]]  # where it differs between images: of what was drawn again


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
    balance: NotRequired[str]  # of which stage 2 took the counts
    counts: NotRequired[dict[str, int]]  # of each source that has any, where they have not all `variants`


class SyntheticStore:
    """The synthetic images below RUN/synthetic, listed by their manifest, one record for each unit."""

    def __init__(self, run: Path, class_names: tuple[str, ...], folder: str = FOLDER) -> None:
        self.run, self.folder, self.class_names = run, run / folder, class_names
        self.manifest = Manifest(self.folder / MANIFEST, {"commit": DrawnUnit, "complete": Complete})

    def table(self, *columns: str) -> pa.Table:
        """Metadata of every committed image, in the order of the commits: `COLUMNS` and the files' sha256, or some.

        Raises DataError for records that cannot be.
        """
        import pyarrow as pa

        records = list(self.manifest.units().values())
        for record in records:
            self._check(record)
        found = {}
        for name in columns or (*COLUMNS, "sha256"):
            try:
                found[name] = pa.array([value for record in records for value in self._values(record, name)])
            except (pa.ArrowException, OverflowError, KeyError) as error:
                cause = f"{self.manifest.path}: {name} of the units: {error!r}"
                raise DataError(f"{cause}. Restore the file from a copy, or draw the images again.") from error
        return pa.table(found)

    def _check(self, record: Record) -> None:
        """Raise DataError for a unit that cannot be."""
        lengths = {len(record["files"]), len(record["ids"]), *map(len, record["columns"].values())}
        answers = [len(one) for one in record["columns"].get("answers", ()) if one is not None]
        labels = {*record["columns"]["label"], *record["columns"].get("partner_label", ())}
        labels |= {*record["columns"].get("rival_label", ())} - {None}
        weighed = all(0 <= weight <= 1 for weight in record["columns"].get("label_weight", ()))
        answered = set(answers) <= {len(self.class_names)}
        further = [record["columns"].get(name, ()) for name in ("further_ids", "further_versions")]
        ids, versions = ([len(one or ()) for one in column] for column in further)
        uneven, known = len(lengths) > 1 or ids != versions, labels <= set(range(len(self.class_names)))
        if uneven or not known or not weighed or not answered:
            raise DataError(
                f"{self.manifest.path}: unit {record['unit']}: lists of different lengths, an unknown label, a weight "
                "of a label outside 0..1, or answers over other classes"
            )

    def _values(self, record: Record, name: str) -> Collection[Any]:
        """A column of the images of a unit: where they have one value in common, that one so many times."""
        own, shared = record["columns"], EARLIER | record["shared"]
        match name:
            case "file_name":
                found = record["files"].keys()
            case "sha256":
                found = record["files"].values()
            case "class_name":
                found = [self.class_names[label] for label in own["label"]]
            case "partner_label":
                found = own.get(name, own["label"])
            case "method" if name not in record["shared"]:  # earlier versions did not say so of images from prompts
                named = zip(own["source_id"], own["label"], strict=True)
                from_prompt = [source.startswith(f"{self.class_names[label]}: ") for source, label in named]
                found = ["prompts" if one else shared[name] for one in from_prompt]
            case _:
                found = [shared[name]] * len(record["ids"]) if name not in own else own[name]
        return cast(Collection[Any], found)

    def blanked(self) -> int:
        """Drawings that a safety checker refused, over all units."""
        return sum(record.get("blanked", 0) for record in self.manifest.units().values())

    def commit(self, images: Tensor, rows: list[Row], *, at_once: int | None = None, blanked: int = 0) -> None:
        """Write a unit of images uint8 (B, 3, S, S) as PNG, then list them in the manifest as one record.

        Each PNG that a model drew says so (`xmp.packet`).

        `at_once` is how many of them were computed at a time, all of them by default; `blanked` how many drawings a
        safety checker refused.
        """
        files = {
            file_name(
                self.class_names[row["label"]], row["source_id"], row["variant"], self._folders.get(row["label"])
            ): _marked(encode_png(image), row)
            for image, row in zip(images, rows, strict=True)
        }
        digests = commit_many({self.folder / name: data for name, data in files.items()})
        ids = [job_name(row["source_id"], row["variant"]) for row in rows]
        own = [key for key in VARYING if any(row.get(key) is not None for row in rows)]
        if any(row.get("interpolation") != rows[0].get("interpolation") for row in rows):  # drawn again, some farther
            own.append("interpolation")
        self.manifest.append(
            {
                "event": "commit",
                "unit": unit_name(ids),
                "count": len(rows),
                "ids": ids,
                "files": {name: digests[self.folder / name] for name in files},
                "columns": {key: [row[key] for row in rows] for key in own},
                "shared": {key: value for key, value in rows[0].items() if key not in (*VARYING, *own)},
                **({"at_once": at_once} if at_once is not None and at_once < len(rows) else {}),
                **({"blanked": blanked} if blanked else {}),
            }
        )

    @cached_property
    def _folders(self) -> dict[int, str]:
        """Folders that classes have here, by label: earlier versions renamed more of them than must be."""
        found: dict[int, str] = {}
        for record in (*self.manifest.dropped().values(), *self.manifest.units().values()):
            self._check(record)
            folders = [name.partition("/")[0] for name in record["files"]]
            found.update(zip(record["columns"]["label"], folders, strict=True))
        return found

    def finish(self, variants: int, counts: Mapping[str, int] | None = None, balance: str = "none") -> None:
        """Write metadata.parquet from the manifest; mark `variants` a source, or so many by `balance`, as complete."""
        import pyarrow.parquet as pq

        table = self.table(*COLUMNS).sort_by("file_name")
        table = table.replace_schema_metadata(class_label_metadata(self.class_names))
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        Ledger(self.run).commit(f"{FOLDER}/{METADATA}", buffer.getvalue())
        record: Record = {"event": "complete", "variants": variants, "count": len(table)}
        if counts is not None:
            record["balance"] = balance
            record["counts"] = {source: count for source, count in counts.items() if count}
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

    def holds(self, counts: Mapping[str, int]) -> bool:
        """Whether the first variants of each source are there, so many of each."""
        there = {job for unit in self.manifest.units().values() for job in unit["ids"]}
        return all(job_name(source, variant) in there for source, most in counts.items() for variant in range(most))

    def read(self, counts: Mapping[str, int] | None = None) -> LabelledImages:
        """The first variants of each source, so many of each; by default those that the last finished call asked for.

        The first of many are those that a call for fewer draws. Raises UsageError where there are not as many.
        """
        own = ("file_name", "sha256", "label")
        rows = self._drawn(counts, *own, "partner_label", "label_weight", "answers", "source_id", "confidence")
        found = read_images(self.folder, self.class_names, *(rows[name].to_pylist() for name in own))
        sources, judged = rows["source_id"].to_pylist(), rows["confidence"].to_pylist()
        confidence = None if None in judged else torch.tensor(judged, dtype=torch.float32)
        return replace(found, soft=soft_labels(rows), source_ids=tuple(sources), confidence=confidence)

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
        """Of rows with source_id, variant and file_name those that the last finished call asked for, by name.

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
        deleted: list[str] = []
        gone = set(files)
        for record in self.manifest.units().values():
            self._check(record)
            deleted += [name for name in record["files"] if name in gone]
            keep = [name not in gone for name in record["files"]]
            if not any(keep):
                continue
            ids = list(compress(record["ids"], keep))
            columns = {key: list(compress(values, keep)) for key, values in record["columns"].items()}
            left = dict(compress(record["files"].items(), keep))
            changed = {"unit": unit_name(ids), "ids": ids, "count": len(ids), "columns": columns, "files": left}
            records.append({**record, **changed})
        kept = [record for record in self.manifest.records() if record["event"] == "time"]
        if self.manifest.records():  # dropped units name their sources too
            self.manifest.rewrite([*records, *kept])
        for name in deleted:
            inside(self.folder, name).unlink(missing_ok=True)
        return len(deleted)


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
    images = read_pngs(folder, names, hashes, f"`dinv repair {folder.parent}` draws it again.")
    return LabelledImages(
        name=FOLDER,
        ids=tuple(names),
        hashes=tuple(hashes),
        labels=torch.tensor(labels, dtype=torch.int64),
        class_names=class_names,
        images=images,
        native_size=images.shape[-1],
    )


def file_name(class_name: str, source_id: str, variant: int, folder: str | None = None) -> str:
    """A path `class/stem-hash-vNNN.png`; the hash keeps sources of one stem apart. Default folder: `class_folder`."""
    stem, digest = safe_name(Path(source_id).stem), hashlib.sha256(source_id.encode()).hexdigest()[:8]
    return f"{class_folder(class_name) if folder is None else folder}/{stem}-{digest}-v{variant:03d}.png"
