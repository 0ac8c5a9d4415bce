"""What the images of a run were made with, as far as licences go: DATA, the generator, what it learned, a pool."""

from __future__ import annotations

from pathlib import Path

from ..data.licences import Material
from ..sample.xmp import is_generated
from .images import data_name, read_record
from .methods import GAN, GAN_INVERSION, images_store

_MOST = 20  # licences of a pool that are named, the most frequent ones


def materials(run: Path) -> list[Material]:
    """Everything that the synthetic images of a run are of, each with its licence."""
    record = read_record(run)
    class_names = () if record is None else tuple(record["class_names"])
    found = []
    if record is not None:
        found.append(Material(f"the source {data_name(record['name'], record['source']['data'])}", record["licence"]))
    made = images_store(run, class_names).table("method", "generator", "generator_licence", "licence")
    counted = made.group_by(made.column_names).aggregate([([], "count_all")]).sort_by([("count_all", "descending")])
    for row in counted.to_pylist()[:_MOST]:
        if is_generated(row["method"]):
            found.append(Material(f"the generator {row['generator']}", row["generator_licence"], drawn_from=False))
            if row["method"] in (GAN, GAN_INVERSION):
                found.append(Material(f"the images that {row['generator']} learned", row["licence"]))
        else:
            found.append(Material(f"{row['count_all']} images of {row['generator']}", row["licence"]))
    return found
