"""COCO's JSON without boxes: one annotation an image, whose category is the image's class."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .images import SyntheticImages


def write(images: SyntheticImages, folder: Path, advance: Callable[[int], None]) -> None:
    """Write images/<id>.png and annotations.json. Ids begin at 1, as COCO's do: category = label + 1."""
    from PIL import Image

    (folder / "images").mkdir()
    listed: list[dict[str, Any]] = []
    annotations = []
    for number, image in enumerate(images, start=1):
        name = f"images/{number:08d}.png"
        (folder / name).write_bytes(image.png)
        width, height = Image.open(io.BytesIO(image.png)).size
        listed.append({"id": number, "file_name": name, "width": width, "height": height, **image.provenance})
        annotations.append({"id": number, "image_id": number, "category_id": image.label + 1})
        advance(1)
    content = {
        "info": {"description": "Synthetic images of diffusion-inversion"},
        "licenses": [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(images.class_names)],
        "images": listed,
        "annotations": annotations,
    }
    (folder / "annotations.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
