"""Load DATA as images in memory: stratified subsets, train and test splits, exact duplicates."""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import DataError, UsageError
from .images import (
    LabelledImages,
    Problem,
    UnusableImageError,
    content_hash,
    decode_rgb,
    naming_causes,
    raise_fatal,
    shorter_side,
    square,
)
from .sources import BUILTINS, Role, Source, default_root, open_data

MAX_NATIVE_SIZE = 512
HOLDOUT = 0.2
_SHOWN_DUPLICATES = 5


@dataclass(frozen=True)
class Splits:
    """Training and test images with the same class names and size, and no image in both.

    how: "own" = the data set's own test split, "given" = named apart, "holdout" = a stratified part of DATA.
    """

    train: LabelledImages
    test: LabelledImages
    how: Literal["own", "given", "holdout"]


def load_images(
    data: str | Path,
    *,
    split: Role = "train",
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
) -> LabelledImages:
    """Decode labelled images into memory as (N, 3, S, S) uint8 RGB.

    data: a folder of class folders (or of train/ and test/ or val/ with class folders in each), a parquet file
        with columns image and label, "hf:<id>[@revision]", or a built-in name (`sources.BUILTINS`).
    split: "train" is all of DATA where it has no test split. The built-in sets without one (digits, elpv, eurosat)
        are parted 80 : 20 by `seed` as `load_splits` does: use one seed for both parts.
    size: side S in px; default the shorter side of the smallest image used, at most 512. Images that are not square
        are cropped to their central square; those of another size are resized (bicubic, antialiased).
    limit: use a stratified subset of at most this many images, an equal share per class as far as they go, chosen
        by `seed` and image id. Larger limits contain smaller ones. Only images of the subset are decoded.
    root: where built-in and hub data sets are kept; default $DINV_DATA or ~/.cache/diffusion-inversion/data.

    Raises UsageError (no such data, bad argument, missing package) and DataError, whose table names every image
    that cannot be decoded or lies at the wrong depth. Lesser findings ride along in `.problems`.
    """
    _check_arguments(size, HOLDOUT, limit=limit)
    train, test = open_data(data, default_root() if root is None else Path(root))
    if test is None and data in BUILTINS:
        part = dict(zip(("train", "test"), _hold_out(train, HOLDOUT, seed), strict=True))[split]
        return _load(train, _stratified(train, limit, seed, part), size)
    if split == "train":
        return _load(train, _stratified(train, limit, seed), size)
    if test is None:
        raise DataError(f"{train.name}: no test split; load the test data by name, or use load_splits to hold some out")
    return _load(test, _stratified(test, limit, seed), size)


def load_splits(
    data: str | Path,
    *,
    test: str | Path | None = None,
    size: int | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    holdout: float = HOLDOUT,
    seed: int = 0,
    root: str | Path | None = None,
    drop_duplicates: bool = False,
) -> Splits:
    """Load training and test images; arguments as in `load_images`, which see.

    test: DATA to test on (its own test split where it has one, else all of it). Default: the own test split of
        `data`, else a stratified share `holdout` in (0, 1) of it, chosen by `seed` and image id before any limit.
    drop_duplicates: leave test images out, each with a problem, whose pixels equal a training image's.

    Raises DataError where an image is in both parts (names the files), where class names differ, or for one class.
    """
    _check_arguments(size, holdout, limit=limit, test_limit=test_limit)
    folder = default_root() if root is None else Path(root)
    train_source, own_test = open_data(data, folder)
    train_rows: Sequence[int] = range(len(train_source.ids))
    how: Literal["own", "given", "holdout"]
    if test is not None:
        whole, part = open_data(test, folder, "test")
        if part is None and _same(data, test):
            raise UsageError(f"--test {test} is DATA itself; leave --test out to hold a part of it out")
        how, test_source = "given", part or whole
        test_rows: Sequence[int] = range(len(test_source.ids))
    elif own_test is not None:
        how, test_source, test_rows = "own", own_test, range(len(own_test.ids))
    else:
        train_rows, test_rows = _hold_out(train_source, holdout, seed)
        how, test_source = "holdout", replace(train_source, problems=())  # they ride with the training images
    test_source = _with_classes(test_source, train_source)
    if len(train_source.class_names) == 1:
        raise DataError(f"{train_source.name}: one class, {train_source.class_names[0]}; a classifier needs two")
    trained = _decode(train_source, _stratified(train_source, limit, seed, train_rows), size)
    tested = _decode(test_source, _stratified(test_source, test_limit, seed, test_rows), trained.side)
    test_problems = tested.problems
    if how == "given":  # both may hold a cat/001.png
        test_problems = [replace(problem, file=f"{test}: {problem.file}") for problem in test_problems]
    raise_fatal(train_source.name, [*trained.problems, *test_problems])
    train_images, test_images = _collected(train_source, trained), _collected(test_source, tested)
    return Splits(train_images, _without_duplicates(train_images, test_images, drop_duplicates), how)


