"""A look at a sweep's images: real ones, and below them a row of each set of synthetic ones, the classes in turn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.images import LabelledImages
from ..engine.text import cut
from ..errors import DataError
from ..run.methods import images_store
from ..run.report import png
from ..run.report.figures import without_tex
from ..sample.synthetic import SyntheticStore
from .outcome import shared
from .plan import Cell
from .table import label
from .work import CellJobs, Workshop

COLUMNS, MOST_ROWS = 12, 24
_LONGEST = 100  # characters of a row's name
_WIDTH, _TITLE = 8.0, 0.3  # inches


def look(workshop: Workshop, wanted: Sequence[Sequence[Cell]], jobs: Sequence[Sequence[CellJobs]]) -> bytes | None:
    """PNG of the first replicate's images, at most `MOST_ROWS` sets of them; None where none are there.

    A set whose files are gone or changed since is left out with a warning: its results are there without them.
    """
    sets: dict[str, list[Cell]] = {}
    for (cell, *_), (found, *_) in zip(wanted, jobs, strict=True):
        if found.images is not None and set(found.classifiers) - {"real"}:
            sets.setdefault(workshop.images_folder(cell), []).append(cell)
    rows = []
    for folder, cells in list(sets.items())[:MOST_ROWS]:
        train = workshop.splits(cells[0].data).train
        store = images_store(workshop.folder / folder, train.class_names)
        try:
            rows.append((_name(cells), first_of_classes(store, train.class_names)))
        except DataError as error:
            print(f"warning: left out of the picture of all images: {error}", file=sys.stderr, flush=True)
    sides = [image.shape[-1] for _, images in rows for image in images if image is not None]
    if not sides:
        return None
    first, side = next(iter(sets.values()))[0], max(sides)
    train = workshop.splits(first.data).train
    real = real_of_classes(train, min(side, workshop.side(first, train.size)))
    return _picture([("real images", real), *rows], side)


def _name(cells: Sequence[Cell]) -> str:
    """What the cells that use one set of images have in common; where that is nothing, all of them."""
    each = dict.fromkeys(label(cell.at) for cell in cells)
    return cut(label(shared(cells, range(len(cells)))) or "; ".join(each), _LONGEST)


def first_of_classes(store: SyntheticStore, class_names: Sequence[str]) -> list[Tensor | None]:
    """`COLUMNS` images uint8 (3, S, S), the classes in turn, each of another source while there are some."""
    table = store.table("file_name", "sha256", "label", "variant")
    table = table.sort_by([("variant", "ascending"), ("file_name", "ascending")])
    names, hashes, labels = (table[name].to_pylist() for name in ("file_name", "sha256", "label"))
    places = _in_turn([store.class_names[one] for one in labels], class_names)
    there = [place for place in places if place is not None]
    found = store.images(*([column[place] for place in there] for column in (names, hashes, labels))).images
    images = iter(found)
    return [None if place is None else next(images) for place in places]


def real_of_classes(train: LabelledImages, side: int) -> list[Tensor | None]:
    """The same of real images, at `side` px."""
    places = _in_turn([train.class_names[one] for one in train.labels.tolist()], train.class_names)
    return [None if place is None else train.subset([place]).resized(side).images[0] for place in places]


def _in_turn(shown: Sequence[str], class_names: Sequence[str]) -> list[int | None]:
    """For each column a place in `shown`, the classes of images: the k-th image of a class in its k-th column."""
    of_class: dict[str, list[int]] = {name: [] for name in class_names}
    for place, name in enumerate(shown):
        of_class[name].append(place)
    turns = [divmod(column, len(class_names)) for column in range(COLUMNS)]
    each = [(of_class[class_names[label]], turn) for turn, label in turns]
    return [places[turn] if turn < len(places) else None for places, turn in each]


def _strip(images: Sequence[Tensor | None], side: int) -> Tensor:
    """Images side by side, (3, side, W) uint8, a white line between; smaller ones enlarged by whole pixels."""
    strip = torch.full((3, side, len(images) * (side + 1) - 1), 255, dtype=torch.uint8)
    for column, image in enumerate(images):
        if image is not None:
            times = side // image.shape[-1]
            larger = image.repeat_interleave(times, 1).repeat_interleave(times, 2)
            left = column * (side + 1)
            strip[:, : larger.shape[1], left : left + larger.shape[2]] = larger
    return strip


@without_tex
def _picture(rows: Sequence[tuple[str, Sequence[Tensor | None]]], side: int) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, len(rows) * (_WIDTH / COLUMNS + _TITLE)), layout="constrained")
    axes: Any = figure.subplots(len(rows), 1, squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows, strict=True):
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
        axis.imshow(_strip(images, side).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(name, fontsize=8, loc="left", pad=2, parse_math=False)
    return png(figure)
