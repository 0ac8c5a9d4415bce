"""Objects in boxes, each cropped as an image of its class: COCO's JSON and YOLO's data.yaml."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import DataError
from .decode import UnusableImageError, decode_rgb, open_image
from .listed import Source, unused_classes
from .problems import Problem
from .scan import IMAGE_SUFFIXES, is_ignored

MAX_BYTES = 1 << 30  # of a file of annotations; COCO 2017's has 450 MB
SMALLEST = 4  # px: a side of a box that is still an image
_TESTS = ("test", "val")
_REMEDY = "draw the box again, or remove it"


class _Image(BaseModel):
    id: int
    file_name: str
    width: int | None = None
    height: int | None = None


class _Annotation(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # left, top, width, height in px
    iscrowd: int = 0


class _Category(BaseModel):
    id: int
    name: str


class _Coco(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class Box:
    """One object: where its picture lies, its class, and its box in shares of width and height or in px."""

    id: str
    file: Path
    label: int
    box: tuple[float, float, float, float]  # left, top, right, bottom
    relative: bool
    drawn_on: tuple[int, int] | None = None  # px, width and height of the picture as it was annotated, where known

    def crop(self, pixels: NDArray[np.uint8]) -> Image.Image:
        """The object alone, of its whole upright picture (H, W, 3): no margin, what sticks out is left away.

        Raises UnusableImageError where next to nothing is left, or the box was drawn on a picture of another size.
        """
        height, width, _ = pixels.shape
        if self.drawn_on is not None and self.drawn_on != (width, height):
            was = "{} x {}".format(*self.drawn_on)
            cause = f"a box of a picture of {was} px by the annotations, which has {width} x {height}"
            raise UnusableImageError(cause, "restore the picture that was annotated: turned or scaled, it is another")
        scale = (width, height, width, height) if self.relative else (1, 1, 1, 1)
        left, top, right, bottom = (max(round(value * side), 0) for value, side in zip(self.box, scale, strict=True))
        found = pixels[top:bottom, left:right]
        if min(found.shape[:2]) < SMALLEST:
            cause = f"a box with {found.shape[1]} x {found.shape[0]} px of its picture, which has {width} x {height}"
            raise UnusableImageError(cause, _REMEDY)
        return Image.fromarray(found)


def coco_file(path: Path) -> Source:
    """The objects of a COCO annotation file, groups of many (iscrowd) left out. Raises DataError."""
    found = _parsed(path)
    _require_unique(path, "images", (image.id for image in found.images))
    _require_unique(path, "categories", (category.id for category in found.categories))
    names, label_of = list[str](), dict[int, int]()
    for category in sorted(found.categories, key=lambda one: one.id):
        label_of[category.id] = len(names)
        names.append(category.name)
    if len({*names}) < len(names):
        raise DataError(f"{path}: two categories of one name; rename one")
    file_of = {image.id: image.file_name for image in found.images}
    side_of = {one.id: (one.width, one.height) for one in found.images if one.width and one.height}
    folder = _folder_of(path, [image.file_name for image in found.images])
    boxes, problems = [], []
    for one in found.annotations:
        left, top, width, height = one.bbox
        id_ = f"{file_of.get(one.image_id, one.image_id)}#{one.id}"
        if one.iscrowd:
            problems.append(Problem(id_, "a group of objects (iscrowd), not used", "box each by itself", fatal=False))
        elif one.image_id not in file_of or one.category_id not in label_of:
            problems.append(Problem(id_, "its image or category is not in the file", _REMEDY, fatal=True))
        else:
            box = (left, top, left + width, top + height)
            file, drawn_on = folder / file_of[one.image_id], side_of.get(one.image_id)
            boxes.append(Box(id_, file, label_of[one.category_id], box, relative=False, drawn_on=drawn_on))
    _require_unique(path, "annotations", (box.id for box in boxes))
    return _source(path.stem, path.name, folder, boxes, names, problems)


def _require_unique(path: Path, what: str, ids: Iterable[object]) -> None:
    """Raise DataError for an id that is there twice: which of the two a label is of, nobody can tell."""
    twice = next((id_ for id_, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: two {what} of id {twice}; give each an id of its own")


def _parsed(path: Path) -> _Coco:
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES >> 20} MiB of annotations; split the file")
    try:
        return _Coco.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise DataError(
            f"{path}: no COCO annotations of boxes ({place or 'the file'}: {fault['msg']}); give images, annotations "
            "with bbox and category_id, and categories"
        ) from error


def _folder_of(path: Path, files: Sequence[str]) -> Path:
    """Where the images of an annotation file lie: beside it, or in images/, or as COCO's own folders are called."""
    above, split = path.parent.parent, path.stem.removeprefix("instances_")
    places = [path.parent, path.parent / "images", above, above / "images", above / split]
    for place in places:
        if files and (place / files[0]).is_file():
            return place.resolve()
    looked = ", ".join(str(place) for place in places)
    raise DataError(f"{path}: {files[0] if files else 'no images'}: in none of {looked}; put the images there")


def yolo_file(path: Path) -> tuple[Source, Source | None]:
    """The objects of a YOLO data set by its data.yaml: `train`, `val` or `test`, `names`. Raises DataError."""
    import yaml

    try:
        found = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a ValueError: a date that there is none of
        raise DataError(
            f"{path}: no YAML that can be read ({' '.join(str(error).split())}); correct it there"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("train"), str) or "names" not in found:
        raise DataError(f"{path}: no data.yaml of YOLO; give train, val or test, and names")
    names = _yolo_names(path, found["names"])
    root = path.parent / str(found.get("path") or "")
    test = next((found[split] for split in _TESTS if isinstance(found.get(split), str)), None)
    train = _yolo_split(path, root, found["train"], names)
    return train, None if test is None else _yolo_split(path, root, test, names)


