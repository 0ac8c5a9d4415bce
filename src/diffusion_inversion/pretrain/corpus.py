"""The pre-training corpus: a Hugging Face parquet file of small labelled images, held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError


@dataclass(frozen=True)
class Corpus:
    """Images (N, 3, S, S) uint8, labels (N,) int64 and the class names the prompts are made of."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]


def load_corpus(path: Path, size: int = 32) -> Corpus:
    """Decode every image of a parquet file with columns `image` and `label`; all must be `size` px square.

    Raises DataError where the file, a column or an image's size is not as expected.
    """
    from datasets import load_dataset

    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the parquet file of the pre-training corpus.")
    table = load_dataset("parquet", data_files=str(path), split="train")
    if not {"image", "label"} <= set(table.column_names):
        raise DataError(f"{path}: needs the columns image and label, has {table.column_names}.")
    images = np.empty((len(table), size, size, 3), np.uint8)
    labels = np.empty(len(table), np.int64)
    for index, row in enumerate(table):
        if row["image"].size != (size, size):
            raise DataError(f"{path}: image {index} is {row['image'].size}, expected {size} x {size}.")
        images[index] = np.asarray(row["image"].convert("RGB"))
        labels[index] = row["label"]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Corpus(pixels, torch.from_numpy(labels), tuple(table.features["label"].names))


def epoch_order(count: int, epoch: int, seed: int) -> Tensor:
    """A permutation of range(count) that depends on (seed, epoch) alone, so that a resumed run repeats it."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> Tensor:
    """The row numbers of training step `step`: epochs without replacement, remainders dropped.

    Raises DataError where there are fewer rows than a batch takes.
    """
    per_epoch = count // batch_size
    if per_epoch == 0:
        raise DataError(f"corpus: {count} images, fewer than a batch of {batch_size}. Give a larger corpus.")
    epoch, position = divmod(step, per_epoch)
    order = epoch_order(count, epoch, seed)
    return order[position * batch_size : (position + 1) * batch_size]
