"""Learned vectors beside an export, where they were asked for: as private as the images, which they draw again."""

from __future__ import annotations

import json
from pathlib import Path

from ...config.commands import SourceIds
from ...invert.embeddings import Embeddings
from .source_ids import ids_as

FILE = "vectors.safetensors"
LEFT_OUT = "Learned vectors, which redraw their images, are not in it."
WRITTEN = f"{FILE} redraws the training images: keep it as you keep them. `dinv forget` does not reach it."


def write(learned: Embeddings | None, folder: Path, run: Path, source_ids: SourceIds) -> None:
    """Write vectors.safetensors, `vectors` float32 (images, tokens, width), `labels`, what names them; or nothing."""
    from safetensors.torch import save_file

    if learned is None:
        return
    about = {
        "ids": ids_as(learned.ids, run, source_ids),
        "class_names": learned.class_names,
        "generator_hash": learned.generator_hash,
        "resolution": learned.resolution,
        "note": WRITTEN,
    }
    tensors = {"vectors": learned.at().contiguous(), "labels": learned.labels}
    save_file(tensors, folder / FILE, metadata={"embeddings": json.dumps(about)})