def data_record(splits: Splits) -> dict[str, Any]:
    """What a run stores as data.json: which images, by id and content, were trained and tested on, and how parted."""

    def part(images: LabelledImages) -> dict[str, Any]:
        return {
            "name": images.name,
            "native_size": images.native_size,
            "licence": images.licence,
            "ids": list(images.ids),
            "hashes": list(images.hashes),
            "labels": images.labels.tolist(),
            "problems": [asdict(problem) for problem in images.problems],
        }

    train = splits.train
    return {
        "name": train.name,
        "how": splits.how,
        "class_names": list(train.class_names),
        "size": train.size,
        "licence": train.licence,
        "train": part(train),
        "test": part(splits.test),
    }


def _check_arguments(size: int | None, holdout: float, **limits: int | None) -> None:
    for name, value in {"size": size, **limits}.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: give at least 1")
    if not 0 < holdout < 1:
        raise UsageError(f"holdout={holdout}: give a share between 0 and 1, both excluded")


def _same(data: str | Path, test: str | Path) -> bool:
    return str(data) == str(test) or (Path(data).exists() and Path(data).resolve() == Path(test).resolve())


# Which rows


def _rank(seed: int, purpose: str, image_id: str) -> bytes:
    """A place in a random order that depends on the seed and the image's id alone."""
    return hashlib.sha256(f"{seed}/{purpose}/{image_id}".encode()).digest()


def _ranked_by_class(source: Source, rows: Sequence[int], seed: int, purpose: str) -> list[list[int]]:
    ranked: list[list[int]] = [[] for _ in source.class_names]
    for row in rows:
        ranked[source.labels[row]].append(row)
    for members in ranked:
        members.sort(key=lambda row: _rank(seed, purpose, source.ids[row]))
    return ranked


def _stratified(source: Source, limit: int | None, seed: int, rows: Sequence[int] | None = None) -> list[int]:
    """At most `limit` of the rows, in their order: the first of every class's ranking, then the second, ..."""
    rows = range(len(source.ids)) if rows is None else rows
    if limit is None or limit >= len(rows):
        return list(rows)
    ranked = _ranked_by_class(source, rows, seed, "limit")
    used = sum(1 for members in ranked if members)
    if limit < used:
        raise UsageError(f"limit={limit}: fewer than the {used} classes of {source.name}; give at least {used}")
    turns = [(place, label, row) for label, members in enumerate(ranked) for place, row in enumerate(members)]
    return sorted(row for _, _, row in sorted(turns)[:limit])


