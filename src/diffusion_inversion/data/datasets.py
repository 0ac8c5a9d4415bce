"""Load DATA as images in memory: stratified subsets, train and test splits that share no picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..engine.memory import large_array, require_memory
from ..errors import DataError
from .duplicates import Part, Shared, find_duplicates, refuse_shared, shared_problems
from .images import LabelledImages, content_hash, square
from .listed import Source
from .near_duplicates import SIDE, thumbnail
from .problems import Problem, raise_fatal
from .reading import common_side, read_headers, read_pixels
from .selection import (
    HOLDOUT,
    Chosen,
    check_arguments,
    check_classes,
    hold_out,
    refuse_shared_groups,
    select,
    stratified,
    with_classes,
)
from .sources import BUILTINS, Role, default_root, open_data


@dataclass(frozen=True)
class Splits:
    """Training and test images with the same class names and size, and no image in both.

    Attributes:
        train: What is learned from.
        test: What classifiers are tested on.
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

    Args:
        data: A folder of class folders (or of train/ and test/ or val/ with class folders in each) or of WebDataset
            shards, a list of files (.csv, .tsv, .jsonl), boxes (COCO's .json, YOLO's data.yaml), a parquet file
            with columns image and label, `hf:<id>[@revision]`, or a built-in name (`sources.BUILTINS`).
        split: "train" is all of DATA where it has no test split. The built-in sets without one (digits, elpv, eurosat)
            are parted 80 : 20 by `seed` as `load_splits` does: use one seed for both parts.
        size: Side S in px; default the shorter side of the smallest image used, at most 512. Images that are not square
            are cropped to their central square; those of another size are resized (bicubic, antialiased).
        limit: Use a stratified subset of at most this many images, classes in the proportions they have, chosen
            by `seed` and image id. Larger limits contain smaller ones. Only images of the subset are decoded.
        seed: Of the subset and, where there is no test split, of the parting.
        root: Where built-in and hub data sets are kept; default $DINV_DATA or ~/.cache/diffusion-inversion/data.

    Raises UsageError (no such data, bad argument, missing package) and DataError, whose table names every image
    that cannot be decoded or lies at the wrong depth. Lesser findings ride along in `.problems`.
    """
    check_arguments(size, HOLDOUT, limit=limit)
    train, test = open_data(data, default_root(root))
    if test is None and data in BUILTINS:
        part = dict(zip(("train", "test"), hold_out(train, HOLDOUT, seed), strict=True))[split]
        return _load(train, stratified(train, limit, seed, part), size)
    if split == "train":
        return _load(train, stratified(train, limit, seed), size)
    if test is None:
        raise DataError(f"{train.name}: no test split; load the test data by name, or use load_splits to hold some out")
    return _load(test, stratified(test, limit, seed), size)


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
    allow_near_duplicates: bool = False,
    chosen: Chosen | None = None,
    groups: str | None = None,
    licence: str | None = None,
) -> Splits:
    """Load training and test images, both at one size, with the same classes and no image in common.

    Args:
        data: As in `load_images`.
        test: DATA to test on (its own test split where it has one, else all of it). Default: the own test split of
            `data`, else a stratified share `holdout` of it, chosen by `seed` and image id before any limit.
        size: As in `load_images`, of both parts.
        limit: The most training images, as in `load_images`.
        test_limit: The most test images, likewise.
        holdout: The share that is held out, in (0, 1).
        seed: Of subsets and hold-out.
        root: As in `load_images`.
        drop_duplicates: Leave test images out, each with a problem, that are training images too, exactly or nearly.
        allow_near_duplicates: Keep test images that show a training image with other pixels (encoded, scaled,
            brightened or cropped anew), each with a problem. So it is too for the split of a published data set
            (built-in, or a hub data set's own), whose figures others report with them.
        chosen: Ids that an earlier call trained and tested on: they keep their part where DATA grew since. A share of
            what came is held out as before, so the test grows with DATA.
        groups: What says of which patient, part or scene an image is, as `groups.with_groups` reads it. A group is held
            out whole; limits then take images of either part, whole groups or not.
        licence: That of DATA, where it names none.

    Raises DataError where an image or a group is in both parts (names it), where class names differ, or for one class;
    UsageError for a licence beside another one that DATA names.
    """
    check_arguments(size, holdout, limit=limit, test_limit=test_limit)
    folder = default_root(root)
    selected = select(
        data, test, limit=limit, test_limit=test_limit, holdout=holdout, seed=seed, root=folder, chosen=chosen,
        groups=groups, licence=licence,
    )  # fmt: skip
    train_source, test_source = selected.train, with_classes(selected.test, selected.train)
    check_classes(train_source)
    refuse_shared_groups(selected)
    trained = _decode(train_source, selected.train_rows, size)
    tested = _decode(test_source, selected.test_rows, trained.side)
    test_problems = tested.problems
    if selected.how == "given":  # both may hold a cat/001.png
        test_problems = [replace(problem, file=f"{test}: {problem.file}") for problem in test_problems]
    raise_fatal(train_source.name, [*trained.problems, *test_problems])
    train_images, test_images = _collected(train_source, trained), _collected(test_source, tested)

    part = _part(test_images)
    found = find_duplicates(_part(train_images), part, train_images.class_names)
    train_images = replace(train_images, problems=(*train_images.problems, *found.train))
    test_images = replace(test_images, problems=(*test_images.problems, *found.test))
    allow_near = allow_near_duplicates or (selected.published and not drop_duplicates)
    if not drop_duplicates:
        refuse_shared(train_images.name, test_images.name, part, found.shared, allow_near=allow_near)
    shared = shared_problems(part, found.shared, drop=drop_duplicates, allow_near=allow_near)
    test_images = replace(test_images, problems=(*test_images.problems, *shared))
    if drop_duplicates:
        test_images = _without(test_images, [item for item in found.shared if not (item.near and allow_near)])
    return Splits(train_images, test_images, selected.how)


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
            **({"groups": list(images.groups)} if images.groups else {}),
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
    headers = read_headers(source, rows, problems)
    native, side = common_side(source, headers, size, problems)
    hashes: list[str] = []
    pixels_of_all = f"{source.name}: {len(rows):,} images at {side} px need"
    require_memory(len(rows) * 3 * side**2, pixels_of_all, "give a smaller --size or fewer images (--limit)")
    images = torch.empty((len(rows), 3, side, side), dtype=torch.uint8)
    readable = [row for row in rows if row in headers]
    for place, pixels in read_pixels(source, readable, problems):
        hashes.append(content_hash(pixels))
        images[place] = square(pixels, side)  # its own place where all are readable; else the images are not used
    return _Decoded(rows, side, native, hashes, images, problems)


def _load(source: Source, rows: Sequence[int], size: int | None) -> LabelledImages:
    decoded = _decode(source, rows, size)
    raise_fatal(source.name, decoded.problems)
    images = _collected(source, decoded)
    found = find_duplicates(_part(images), None, images.class_names)
    return replace(images, problems=(*images.problems, *found.train))


def _collected(source: Source, decoded: _Decoded) -> LabelledImages:
    if not decoded.rows and source.ids:
        raise DataError(
            f"{source.name}: {len(source.ids)} images of {len(source.class_names)} classes are too few to train on some"
            " and test on others; give two of each class at least, or test images (--test)"
        )
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
        problems=tuple(decoded.problems),
        licence=source.licence,
        groups=tuple(source.groups[row] for row in decoded.rows) if source.groups else (),
    )


def _part(images: LabelledImages) -> Part:
    thumbnails = torch.from_numpy(large_array((len(images), 3, SIDE, SIDE)))
    for start in range(0, len(images), 256):
        thumbnails[start : start + 256] = thumbnail(images.images[start : start + 256])
    return Part(images.ids, images.hashes, images.labels.tolist(), thumbnails)


def _without(test: LabelledImages, shared: Sequence[Shared]) -> LabelledImages:
    dropped = {item.row for item in shared}
    if len(dropped) == len(test):
        raise DataError(f"{test.name}: every test image is a training image too; give other test images")
    return test.subset([row for row in range(len(test)) if row not in dropped])
