"""Labelled images in memory, and the sizes and ranges that they are brought to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .problems import Problem
from .soft_labels import SoftLabels


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """N square RGB images of one size in memory, with their labels and where they came from.

    An image that was not square was cropped to its central square and resized (antialiased bicubic).

    Attributes:
        name: What it is called in tables and messages.
        ids: Unique and stable: "cat/001.png" in a folder, else "train/000123".
        hashes: sha256 hex of the RGB pixels at original size and of that size, so they do not depend on `size`.
        labels: (N,) int64 in [0, len(class_names)).
        class_names: Names of the classes, in the order of their numbers.
        images: (N, 3, S, S) uint8 RGB.
        native_size: Shorter side in px of the images as stored, the smallest where they vary.
        problems: What was found about single files, short of an error.
        licence: As its source or `--licence` names it; "" where none is known.
        soft: A second class for each image, or a classifier's answers, where some have one; None: every label is hard.
        groups: What each image is of (a patient, a scene), where it was said: no split parts a group. Else empty.
        source_ids: Of images that were made from others, the id of each one's source; else empty.
        confidence: (N,) float32 in [0, 1]: a judge's in each label; None where not every image has one.

    Raises DataError where shapes, types, ids or labels do not fit together.
    """

    name: str
    ids: tuple[str, ...]
    hashes: tuple[str, ...]
    labels: Tensor
    class_names: tuple[str, ...]
    images: Tensor
    native_size: int
    problems: tuple[Problem, ...] = ()
    licence: str = ""
    soft: SoftLabels | None = None
    groups: tuple[str, ...] = ()
    source_ids: tuple[str, ...] = ()
    confidence: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.images.dtype != torch.uint8 or self.images.shape != (n, 3, self.size, self.size):
            raise DataError(
                f"{self.name}: images are {tuple(self.images.shape)} {self.images.dtype}; give ({n}, 3, S, S) uint8"
            )
        if len(self.hashes) != n or self.labels.shape != (n,) or self.labels.dtype != torch.int64:
            raise DataError(f"{self.name}: {n} ids need {n} hashes and ({n},) int64 labels")
        if len(self.groups) not in (0, n):
            raise DataError(f"{self.name}: {n} ids need {n} groups, or none")
        if len(set(self.ids)) != n:
            raise DataError(f"{self.name}: an id occurs twice; give every image its own")
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise DataError(f"{self.name}: a label lies outside 0..{len(self.class_names) - 1}")
        if self.soft is not None:
            second, weight = self.soft.second, self.soft.weight
            if second.shape != (n,) or weight.shape != (n,) or second.dtype != torch.int64:
                raise DataError(f"{self.name}: {n} ids need as many second classes, int64, and weights")
            if n and not (0 <= int(second.min()) <= int(second.max()) < len(self.class_names)):
                raise DataError(f"{self.name}: a second class lies outside 0..{len(self.class_names) - 1}")
            if not ((weight >= 0) & (weight <= 1)).all():
                raise DataError(f"{self.name}: the weight of a label lies outside 0..1")
            if (answers := self.soft.answers) is not None:
                if answers.shape != (n, len(self.class_names)):
                    raise DataError(f"{self.name}: {n} ids need as many answers over {len(self.class_names)} classes")
                if not (answers >= 0).all() or not ((answers.sum(1) - 1).abs() < 1e-3).all():
                    raise DataError(f"{self.name}: the answers of an image are negative, or do not sum to 1")
        if len(self.source_ids) not in (0, n):
            raise DataError(f"{self.name}: {n} ids need as many ids of sources, not {len(self.source_ids)}")
        sure = self.confidence
        if sure is not None and (sure.shape != (n,) or not ((sure >= 0) & (sure <= 1)).all()):
            raise DataError(f"{self.name}: {n} ids need as many confidences, each in 0..1")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def contents(self) -> dict[str, tuple[str, int]]:
        """Content hash and label of every image, by id."""
        return contents(self.ids, self.hashes, self.labels.tolist())

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of every image, by id."""
        return {image_id: row for row, image_id in enumerate(self.ids)}

    @property
    def size(self) -> int:
        """Side S of the images in px."""
        return int(self.images.shape[-1])

    @property
    def digest(self) -> str:
        """sha256 hex of what is learned from: ids, contents and labels of all images, and the class names."""
        columns = [self.ids, self.hashes, self.labels.tolist()]
        if self.soft is not None:
            columns += [self.soft.second.tolist(), self.soft.weight.tolist()]
            columns += [] if self.soft.answers is None else [self.soft.answers.tolist()]
        found = hashlib.sha256("\n".join([*self.class_names, ""]).encode())
        for row in zip(*columns, strict=True):
            found.update(("\n" + " ".join(map(str, row))).encode())
        return found.hexdigest()

    def resized(self, size: int) -> LabelledImages:
        """The same images at `size` px (antialiased bicubic); self where they have that size already."""
        if size == self.size:
            return self
        return replace(self, images=resize(self.images, size))

    def with_classes_after(self, known: Sequence[str]) -> LabelledImages:
        """The same images, classes numbered as in `known`; classes that are not there come after them, in their order.

        So a class that is added keeps the number of every other, wherever its name sorts.
        """
        names = (*known, *(name for name in self.class_names if name not in known))
        if names == self.class_names:
            return self
        number = torch.tensor([names.index(name) for name in self.class_names], dtype=torch.int64)
        soft = None if self.soft is None else self.soft.renumbered(number, len(names))
        return replace(self, labels=number[self.labels], class_names=names, soft=soft)

    def subset(self, rows: Sequence[int]) -> LabelledImages:
        """The images of these rows, in this order; the problems stay."""
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            hashes=tuple(self.hashes[row] for row in rows),
            labels=self.labels[index],
            images=self.images[index],
            soft=None if self.soft is None else self.soft.rows(index),
            groups=tuple(self.groups[row] for row in rows) if self.groups else (),
            source_ids=tuple(self.source_ids[row] for row in rows) if self.source_ids else (),
            confidence=None if self.confidence is None else self.confidence[index],
        )


def contents(ids: Iterable[str], hashes: Iterable[str], labels: Iterable[int]) -> dict[str, tuple[str, int]]:
    """Content hash and label of every image, by id."""
    return dict(zip(ids, zip(hashes, labels, strict=True), strict=True))


def changed(before: Mapping[str, tuple[str, int]], now: Mapping[str, tuple[str, int]]) -> Iterator[tuple[str, str]]:
    """Id of every image of `before` that is not what it was, and how; both are `contents`."""
    for image_id, (content, label) in before.items():
        if image_id not in now:
            yield image_id, "gone, or not selected any more"
        elif now[image_id][0] != content:
            yield image_id, "other pixels"
        elif now[image_id][1] != label:
            yield image_id, "another class"


def to_model_range(images: Tensor) -> Tensor:
    """uint8 [0, 255] => float32 [-1, 1], any shape."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float [-1, 1] => uint8 [0, 255], rounded and clamped, any shape."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize (B, C, H, W) uint8 to (B, C, size, size) uint8: bicubic, antialiased when it shrinks."""
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)


def square(pixels: NDArray[np.uint8], size: int) -> Tensor:
    """Crop (H, W, 3) uint8 to its central square and resize that to (3, size, size) uint8."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cropped = torch.from_numpy(pixels[top : top + side, left : left + side]).permute(2, 0, 1)
    return cropped if side == size else resize(cropped[None], size)[0]


def content_hash(pixels: NDArray[np.uint8]) -> str:
    """sha256 hex of (H, W, 3) uint8 pixels and their height and width."""
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