def _hold_out(source: Source, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train and to test on. Every class with two images or more is in both, one with one image in train."""
    test: set[int] = set()
    for members in _ranked_by_class(source, range(len(source.ids)), seed, "holdout"):
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        test.update(members[: max(count, 0)])
    return [row for row in range(len(source.ids)) if row not in test], sorted(test)


def _with_classes(test: Source, train: Source) -> Source:
    """The test source with its labels numbered as the training classes are."""
    if set(test.class_names) != set(train.class_names):
        raise DataError(
            f"classes of train and test differ: {train.name} trains on {', '.join(train.class_names) or 'none'}; "
            f"{test.name} tests on {', '.join(test.class_names) or 'none'}; give both the same classes"
        )
    label_of = {name: label for label, name in enumerate(train.class_names)}
    labels = tuple(label_of[test.class_names[label]] for label in test.labels)
    return replace(test, labels=labels, class_names=train.class_names)


# Decoding


@dataclass(frozen=True)
class _Decoded:
    """Rows of a source after decoding; where a problem is fatal, hashes and images have gaps."""

    rows: Sequence[int]
    side: int
    native: int
    hashes: list[str]
    images: Tensor  # (len(rows), 3, side, side) uint8
    problems: list[Problem]


def _decode(source: Source, rows: Sequence[int], size: int | None) -> _Decoded:
    """Decode the rows. Headers first: they give the size, so one large image at a time is in memory."""
    problems = list(source.problems)
    sides: dict[int, int] = {}
    for row in rows:
        try:
            with naming_causes(), source.open(row) as image:
                sides[row] = shorter_side(image)
        except UnusableImageError as error:
            problems.append(Problem(source.ids[row], error.cause, error.remedy, fatal=True))
    native = min(sides.values(), default=1)
    side = size or min(native, MAX_NATIVE_SIZE)
    if size is None and sides and 2 * native < statistics.median(sides.values()):
        smallest = source.ids[min(sides, key=lambda row: sides[row])]
        problems.append(Problem(smallest, f"its {native} px set the size of all images", "give --size", fatal=False))

    hashes: list[str] = []
    images = torch.empty((len(rows), 3, side, side), dtype=torch.uint8)
    for place, row in enumerate(rows):
        if row not in sides:
            continue
        try:
            with naming_causes(), source.open(row) as image:
                pixels, note = decode_rgb(image)
        except UnusableImageError as error:
            problems.append(Problem(source.ids[row], error.cause, error.remedy, fatal=True))
            continue
        if note:
            problems.append(Problem(source.ids[row], note, "convert it to 8 bits and one frame", fatal=False))
        hashes.append(content_hash(pixels))
        images[place] = square(pixels, side)
    return _Decoded(rows, side, native, hashes, images, problems)


def _load(source: Source, rows: Sequence[int], size: int | None) -> LabelledImages:
    decoded = _decode(source, rows, size)
    raise_fatal(source.name, decoded.problems)
    return _collected(source, decoded)


def _collected(source: Source, decoded: _Decoded) -> LabelledImages:
    if not decoded.rows:
        raise DataError(f"{source.name}: no images; give a folder of class folders that hold images")
    ids = tuple(source.ids[row] for row in decoded.rows)
    labels = torch.tensor([source.labels[row] for row in decoded.rows], dtype=torch.int64)
    return LabelledImages(
        name=source.name,
        ids=ids,
        hashes=tuple(decoded.hashes),
        labels=labels,
        class_names=source.class_names,
        images=decoded.images,
        native_size=decoded.native,
        problems=(*decoded.problems, *_repeated(ids, decoded.hashes, labels.tolist())),
        licence=source.licence,
    )


# Duplicates


def _repeated(ids: Sequence[str], hashes: Sequence[str], labels: Sequence[int]) -> list[Problem]:
    groups: dict[str, list[int]] = defaultdict(list)
    for place, digest in enumerate(hashes):
        groups[digest].append(place)
    problems = []
    for first, *others in groups.values():
        for other in others:
            relabelled = "" if labels[other] == labels[first] else ", under another label"
            cause = f"same pixels as {ids[first]}{relabelled}"
            problems.append(Problem(ids[other], cause, "delete one of them", fatal=False))
    return problems


def _without_duplicates(train: LabelledImages, test: LabelledImages, drop: bool) -> LabelledImages:
    """The test images that are not in train too. Raises DataError unless `drop`, or where none is left."""
    trained = dict(zip(reversed(train.hashes), reversed(train.ids), strict=True))
    shared = [(row, trained[digest]) for row, digest in enumerate(test.hashes) if digest in trained]
    if not shared:
        return test
    if not drop:
        pairs = [f"  {test.name}: {test.ids[row]}  =  {train.name}: {twin}" for row, twin in shared[:_SHOWN_DUPLICATES]]
        if len(shared) > _SHOWN_DUPLICATES:
            pairs.append(f"  ... and {len(shared) - _SHOWN_DUPLICATES} more")
        raise DataError(
            "\n".join(
                [
                    f"{len(shared)} test image(s) have exactly the pixels of a training image:",
                    *pairs,
                    "Remove one of each pair, or leave the test images out with --drop-test-duplicates.",
                ]
            )
        )
    dropped = {row for row, _ in shared}
    if len(dropped) == len(test):
        raise DataError(f"{test.name}: every test image is a training image too; give other test images")
    problems = [
        Problem(test.ids[row], f"same pixels as training image {twin}, left out of test", "delete it", fatal=False)
        for row, twin in shared
    ]
    kept = test.subset([row for row in range(len(test)) if row not in dropped])
    return replace(kept, problems=(*kept.problems, *problems))
