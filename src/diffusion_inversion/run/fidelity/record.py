"""What run.json and the report have of label fidelity: shares by class and by source, and the worst as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import torch
from torch import Tensor

from ...data.images import LabelledImages
from ...measure.copies.shares import share
from ...sample.synthetic import Row, SyntheticStore, job_name
from ..attributes import Attributes
from ..report.image_records import FailedRecord, FidelityRecord, FidelitySubgroupRecord
from .redraw import redrawn_store
from .stage import read_fidelity, recorded_filter

EXAMPLES, SOURCES = 8, 10  # that are shown, at most


def fidelity_record(
    run: Path, class_names: tuple[str, ...], attributes: Attributes | None = None
) -> FidelityRecord | None:
    """What was found of a run's synthetic images; None where nobody asked. Raises DataError for a damaged file.

    By subgroup too, where an attribute says something of every source.
    """
    found = read_fidelity(run)
    if found is None:
        return None
    rows = _rows(SyntheticStore(run, class_names))
    again = _again(run, class_names)
    judged = [row for row, asked in zip(rows, found.judged, strict=True) if asked]
    failed = [place for place, bad in enumerate(found.failed) if bad]
    left = [place for place in failed if again.get(_job(rows[place]), {"failed": True})["failed"]]
    by_class, by_source = (Counter(row[key] for row in judged) for key in ("label", "source_id"))
    of_class, of_source = (Counter(rows[place][key] for place in failed) for key in ("label", "source_id"))
    of_all, of_left = Counter(row["label"] for row in rows), Counter(rows[place]["label"] for place in left)
    names = {row["source_id"]: class_names[row["label"]] for row in rows}
    sources = sorted(of_source, key=lambda name: (-of_source[name] / by_source[name], -of_source[name], name))
    worst = sorted(failed, key=lambda place: (found.confidence[place] - found.rival_confidence[place], place))
    record: FidelityRecord = {
        "filter": recorded_filter(run).filter,
        "images": len(rows),
        "judged": len(judged),
        "failed": len(failed),
        "drawn_again": sum(_job(rows[place]) in again for place in failed),
        "left": len(left),
        "unfit": [class_names[label] for label, count in by_class.items() if of_left[label] == count == of_all[label]],
        "judge": found.judge,
        "classes": [
            {"class_name": class_names[label], "judged": by_class[label], "failed": of_class[label]}
            for label in sorted(by_class)
        ],
        "sources": [
            {"file": name, "class_name": names[name], "judged": by_source[name], "failed": of_source[name]}
            for name in sources[:SOURCES]
        ],
        "examples": [
            {
                "file": rows[place]["file_name"],
                "source": rows[place]["source_id"],
                "class_name": class_names[rows[place]["label"]],
                "confidence": found.confidence[place],
                "shows": class_names[found.rival[place]],
                "rival_confidence": found.rival_confidence[place],
                "passed_again": None if _job(rows[place]) not in again else place not in left,
            }
            for place in worst[:EXAMPLES]
        ],
        "seconds": found.seconds,
    }
    if attributes is not None and attributes.of_train.keys() >= {row["source_id"] for row in judged}:
        bad = {rows[place]["file_name"] for place in failed}
        record["attribute"] = attributes.name
        record["subgroups"] = _subgroups(judged, bad, attributes.of_train)
    return record


def _subgroups(
    judged: Sequence[Row], failed: AbstractSet[str], value_of: Mapping[str, str]
) -> list[FidelitySubgroupRecord]:
    """How many of the images of sources with each value fail, with an interval that counts sources (`share`)."""
    found: list[FidelitySubgroupRecord] = []
    for value in sorted({value_of[row["source_id"]] for row in judged}):
        members = [row for row in judged if value_of[row["source_id"]] == value]
        number = {source: place for place, source in enumerate({row["source_id"]: None for row in members})}
        flags = torch.tensor([row["file_name"] in failed for row in members])
        part = share(flags, torch.tensor([number[row["source_id"]] for row in members]))
        found.append({"value": value, "judged": part.n, "failed": part.count, "low": part.low, "high": part.high})
    return found


def example_images(
    run: Path, train: LabelledImages, examples: Sequence[FailedRecord]
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """For each example its source, the image that failed, and what was drawn again, if so: uint8 (3, S, S) each."""
    store, later = SyntheticStore(run, train.class_names), redrawn_store(run, train.class_names)
    rows, again = {row["file_name"]: row for row in _rows(store)}, _again(run, train.class_names)
    found: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for example in examples:
        row = rows[example["file"]]
        image = _read(store, row)
        real = train.subset([train.row_of[example["source"]]]).resized(image.shape[-1]).images[0]
        new = again.get(_job(row))
        found.append((real, image, None if new is None else _read(later, new)))
    return found


def _rows(store: SyntheticStore) -> list[Row]:
    """The images of a store as `read` has them, in its order."""
    rows: list[Row] = store.asked_for(store.table("file_name", "sha256", "label", "source_id", "variant")).to_pylist()
    return rows


def _again(run: Path, class_names: tuple[str, ...]) -> dict[str, Row]:
    """What was drawn again, by job."""
    store = redrawn_store(run, class_names)
    if not store.manifest.units():
        return {}
    table = store.table("file_name", "sha256", "label", "source_id", "variant", "failed", "copied")
    return {_job(row): row | {"failed": row["failed"] or row["copied"]} for row in table.to_pylist()}


def _job(row: Row) -> str:
    return job_name(row["source_id"], row["variant"])


def _read(store: SyntheticStore, row: Row) -> Tensor:
    return store.images([row["file_name"]], [row["sha256"]], [row["label"]]).images[0]
