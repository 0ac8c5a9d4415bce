"""Images of several stores of a run as one set: generations of a queue, and what was grown beside what was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.images import LabelledImages
from ..data.soft_labels import SoftLabels
from ..engine.ledger import Ledger
from ..errors import UsageError
from ..sample.columns import PARENTS, parents
from ..sample.synthetic import SyntheticStore, job_name, soft_labels
from .layout import GROWN, GROWTH_FILE

if TYPE_CHECKING:
    import pyarrow as pa


def read_rows(store: SyntheticStore, variant: int | None = None) -> LabelledImages:
    """The images of a store, or those of one variant, in the order of their files."""
    rows = _rows(store)
    if variant is not None:
        rows = rows.filter(rows["variant"].to_numpy() == variant)
    return read_table(store, rows)


def read_table(store: SyntheticStore, rows: pa.Table) -> LabelledImages:
    """The images of these rows of a store's table, in their order."""
    files = (rows[key].to_pylist() for key in ("file_name", "sha256", "label"))
    found = store.images(*files)
    return replace(found, soft=soft_labels(rows), source_ids=tuple(rows["source_id"].to_pylist()))


def _rows(store: SyntheticStore) -> pa.Table:
    own = ("file_name", "sha256", "label", "variant", "partner_label", "label_weight", "answers")
    return store.table(*own, *PARENTS).sort_by("file_name")


def _jobs(rows: pa.Table) -> list[str]:
    return [job_name(*job) for job in zip(*(rows[key].to_pylist() for key in ("source_id", "variant")), strict=True)]


def job_of(store: SyntheticStore) -> dict[str, str]:
    """The job of each image of a store, by file name."""
    rows = store.table("file_name", "source_id", "variant")
    return dict(zip(rows["file_name"].to_pylist(), _jobs(rows), strict=True))


def joined(parts: Sequence[LabelledImages]) -> LabelledImages:
    """One set after the other."""
    first, soft = parts[0], None
    if len(parts) == 1:
        return first
    if any(part.soft is not None for part in parts):
        soft = SoftLabels.cat([part.soft or SoftLabels.hard(part.labels) for part in parts])
    return replace(
        first,
        ids=tuple(name for part in parts for name in part.ids),
        hashes=tuple(one for part in parts for one in part.hashes),
        labels=torch.cat([part.labels for part in parts]),
        images=torch.cat([part.images for part in parts]),
        soft=soft,
        source_ids=tuple(source for part in parts for source in part.source_ids),
        confidence=None,
    )


def is_grown(run: Path) -> bool:
    """Whether images were grown here."""
    return bool(SyntheticStore(run, (), GROWN).manifest.units())


def has_grown(run: Path) -> bool:
    """Whether images were grown here, or chosen to be: a killed call may have drawn none of them yet."""
    return is_grown(run) or bool((Ledger(run).read_json(GROWTH_FILE) or {"rounds": []})["rounds"])


def grown(run: Path, class_names: tuple[str, ...]) -> tuple[LabelledImages, list[tuple[str, ...]]] | None:
    """What was grown, and for each image the ids of those that it was made from; None where nothing was.

    As `grown_rows`.
    """
    rows = grown_rows(run, class_names)
    if rows is None:
        return None
    images = read_table(SyntheticStore(run, class_names, GROWN), rows)
    return (
        replace(images, ids=tuple(f"{GROWN}/{name}" for name in images.ids)),
        list(parents(*(rows[name].to_pylist() for name in PARENTS))),
    )


def grown_rows(run: Path, class_names: tuple[str, ...]) -> pa.Table | None:
    """What was grown, as `SyntheticStore.table` has it, in the order of its files; None where nothing was.

    What stage 2 was asked for since is among its images, and not here. Raises UsageError where a round is not finished.
    """
    store = SyntheticStore(run, class_names, GROWN)
    kept = Ledger(run).read_json(GROWTH_FILE)
    wanted = {job for one in (kept or {"rounds": []})["rounds"] for job in one["chosen"]}
    there = store.manifest.jobs()
    if not wanted.issubset(there):
        raise UsageError(f"{run}: `dinv grow` was cut short here. Run the same command again first.")
    if not there:
        return None
    first = SyntheticStore(run, class_names)
    drawn = {*_jobs(first.asked_for(first.table("file_name", "source_id", "variant")))}
    rows = store.table().sort_by("file_name")
    rows = rows.filter([job not in drawn for job in _jobs(rows)])
    return rows if len(rows) else None
