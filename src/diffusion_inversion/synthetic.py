"""The store of stage 2: class folders of PNG and metadata.parquet, which Hugging Face `datasets` opens."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .engine.store import Manifest, commit_bytes, commit_file
from .errors import DataError, UsageError
from .images import LabelledImages

FOLDER, COMPLETE = "synthetic", "complete.json"
SCHEMA = 1
COLUMNS = (
    "file_name", "class_name", "label", "source_id", "partner_id", "variant", "interpolation", "noise_strength",
    "guidance_scale", "inversion_step", "scheduler", "inference_steps", "seed", "generator", "generator_hash",
)  # fmt: skip


class SyntheticStore:
    """The synthetic images below RUN/synthetic."""

    def __init__(self, run: Path, class_names: tuple[str, ...]) -> None:
        self.folder, self.class_names = run / FOLDER, class_names
        self.manifest = Manifest(self.folder / "manifest.jsonl")

    def rows(self) -> list[dict[str, Any]]:
        """Metadata of every committed image."""
        return [row for record in self.manifest.records() for row in record["rows"]]

    def done(self) -> set[tuple[str, int]]:
        """(source id, variant) of every committed image."""
        return {(row["source_id"], row["variant"]) for row in self.rows()}

    def commit(self, images: Tensor, rows: list[dict[str, Any]]) -> None:
        """Write images uint8 (B, 3, S, S) as PNG, then list them in the manifest as one record."""
        named = []
        for image, row in zip(images, rows, strict=True):
            class_name = self.class_names[row["label"]]
            name = file_name(class_name, row["source_id"], row["variant"])
            digest = commit_bytes(self.folder / name, encode_png(image))
            named.append({"file_name": name, "class_name": class_name, "sha256": digest, **row})
        self.manifest.append({"count": len(named), "rows": named})

    def finish(self, variants: int) -> LabelledImages:
        """Write metadata.parquet from the manifest, mark `variants` a source as complete, and return those images."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = sorted(self.rows(), key=lambda row: row["file_name"])
        table = pa.Table.from_pylist([{column: row[column] for column in COLUMNS} for row in rows])
        commit_file(self.folder / "metadata.parquet", lambda path: pq.write_table(table, path))
        commit_bytes(self.folder / COMPLETE, (json.dumps({"variants": variants}) + "\n").encode())
        return self.read()

    def variants(self) -> int:
        """Variants a source that the last finished call asked for. Raises UsageError where none has finished."""
        path = self.folder / COMPLETE
        if not path.is_file():
            raise UsageError(f"{self.folder}: stage 2 is not finished. Run `dinv sample {self.folder.parent}` first.")
        return int(json.loads(path.read_text())["variants"])

    def read(self) -> LabelledImages:
        """The images of a finished stage 2, without further variants of an earlier, larger call."""
        variants = self.variants()
        rows = sorted((row for row in self.rows() if row["variant"] < variants), key=lambda row: str(row["file_name"]))
        return read_rows(self.folder, rows, self.class_names)


def read_synthetic(run: str | Path, class_names: tuple[str, ...]) -> LabelledImages:
    """The synthetic images of a run.

    Raises UsageError where stage 2 has not finished, DataError where a file is missing or changed.
    """
    return SyntheticStore(Path(run), class_names).read()


def read_rows(folder: Path, rows: Iterable[dict[str, Any]], class_names: tuple[str, ...]) -> LabelledImages:
    """Decode the PNG of each metadata row, checking it against the hash it was committed with."""
    from PIL import Image

    rows = list(rows)
    pixels = []
    for row in rows:
        path = folder / row["file_name"]
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{path}: listed in the manifest but missing. Delete {folder} and sample again.") from error
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise DataError(f"{path}: changed since it was written. Delete {folder} and sample again.")
        pixels.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(
        name=FOLDER,
        ids=tuple(row["file_name"] for row in rows),
        hashes=tuple(row["sha256"] for row in rows),
        labels=torch.tensor([row["label"] for row in rows]),
        class_names=class_names,
        images=images,
        native_size=images.shape[-1],
    )


def file_name(class_name: str, source_id: str, variant: int) -> str:
    """A portable path `class/stem-hash-vNNN.png`; the hash keeps sources of one stem apart."""
    stem = safe_name(Path(source_id).stem)
    return f"{safe_name(class_name)}/{stem}-{hashlib.sha256(source_id.encode()).hexdigest()[:8]}-v{variant:03d}.png"


def safe_name(text: str) -> str:
    """`text` as a file name: letters, digits, dot, dash and underscore, at most 60 characters, never hidden or empty.

    A name that had to be changed gets a hash of the original, so that two names never become one.
    """
    name = re.sub(r"[^\w.-]+", "_", text).strip("._")[:60]
    return name if name == text else f"{name or 'x'}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def encode_png(image: Tensor) -> bytes:
    """uint8 (3, H, W) => PNG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
