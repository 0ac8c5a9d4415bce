"""The pictures of the report: real images beside what was made of them, or found for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.images import LabelledImages, resize
from ..invert.embeddings import Embeddings
from ..sample.synthetic import Row, SyntheticStore
from .methods import images_store, method_of
from .nearest import nearest_real
from .reconstructions import Likeness, read_reconstructions
from .report import ReportImages

REPORT_VARIANTS, REPORT_CLASSES = 6, 8


def images_of_vectors(
    run: Path, train: LabelledImages, embeddings: Embeddings, likeness: Likeness | None
) -> ReportImages:
    """A few real images beside their reconstructions and variants, those that are least like their sources first."""
    store = SyntheticStore(run, embeddings.class_names)
    rows, drawn_again = read_reconstructions(run, embeddings)
    columns = ("file_name", "sha256", "label", "source_id", "variant")
    each = store.asked_for(store.table(*columns)).select(columns)
    drawn_from: dict[str, list[tuple[int, list[Any]]]] = {}
    for *file, source, variant in zip(*(column.to_pylist() for column in each.columns), strict=True):
        drawn_from.setdefault(source, []).append((variant, file))
    shown = [[file for _, file in sorted(drawn_from.get(embeddings.ids[row], []))[:REPORT_VARIANTS]] for row in rows]
    counts = [len(found) for found in shown]
    # Where counts are balanced sources may have none; any image says how large they are.
    files = [file for found in shown for file in found] or [[column[0].as_py() for column in each.columns[:3]]]
    drawn = store.images(*zip(*files, strict=True))
    sources = train.subset([train.row_of[embeddings.ids[row]] for row in rows])
    variants = drawn.images[: sum(counts)].split(counts)
    return ReportImages(
        real=sources.resized(drawn.size).images,
        reconstruction=resize(drawn_again, drawn.size),
        variants=variants,
        labels=embeddings.labels[rows],
        distances=None if likeness is None else tuple(likeness.distances[embeddings.ids[row]] for row in rows),
        ids=sources.ids,
        photographs=_larger(sources, drawn.size),
        nearest=nearest_real(variants, train),
    )


def images_of_classes(run: Path, train: LabelledImages) -> ReportImages:
    """A real image of each of the first classes beside images of its class: those of this image first, by variant."""
    store = images_store(run, train.class_names)
    by_class: dict[str, list[Row]] = {}
    columns = ("file_name", "sha256", "label", "class_name", "source_id", "variant")
    for entry in sorted(store.table(*columns).to_pylist(), key=lambda entry: (entry["variant"], entry["file_name"])):
        by_class.setdefault(entry["class_name"], []).append(entry)
    chosen: list[list[Row]] = []
    rows: list[int] = []
    for label in range(len(train.class_names)):
        found = by_class.get(train.class_names[label])
        members = (train.labels == label).nonzero()[:, 0].tolist()
        if found and members and len(rows) < REPORT_CLASSES:
            with_own = {entry["source_id"] for entry in found}
            row = next((row for row in members if train.ids[row] in with_own), members[0])
            rows.append(row)
            chosen.append(sorted(found, key=lambda entry: entry["source_id"] != train.ids[row])[:REPORT_VARIANTS])
    files = zip(*((e["file_name"], e["sha256"], e["label"]) for found in chosen for e in found), strict=True)
    drawn = store.images(*files)
    sources = train.subset(rows)
    return ReportImages(
        real=sources.resized(drawn.size).images,
        reconstruction=None,
        variants=(variants := drawn.images.split([len(found) for found in chosen])),
        labels=sources.labels,
        called=method_of(run).images,
        ids=sources.ids,
        photographs=_larger(sources, drawn.size),
        nearest=nearest_real(variants, train),
    )


def _larger(sources: LabelledImages, side: int) -> Tensor | None:
    """The sources at the side they were loaded at, where that is more than `side` px."""
    return sources.images if sources.size > side else None
