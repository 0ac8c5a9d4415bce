"""The layout that FiftyOne calls FiftyOneImageClassificationDataset: data/<id>.png and labels.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .images import SyntheticImages


def write(images: SyntheticImages, folder: Path, advance: Callable[[int], None]) -> None:
    """Write the images, numbered, with `classes` and, by number, `labels`: places in `classes`."""
    (folder / "data").mkdir()
    labels = {}
    for row, image in enumerate(images):
        labels[f"{row:08d}"] = image.label
        (folder / "data" / f"{row:08d}.png").write_bytes(image.png)
        advance(1)
    content = {"classes": list(images.class_names), "labels": labels}
    (folder / "labels.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