def _yolo_names(path: Path, names: Any) -> list[str]:
    listed = [names[number] for number in range(len(names)) if number in names] if isinstance(names, dict) else names
    good = isinstance(listed, list) and all(isinstance(name, str) for name in listed)
    if not good or not listed or len({*listed}) < len(names):
        raise DataError(f"{path}: names: give a list of class names that differ, or a mapping 0, 1, ... to them")
    return [str(name) for name in listed]


def _yolo_split(path: Path, root: Path, split: str, names: Sequence[str]) -> Source:
    base, folder = path.parent.resolve(), (root / split).resolve()
    if not folder.is_dir() and split.startswith("../"):  # as Roboflow writes it: one folder too high
        folder = (root / split.removeprefix("../")).resolve()
    if not folder.is_dir() or not folder.is_relative_to(base):
        raise DataError(f"{path}: {split} is no folder below {base}; put data.yaml above its images")
    boxes, problems = [], list[Problem]()
    images = [one for one in _below(folder, base, problems) if one.suffix.lower() in IMAGE_SUFFIXES]
    texts = [_labels_of(base, image).with_suffix(".txt") for image in images]
    for image, text in zip(images, texts, strict=True):
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines() if text.is_file() else []
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            id_ = f"{image.relative_to(base).as_posix()}#{number + 1}"
            box = _yolo_box(line, len(names))
            if box is None:
                problems.append(Problem(id_, f"no box: {line[:60]}", _REMEDY, fatal=True))
            else:
                boxes.append(Box(id_, image, *box, relative=True))
    problems += _without_image(base, _labels_of(base, folder), {*texts})
    return _source(path.parent.name, split, base, boxes, names, problems)


def _below(folder: Path, base: Path, problems: list[Problem]) -> list[Path]:
    """The files at any depth below a folder, by name; a link to a folder is a problem. Raises OSError."""

    def stop(error: OSError) -> None:
        raise error

    found = []
    for above, folders, files in os.walk(folder, onerror=stop):
        folders[:] = (name for name in folders if not is_ignored(name))
        for link in (Path(above, name) for name in folders if Path(above, name).is_symlink()):
            cause = "symbolic link to a folder, not followed: its images are lost"
            name = link.relative_to(base).as_posix()
            problems.append(Problem(name, cause, "put a copy of the folder in its place", fatal=True))
        found += [Path(above, name) for name in files if not is_ignored(name)]
    return sorted(found)


def _labels_of(base: Path, place: Path) -> Path:
    """Where the labels of a picture or a folder of them lie: the last images/ of its path is labels/ there."""
    parts = place.relative_to(base).parts
    where = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else None
    return base.joinpath(*("labels" if number == where else part for number, part in enumerate(parts)))


def _without_image(base: Path, folder: Path, known: Collection[Path]) -> Iterator[Problem]:
    """Label files below `folder` that hold a box and are of no image of the split."""
    files = _below(folder, base, []) if folder.is_dir() else []
    for file in files:
        if file.suffix == ".txt" and file not in known and _begins_with_box(file):
            remedy = "restore its image as JPEG, PNG or the like, or delete it"
            yield Problem(file.relative_to(base).as_posix(), "labels without an image, not used", remedy, fatal=False)


def _begins_with_box(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    return _yolo_box(first, 1 << 31) is not None


def _yolo_box(line: str, classes: int) -> tuple[int, tuple[float, float, float, float]] | None:
    """Label and box of `class x y width height`, centre and sides in shares of the picture; None for what is none."""
    try:
        label, x, y, width, height = (float(word) for word in line.split())
    except ValueError:
        return None
    if label not in range(classes) or not all(map(math.isfinite, (x, y, width, height))):
        return None
    return int(label), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _source(
    name: str, split: str, base: Path, boxes: Sequence[Box], names: Sequence[str], problems: Sequence[Problem]
) -> Source:
    """The boxes of files below `base` that have an extent; others are problems."""
    faults = dict(_faults(base, boxes))
    kept = [box for box in boxes if box.id not in faults]
    picture = lru_cache(maxsize=1)(_picture)  # objects of one picture follow one another
    labels = tuple(box.label for box in kept)
    found = [Problem(id_, cause, _REMEDY, fatal=True) for id_, cause in faults.items()]
    return Source(
        name,
        tuple(box.id for box in kept),
        labels,
        tuple(names),
        lambda row: kept[row].crop(picture(kept[row].file)),
        (*problems, *found, *unused_classes(split, labels, names)),
    )


def _picture(file: Path) -> NDArray[np.uint8]:
    with open_image(file) as image:
        return decode_rgb(image)[0]


def _faults(base: Path, boxes: Sequence[Box]) -> Iterator[tuple[str, str]]:
    inside: Mapping[Path, bool] = {box.file: box.file.resolve().is_relative_to(base) for box in boxes}
    for box in boxes:
        left, top, right, bottom = box.box
        if not inside[box.file]:
            yield box.id, "its image lies outside the data set"
        elif not (right > left and bottom > top):
            yield box.id, f"a box of {right - left:g} x {bottom - top:g}"
