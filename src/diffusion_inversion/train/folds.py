"""Folds over the real training images: what a classifier may see while others of them measure it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.dealing import deal
from ..data.images import LabelledImages
from ..data.near_duplicates import near_pairs, thumbnail

FOLDS = 5
NEVER = -1  # of images that stay in training


@dataclass(frozen=True)
class Split:
    """Rows of one fold, ascending: real images to train on and to measure on, and synthetic ones to train on."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]
    synthetic: tuple[int, ...]


def fold_of(images: LabelledImages, count: int = FOLDS) -> tuple[int, ...]:
    """The fold of each image (N), 0 to count - 1, or `NEVER`; it depends on ids, pixels and labels, not on the order.

    Images of equal or nearly equal pixels share a fold, and so do those of a group. Each class is dealt out evenly in
    the order of the hashes of its ids; groups are dealt by `data.dealing.deal`. A class that would lie in one fold as
    a whole stays in training, so every fold's training has all classes.
    """
    group = alike(images)
    labels = images.labels.tolist()
    number = _dealt(images, group, count) if images.groups else dict[int, int]()
    for row in sorted(range(len(images)), key=lambda row: (labels[row], in_order(images.ids[row]))):
        number.setdefault(group[row], len(number) % count)
    members: dict[int, set[int]] = {}
    for label, one in zip(labels, group, strict=True):
        members.setdefault(label, set()).add(one)
    for label in sorted(members):
        if len({number[one] for one in members[label]}) == 1:
            number.update(dict.fromkeys(members[label], NEVER))
    return tuple(number[one] for one in group)


def _dealt(images: LabelledImages, group: Sequence[int], count: int) -> dict[int, int]:
    """The fold of each group, the largest dealt first, those of one size in the order of the hashes of their ids."""
    size = Counter(group)
    places = {
        one: place for place, one in enumerate(sorted(size, key=lambda one: (-size[one], in_order(images.ids[one]))))
    }
    counts = np.zeros((len(places), len(images.class_names)), np.int64)
    for label, one in zip(images.labels.tolist(), group, strict=True):
        counts[places[one], label] += 1
    return dict(zip(places, deal(counts, [1 / count] * count).tolist(), strict=True))


def split(images: LabelledImages, folds: Sequence[int], sources: Sequence[Collection[str]], number: int) -> Split:
    """What is trained and measured on in a fold.

    `folds` has the fold of each image; `sources` of each synthetic image the ids of those that it was made from. Of a
    held-out image nothing is left: neither its variants, nor variants of others that it was mixed into.
    """
    held = {image_id for image_id, fold in zip(images.ids, folds, strict=True) if fold == number}
    return Split(
        tuple(row for row, fold in enumerate(folds) if fold != number),
        tuple(row for row, fold in enumerate(folds) if fold == number),
        tuple(row for row, made_from in enumerate(sources) if held.isdisjoint(made_from)),
    )


def alike(images: LabelledImages, *, near: bool = True) -> list[int]:
    """The group of each image: the first row, in the order of the ids, of those that go together.

    Images go together that show the same picture, or are of one of the groups that were given. Without `near` pictures
    are the same whose pixels are equal.
    """
    order = sorted(range(len(images)), key=lambda row: images.ids[row])
    place = {row: rank for rank, row in enumerate(order)}
    first: dict[str, int] = {}
    pairs = [(first.setdefault(images.hashes[row], row), row) for row in order]
    pairs += [(first.setdefault(f"group {images.groups[row]}", row), row) for row in order if images.groups]
    pairs += near_pairs(thumbnail(images.images)) if near else []
    above = list(range(len(images)))

    def top(row: int) -> int:
        while above[row] != row:
            row = above[row]
        return row

    for one, other in pairs:
        ends = sorted((top(one), top(other)), key=place.__getitem__)
        above[ends[1]] = ends[0]
    return [top(row) for row in range(len(images))]


def in_order(text: str) -> str:
    """What ids are sorted by where their order must not depend on how they are named."""
    return hashlib.sha256(f"fold {text}".encode("utf-8", "surrogatepass")).hexdigest()
