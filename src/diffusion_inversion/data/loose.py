"""Images to be looked at, wherever they lie: their labels are known for some, for all or for none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import DataError, UsageError
from .decode import open_image
from .listed import Source, numbered
from .naming import UNIT_FILES, class_folder
from .pools import images_below
from .problems import Problem
from .sources import BUILTINS, at_home, open_data
from .tables import class_of_rows, unlabelled_parquet

NO_LABEL = -1


def open_loose(images: str, class_names: Sequence[str], root: Path) -> Source:
    """List the images that IMAGES names: labels number `class_names`, NO_LABEL where an image has none of these.

    Args:
        images: A folder with images at any depth, whose labels are the names of the folders that they lie in; one
            image; a parquet file with a column image and perhaps label; `hf:<id>` or a built-in name, of which the test
            split is taken where it has one; a folder of Parquet files of stage 2.
        class_names: The classes that are known.
        root: Where built-in and hub data sets are kept.

    Raises UsageError where nothing has that name, DataError where it cannot be read or holds no image.
    """
    label_of = {name: label for label, name in enumerate(class_names)}

    def numbers(names: Sequence[str | None]) -> tuple[int, ...]:
        return tuple(NO_LABEL if name is None else label_of.get(name, NO_LABEL) for name in names)

    path = at_home("IMAGES", images)
    if images in BUILTINS or images.startswith("hf:") or any(path.glob(UNIT_FILES)):
        train, test = open_data(images, root)
        source = train if test is None else test
        labels = numbers([source.class_names[label] for label in source.labels])
        return replace(source, labels=labels, class_names=tuple(class_names))
    path = path.resolve()
    if path.is_dir():
        return _folder(path, class_names)
    if path.suffix.lower() == ".parquet" and path.is_file():
        table = unlabelled_parquet(path)
        labels = numbers(class_of_rows(path) or [None] * table.count)
        return Source(path.stem, numbered(path.stem, table.count), labels, tuple(class_names), table.open)
    if path.is_file():
        return Source(path.name, (path.name,), (NO_LABEL,), tuple(class_names), lambda row: open_image(path))
    raise UsageError(
        f"IMAGES {images}: no such folder, file or built-in name; give a folder of images, an image, a parquet file, "
        f"hf:<id>, or one of {', '.join(BUILTINS)}"
    )


def _folder(folder: Path, class_names: Sequence[str]) -> Source:
    problems: list[Problem] = []
    names = images_below(folder, problems)[0]
    if not names:
        raise DataError(f"IMAGES {folder}: no images by their suffix; give a folder that holds some, at any depth")
    label_of_folder = {class_folder(name): label for label, name in enumerate(class_names)}
    labels = tuple(label_of_folder.get(Path(name).parent.name, NO_LABEL) for name in names)
    return Source(
        folder.name, tuple(names), labels, tuple(class_names), lambda row: open_image(folder / names[row]),
        tuple(problems),
    )  # fmt: skip
