"""Parquet files as `datasets` writes them: an image column, labels that have names, provenance."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from math import ceil
from pathlib import Path

from ...data.tables import class_label_metadata
from .images import SyntheticImages

FOLDER = "data"
PATTERN = f"{FOLDER}/train-*.parquet"
_ROWS = 100  # of a row group: what a reader holds at once
_IN_A_FILE = 500_000_000  # bytes of images, as `datasets` parts them


def write(images: SyntheticImages, folder: Path, advance: Callable[[int], None]) -> None:
    """Write columns image (bytes and name), label and those of provenance, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = images.metadata.drop_columns(["file_name", "label"]).schema
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", cell), ("label", pa.int64()), *about],
        metadata=class_label_metadata(images.class_names, image="Image"),
    )
    (folder / FOLDER).mkdir()
    found, files = iter(images), min(ceil(images.size / _IN_A_FILE), len(images))
    for number in range(files):
        own = islice(found, len(images) * (number + 1) // files - len(images) * number // files)
        with pq.ParquetWriter(folder / FOLDER / f"train-{number:05d}-of-{files:05d}.parquet", schema) as writer:
            while rows := list(islice(own, _ROWS)):
                cells = [
                    {"image": {"bytes": row.png, "path": row.name}, "label": row.label, **row.provenance}
                    for row in rows
                ]
                writer.write_table(pa.Table.from_pylist(cells, schema))
                advance(len(rows))
