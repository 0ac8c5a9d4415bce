"""Pools: many images without labels, listed and then read block by block, each with its licence where one is named."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from PIL import Image

from ..errors import DataError, UsageError
from .beside import TABLES_BESIDE, columns_beside
from .decode import open_image
from .listed import Source, numbered
from .problems import Problem, say
from .scan import IMAGE_SUFFIXES, is_ignored, is_image
from .sources import BUILTINS, at_home, open_data
from .tables import LICENCE_COLUMNS, Unlabelled, unlabelled_hub, unlabelled_parquet


@dataclass(frozen=True)
class Pool:
    """Images that are listed, not read. Ids ascend with the rows, or number them."""

    source: Source  # labels, which it has none of, are all 0
    licence_of: Callable[[int], str]  # by row; "" where none is named
    footers: tuple[str, ...] = ()  # of the parquet files that it is, whose ids are numbers

    def __len__(self) -> int:
        return len(self.source.ids)

    @property
    def name(self) -> str:
        return self.source.name

    @cached_property
    def listing(self) -> str:
        """sha256 hex of the ids in their order, and of the footers."""
        names = "\n".join([*self.source.ids, *self.footers])
        return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()


def open_pool(pool: str | Path, root: Path) -> Pool:
    """What POOL names: a folder of images at any depth, parquet files, hf:<id> or a built-in data set's training part.

    A folder that holds no image but parquet files is one pool of all of them. The licence of an image is that of its
    row in a column `licence` or `license` (of a folder in metadata.csv or metadata.parquet beside `file_name`), else
    what the data set says of itself. Raises UsageError where nothing has that name, DataError where it cannot be read.
    """
    text = str(pool)
    if not text:
        raise UsageError("--pool: empty; give a folder of images, parquet files, hf:<id> or a built-in name")
    if text in BUILTINS:
        source, _ = open_data(text, root)
        return Pool(source, lambda row: source.licence)
    if text.startswith("hf:"):
        return _of_tables(text, {"train": unlabelled_hub(text, root)})
    path = at_home("--pool", text)
    if path.is_file() and path.suffix.lower() == ".parquet":
        return _of_tables(path.stem, {"pool": unlabelled_parquet(path)})
    if not path.is_dir():
        raise UsageError(
            f"--pool {text}: no such folder, parquet file or built-in name; give a folder of images at any depth, "
            f"parquet files, hf:<id>, or one of {', '.join(BUILTINS)}"
        )
    folder = path.resolve()
    problems: list[Problem] = []
    images, others = images_below(folder, problems)
    tables = [name for name in others if Path(name).suffix.lower() == ".parquet" and name not in TABLES_BESIDE]
    if not images and tables:
        return _of_tables(folder.name, {name: unlabelled_parquet(folder / name) for name in tables})
    if not images:
        raise DataError(f"--pool {text}: no images by their suffix; give a folder that holds some, at any depth")
    licences = _licences(folder, images)
    source = Source(
        folder.name, tuple(images), (0,) * len(images), ("pool",), lambda row: open_image(folder / images[row]),
        tuple(problems),
    )  # fmt: skip
    return Pool(source, licences.__getitem__)


def images_below(folder: Path, problems: list[Problem]) -> tuple[list[str], list[str]]:
    """Names, relative to `folder` and sorted, of the images by suffix below it and of its other files.

    Hidden files are left out. So are links, and images without a suffix: one problem for each of these kinds, which is
    a note on stderr too.
    """
    links = list[str]()
    found = sorted(_files_below(folder, folder, problems, links))
    images = [name for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    others = sorted({*found}.difference(images))
    without = [name for name in others if is_image(folder / name)]
    left = [
        *_left_out(links, "symbolic link", "put a copy in its place"),
        *_left_out(without, "an image without a suffix that is known", "give it one, such as .png"),
    ]
    problems += left
    say(folder.name, left)
    return images, others


def _left_out(names: Sequence[str], what: str, remedy: str) -> Iterator[Problem]:
    if names:
        more = f", and {len(names) - 1} more like it" if len(names) > 1 else ""
        yield Problem(min(names), f"{what}, left out{more}", remedy, fatal=False)


def _files_below(folder: Path, base: Path, problems: list[Problem], links: list[str]) -> Iterator[str]:
    """Names, relative to `base`, of the files below `folder` but hidden and special ones; those of links go apart."""
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError as error:
        name = folder.relative_to(base).as_posix()
        problems.append(Problem(name, f"cannot be listed: {error.strerror}", "make it readable", fatal=True))
        return
    for entry in listed:
        if is_ignored(entry.name):
            continue
        if entry.is_symlink():
            suffix = Path(entry.name).suffix.lower()
            if suffix in IMAGE_SUFFIXES or suffix == ".parquet" or os.path.isdir(entry.path):
                links.append(Path(entry.path).relative_to(base).as_posix())
        elif entry.is_dir(follow_symlinks=False):
            yield from _files_below(Path(entry.path), base, problems, links)
        elif entry.is_file(follow_symlinks=False):
            name = Path(entry.path).relative_to(base).as_posix()
            try:
                name.encode()
            except UnicodeEncodeError:
                shown = name.encode("utf-8", "backslashreplace").decode()
                problems.append(Problem(shown, "its name is not UTF-8", "rename it", fatal=True))
                continue
            yield name


def _of_tables(name: str, tables: Mapping[str, Unlabelled]) -> Pool:
    """One pool of all rows of the tables, whose ids begin with the names of theirs."""
    every = list(tables.values())
    starts = [0, *accumulate(table.count for table in every)]
    ids = tuple(image_id for prefix, table in tables.items() for image_id in numbered(prefix, table.count))

    def of(row: int) -> tuple[Unlabelled, int]:
        place = bisect_right(starts, row) - 1
        return every[place], row - starts[place]

    def open_row(row: int) -> Image.Image:
        table, own = of(row)
        return table.open(own)

    def licence_of(row: int) -> str:
        table, own = of(row)
        return table.licence_of(own)

    return Pool(
        Source(name, ids, (0,) * len(ids), ("pool",), open_row),
        licence_of,
        tuple(table.footer for table in every if table.footer),
    )


def _licences(folder: Path, names: Sequence[str]) -> list[str]:
    """The licence of each file, as a table of the folder has it; "" where there is none."""
    columns = columns_beside(folder, names)
    column = next((name for name in LICENCE_COLUMNS if name in columns), None)
    return [str(value or "") for value in columns[column]()] if column is not None else [""] * len(names)
