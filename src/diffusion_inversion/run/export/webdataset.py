"""Tar files in the order of WebDataset: of every image <key>.png, <key>.cls and <key>.json."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from .images import SyntheticImages

_IN_A_SHARD = 5000  # images


def write(images: SyntheticImages, folder: Path, advance: Callable[[int], None]) -> None:
    """Write synthetic-000000.tar and so on; the same images make the same bytes.

    Keys are numbers: WebDataset takes what follows the first dot of a name for its suffix.
    """
    found, key = iter(images), 0
    for shard in range((len(images) - 1) // _IN_A_SHARD + 1):
        with tarfile.open(folder / f"synthetic-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for image in islice(found, _IN_A_SHARD):
                about = {"file_name": image.name, "label": image.label, **image.provenance}
                parts = {"png": image.png, "cls": str(image.label).encode(), "json": json.dumps(about).encode()}
                for suffix, content in parts.items():
                    entry = tarfile.TarInfo(f"{key:08d}.{suffix}")
                    entry.size, entry.mode = len(content), 0o644
                    tar.addfile(entry, io.BytesIO(content))
                key += 1
                advance(1)
    (folder / "classes.json").write_text(json.dumps(list(images.class_names), ensure_ascii=False), encoding="utf-8")
