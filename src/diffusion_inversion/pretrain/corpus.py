"""The pre-training corpus: Hugging Face parquet files of small labelled images, held in memory."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

HELD_OUT = 5_000  # images of the corpus that no gradient sees, where no other file is given for validation
_HOLD_OUT_SEED = 1


@dataclass(frozen=True)
class Corpus:
    """Images (N, 3, S, S) uint8, labels (N,) int64 and the class names the prompts are made of."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def rows(self, index: Tensor) -> Corpus:
        """The images of these rows (indices or a mask), in this order."""
        return Corpus(self.images[index], self.labels[index], self.names)


def load_corpus(path: Path, size: int) -> Corpus:
    """Decode every image of a parquet file with columns `image` and `label`; all must be `size` px square.

    Class names come from the ClassLabel feature of the label. Raises DataError where the file, a column, the names, a
    label, an image or its size is not as expected.
    """
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the parquet file of the pre-training corpus.")
    try:
        table = pq.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error}). Give the corpus as parquet.") from error
    if not {"image", "label"} <= set(table.column_names):
        raise DataError(f"{path}: needs the columns image and label, has {table.column_names}.")
    names = _class_names(path, table.schema.metadata)
    labels = _labels(path, table["label"].to_pylist(), len(names))
    encoded = [_encoded(path, row, image) for row, image in enumerate(table["image"].to_pylist())]
    images = np.empty((len(encoded), size, size, 3), np.uint8)

    def decode(index: int) -> None:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(encoded[index])) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path}: image {index} cannot be decoded ({error}). Replace it in the file.") from error
        if pixels.shape[:2] != (size, size):
            raise DataError(
                f"{path}: image {index} is {pixels.shape[1]} x {pixels.shape[0]} px, expected {size} x {size}. "
                "Give a corpus of that size, or another --size."
            )
        images[index] = pixels

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(encoded)), chunksize=256))
    return Corpus(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, names)


def hold_out(corpus: Corpus, count: int = HELD_OUT) -> tuple[Corpus, Corpus]:
    """Part a corpus into training and held-out images, the same ones on every machine.

    Raises DataError where nothing would be left to train on.
    """
    total = len(corpus.labels)
    if total <= count:
        raise DataError(f"corpus: {total} images, {count} of them are held out. Give --validation or more images.")
    held = torch.zeros(total, dtype=torch.bool)
    held[torch.randperm(total, generator=torch.Generator().manual_seed(_HOLD_OUT_SEED))[:count]] = True
    return corpus.rows(~held), corpus.rows(held)


def _class_names(path: Path, metadata: dict[bytes, bytes] | None) -> tuple[str, ...]:
    """Those of the ClassLabel feature. Raises DataError where there are none, or one is no text."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise DataError(
            f"{path}: the labels have no class names, which the prompts are made of. Write the file with "
            "`datasets` and a ClassLabel feature for label."
        )
    return tuple(names)


def _labels(path: Path, given: Sequence[object], classes: int) -> Tensor:
    """(N,) int64, each the place of a class name. Raises DataError for the first that is none."""
    for row, label in enumerate(given):
        if label == -1 and type(label) is int:
            raise DataError(
                f"{path}: row {row} has the label -1, how the hub marks an image without one. Give a split that has "
                "labels, or leave such rows out."
            )
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(
                f"{path}: row {row} has the label {label!r}, which is none of the {classes} classes. Write the labels "
                f"as whole numbers from 0 to {classes - 1}, the places of the names."
            )
    return torch.tensor(given, dtype=torch.int64)


def _encoded(path: Path, row: int, image: object) -> bytes:
    """The bytes of an image's file. Raises DataError where the row holds none."""
    encoded = image.get("bytes") if isinstance(image, dict) else None
    if not isinstance(encoded, bytes):
        found = "null" if image is None else "a path alone" if isinstance(image, dict) else type(image).__name__
        raise DataError(
            f"{path}: row {row} has no image but {found}. Write the file with `datasets` and an Image feature for "
            "image, whose bytes it holds (embed_external_files=True)."
        )
    return encoded
