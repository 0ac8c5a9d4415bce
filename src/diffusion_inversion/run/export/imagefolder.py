"""Class folders of PNG, as torchvision's ImageFolder reads them, and metadata.parquet, which `datasets` reads too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...data.naming import METADATA
from ...data.tables import class_label_metadata
from .images import SyntheticImages


def write(images: SyntheticImages, folder: Path, advance: Callable[[int], None]) -> None:
    """Write <class>/<name>.png of every image, and a table of their provenance."""
    import pyarrow.parquet as pq

    for image in images:
        path = folder / image.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image.png)
        advance(1)
    pq.write_table(images.metadata.replace_schema_metadata(class_label_metadata(images.class_names)), folder / METADATA)
