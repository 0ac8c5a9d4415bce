"""One parquet file as `datasets` writes them: an image column, labels that have names, provenance."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from ...data.tables import class_label_metadata
from .images import SyntheticImages

FOLDER = "data"
FILE = f"{FOLDER}/train-00000-of-00001.parquet"  # where `load_dataset(folder)` looks for the split train
PATTERN = f"{FOLDER}/train-*.parquet"
_ROWS = 100  # of a row group: what a reader holds at once


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
    path = folder / FILE
    path.parent.mkdir()
    found = iter(images)
    with pq.ParquetWriter(path, schema) as writer:
        while rows := list(islice(found, _ROWS)):
            cells = [
                {"image": {"bytes": row.png, "path": row.name}, "label": row.label, **row.provenance} for row in rows
            ]
            writer.write_table(pa.Table.from_pylist(cells, schema))
            advance(len(rows))
