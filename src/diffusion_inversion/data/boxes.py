"""Objects in boxes, each cropped as an image of its class: COCO's JSON and YOLO's data.yaml."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
from .scan import IMAGE_SUFFIXES

MAX_BYTES = 1 << 30  # of a file of annotations; COCO 2017's has 450 MB
SMALLEST = 4  # px: a side of a box that is still an image
_TESTS = ("test", "val")
_REMEDY = "draw the box again, or remove it"


class _Image(BaseModel):
    id: int
    file_name: str


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

    def crop(self, pixels: NDArray[np.uint8]) -> Image.Image:
        """The object alone, of its whole upright picture (H, W, 3): no margin, what sticks out is left away.

        Raises UnusableImageError where next to nothing is left.
        """
        height, width, _ = pixels.shape
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
    names, label_of = list[str](), dict[int, int]()
    for category in sorted(found.categories, key=lambda one: one.id):
        label_of[category.id] = len(names)
        names.append(category.name)
    if len({*names}) < len(names):
        raise DataError(f"{path}: two categories of one name; rename one")
    file_of = {image.id: image.file_name for image in found.images}
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
            boxes.append(Box(id_, folder / file_of[one.image_id], label_of[one.category_id], box, relative=False))
    return _source(path.stem, path.name, folder, boxes, names, problems)


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
    except (yaml.YAMLError, RecursionError) as error:
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
    boxes, problems = [], []
    for image in sorted(one for one in folder.iterdir() if one.suffix.lower() in IMAGE_SUFFIXES):
        parts = image.relative_to(base).parts
        where = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else None
        labels = base.joinpath(*("labels" if place == where else part for place, part in enumerate(parts)))
        text = labels.with_suffix(".txt")
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
    return _source(path.parent.name, split, base, boxes, names, problems)


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
