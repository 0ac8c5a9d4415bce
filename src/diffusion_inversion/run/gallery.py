"""The pictures of the report: real images beside what was made of them, or found for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..data.images import LabelledImages, resize
from ..invert.embeddings import Embeddings
from ..sample.synthetic import Row, SyntheticStore, read_rows
from .methods import method_of, store_of
from .reconstructions import Likeness, read_reconstructions
from .report import ReportImages

REPORT_VARIANTS, REPORT_CLASSES = 6, 8


def images_of_vectors(
    run: Path, train: LabelledImages, embeddings: Embeddings, likeness: Likeness | None
) -> ReportImages:
    """A few real images beside their reconstructions and variants, those that are least like their sources first."""
    store = SyntheticStore(run, embeddings.class_names)
    shown = min(REPORT_VARIANTS, store.variants())
    rows, drawn_again = read_reconstructions(run, embeddings)
    variants: dict[str, list[dict[str, Any]]] = {embeddings.ids[row]: [] for row in rows}
    for entry in sorted(store.rows(), key=lambda entry: int(entry["variant"])):
        if entry["source_id"] in variants and entry["variant"] < shown:
            variants[entry["source_id"]].append(entry)
    drawn = read_rows(store.folder, [entry for found in variants.values() for entry in found], embeddings.class_names)
    row_of = {image_id: row for row, image_id in enumerate(train.ids)}
    real = train.subset([row_of[embeddings.ids[row]] for row in rows]).resized(drawn.size)
    return ReportImages(
        real=real.images,
        reconstruction=resize(drawn_again, drawn.size),
        variants=drawn.images.unflatten(0, (len(rows), shown)),
        labels=embeddings.labels[rows],
        distances=None if likeness is None else tuple(likeness.distances[embeddings.ids[row]] for row in rows),
    )


def images_of_classes(run: Path, train: LabelledImages) -> ReportImages:
    """A real image of each of the first classes beside images of its class: those of this image first, by variant."""
    store = store_of(run, train.class_names)
    by_class: dict[str, list[Row]] = {}
    for entry in sorted(store.rows(), key=lambda entry: (entry["variant"], entry["file_name"])):
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
    drawn = read_rows(store.folder, [entry for found in chosen for entry in found], store.class_names)
    real = train.subset(rows).resized(drawn.size)
    variants = torch.full((len(rows), REPORT_VARIANTS, *real.images.shape[1:]), 255, dtype=torch.uint8)
    starts = [sum(map(len, chosen[:place])) for place in range(len(chosen))]
    for place, (start, found) in enumerate(zip(starts, chosen, strict=True)):
        variants[place, : len(found)] = drawn.images[start : start + len(found)]
    return ReportImages(real.images, None, variants, real.labels, called=method_of(run).images)
