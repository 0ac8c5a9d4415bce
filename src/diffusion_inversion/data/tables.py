"""Tables of images: parquet files, read by pyarrow as they are now, and data sets of the hub, through `datasets`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from ..engine.hub import without_waiting
from ..engine.untrusted import LFS_CAUSE, LFS_POINTER, LFS_REMEDY, parse_json
from ..errors import DataError, UsageError
from .decode import UnusableImageError, open_image
from .hub_names import HubName, read_hub_name
from .listed import Columns, Source, numbered, reading, unused_classes
from .problems import Problem

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
LICENCE_COLUMNS = ("licence", "license")
_HUB_TEST_SPLITS = ("test", "validation", "valid", "val")
_CELLS_AT_ONCE = 16  # read ahead from a parquet file
_BUFFER_BYTES = 1 << 20  # a row group is streamed, never held whole
_BASE64_STARTS = ("data:image/", "iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # of PNG, JPEG, GIF and WebP as text


def parquet_file(path: Path, role: str) -> Source:
    """The images of one parquet file, ids starting with `role`. Raises DataError.

    Nothing of it is copied to a cache, and its name is a name, not a pattern: `datasets` reads d1.parquet for
    d[1].parquet (huggingface/datasets#7468) and an old copy of a file that was replaced (#444).
    """
    with reading(str(path), "give a whole, readable parquet file with columns image and label"):
        file, open_row, info = _open_parquet(path)
        label_column = _column(path.name, file.schema_arrow.names, _LABEL_COLUMNS)
        columns: Columns = {
            name: partial(lambda name: file.read([name]).column(name).to_pylist(), name)
            for name in file.schema_arrow.names
            if name not in _IMAGE_COLUMNS
        }
        values = columns[label_column]()
        names = _class_names(path, label_column, info)
    return _source(path.stem, role, values, names, label_column, open_row, str(info.get("license") or ""), columns)


def parquet_files(paths: Sequence[Path]) -> Source:
    """Training images in parquet files of the same classes as one, numbered on from file to file. Raises DataError.

    Few of them are open at a time.
    """
    opened = lru_cache(4)(lambda place: parquet_file(paths[place], "train"))
    starts, labels, names = [0], list[int](), opened(0).class_names
    for place, path in enumerate(paths):
        if (found := opened(place)).class_names != names or any(one.fatal for one in found.problems):
            raise DataError(f"{path}: other classes than in {paths[0].name}, or images without one; give files alike")
        labels += found.labels
        starts.append(len(labels))

    def open_row(row: int) -> Image.Image:
        place = bisect_right(starts, row) - 1
        return opened(place).open(row - starts[place])

    def read(name: str) -> list[Any]:
        return [value for place in range(len(paths)) for value in opened(place).columns()[name]()]

    return Source(
        paths[0].parent.name, numbered("train", len(labels)), tuple(labels), names, open_row,
        unused_classes("train", labels, names), opened(0).licence,
        lambda: {name: partial(read, name) for name in opened(0).columns()},
    )  # fmt: skip


def _open_parquet(path: Path) -> tuple[Any, Callable[[int], Image.Image], dict[str, Any]]:
    """A parquet file of images, what opens the image of a row, and what `datasets` wrote about it. Raises DataError."""
    import pyarrow.parquet as pq

    with path.open("rb") as start:
        if start.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(f"{path}: {LFS_CAUSE}; {LFS_REMEDY}")
    file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
    schema = file.schema_arrow
    info = _hub_info(path, schema.metadata or {})
    image_column = _column(path.name, schema.names, _IMAGE_COLUMNS)
    if not file.metadata.num_rows:
        raise DataError(f"{path}: a table without rows; give one row for each image")
    _check_images(path, image_column, schema.field(image_column).type)
    cells = _ParquetCells(file, image_column)
    return file, lambda row: _open_cell(cells.at(row), path.parent, (path.parent,)), info


def unlabelled_parquet(path: Path) -> Unlabelled:
    """The images of one parquet file, whether they have labels or not. Raises DataError."""
    with reading(str(path), "give a whole, readable parquet file with a column image"):
        file, open_row, info = _open_parquet(path)
        column = next((name for name in LICENCE_COLUMNS if name in file.schema_arrow.names), None)
        values = file.read([column]).column(column).to_pylist() if column is not None else []
        footer = _footer(path, file.metadata.serialized_size)
    return Unlabelled(file.metadata.num_rows, open_row, tuple(values), str(info.get("license") or ""), footer)


def _footer(path: Path, size: int) -> str:
    """sha256 hex of the end of a parquet file: its metadata of `size` bytes, their length and the magic number."""
    with path.open("rb") as file:
        file.seek(-size - 8, os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


def class_of_rows(path: Path) -> tuple[str | None, ...]:
    """Name of the class of each row of a parquet file, None where it has none; empty without a label column.

    Raises DataError.
    """
    with reading(str(path), "give a whole, readable parquet file"):
        file, _, info = _open_parquet(path)
        column = next((name for name in _LABEL_COLUMNS if name in file.schema_arrow.names), None)
        if column is None:
            return ()
        values: list[Any] = file.read([column]).column(column).to_pylist()
        names = _class_names(path, column, info)
    if names is None:
        return tuple(None if value is None else str(value).strip() or None for value in values)
    return tuple(names[value] if value in range(len(names)) else None for value in values)


@dataclass(frozen=True)
class Unlabelled:
    """Images of a table by row, and the licence of each where a column has it, else of all."""

    count: int
    open: Callable[[int], Image.Image]
    licences: tuple[Any, ...]  # empty without such a column
    licence: str
    footer: str = ""  # sha256 hex of a parquet file's, which says where and how large each part of it is

    def licence_of(self, row: int) -> str:
        """The licence of an image; "" where none is named."""
        return str((self.licences[row] if self.licences else None) or self.licence)


class _ParquetCells:
    """Cells of the image column by row; reading on is quick, going back starts at the row's group."""

    def __init__(self, file: Any, column: str) -> None:
        self._file, self._column = file, column
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._starts = [0, *accumulate(counts)]
        self._start = 0
        self._cells: list[Any] = []
        self._batches: Iterator[Any] = iter(())

    def at(self, row: int) -> Any:
        end = self._start + len(self._cells)
        group = bisect_right(self._starts, row) - 1
        if row < self._start or self._starts[group] > end or not self._cells:
            groups = list(range(group, len(self._starts) - 1))
            self._batches = self._file.iter_batches(_CELLS_AT_ONCE, groups, [self._column], use_threads=False)
            self._start, self._cells = self._starts[group], []
        while row >= self._start + len(self._cells):
            self._start += len(self._cells)
            self._cells = next(self._batches).column(0).to_pylist()
        return self._cells[row - self._start]


def _hub_info(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What `datasets` wrote about the columns; empty where it did not write the file."""
    stored = metadata.get(b"huggingface")
    found = parse_json(stored, f"{path}: its huggingface metadata") if stored else {}
    info = found.get("info") if isinstance(found, dict) else None
    return info if isinstance(info, dict) else {}


def _class_names(path: Path, column: str, info: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of a ClassLabel; None where the labels of the column are themselves."""
    features = info.get("features")
    feature = features.get(column) if isinstance(features, dict) else None
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel" or feature.get("names") is None:
        return None
    names = feature["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise DataError(f"{path}: column {column}: its class names are not texts that differ; write the file again")
    return tuple(names)


def class_label_metadata(names: Sequence[str], **others: str) -> dict[bytes, bytes]:
    """Metadata of a parquet schema by which `datasets` shows the column label by the names of its classes.

    `others` are further columns and the types that `datasets` is to read them as, such as image="Image".
    """
    features = {"label": {"names": list(names), "_type": "ClassLabel"}} | {
        column: {"_type": kind} for column, kind in others.items()
    }
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def _check_images(path: Path, column: str, kind: Any) -> None:
    """Raise DataError for a column that cannot hold encoded images or the names of their files."""
    import pyarrow.types as types

    name = str(kind)
    if types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}:
        return
    if re.fullmatch(r"(large_)?(binary|string)(_view)?|fixed_size_binary\[\d+\]", name):
        return
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        what, remedy = f"a list in every cell ({name})", "give one row for each image, holding its PNG or JPEG bytes"
    else:
        what, remedy = name, "store PNG or JPEG bytes, or a struct of bytes and path as `datasets` does"
    raise DataError(f"{path}: column {column} holds {what}, no image; {remedy}")


def hub_data(data: str, root: Path) -> tuple[Source, Source | None]:
    """The train split of `hf:...` (hub_names.py), and its test split where it has one. Raises UsageError, DataError."""
    asked = read_hub_name(data)
    with _hub_splits(data, asked, root) as (splits, places):
        tests = (asked.test,) if asked.test else _HUB_TEST_SPLITS
        test = next((split for split in tests if split in splits), None)
        if asked.test and test is None:
            raise DataError(f"{data}: no split {asked.test} among {', '.join(splits)}")
        train = _from_hub(data, asked, "train", splits[asked.train or "train"], places)
        return train, None if test is None else _from_hub(data, asked, test, splits[test], places)


def unlabelled_hub(data: str, root: Path) -> Unlabelled:
    """The images of the train split of `hf:...`, labelled or not. Raises UsageError, DataError."""
    asked = read_hub_name(data)
    with _hub_splits(data, asked, root) as (splits, places):
        table = splits[asked.train or "train"]
        image_column = _column(data, table.column_names, (asked.image,) if asked.image else _IMAGE_COLUMNS)
        column = next((name for name in LICENCE_COLUMNS if name in table.column_names), None)
        values = table.select_columns([column])[:][column] if column is not None else []
        open_row = _hub_images(table, image_column, places)
        return Unlabelled(len(table), open_row, tuple(values), table.info.license or "")


@contextmanager
def _hub_splits(data: str, asked: HubName, root: Path) -> Iterator[tuple[Any, Sequence[Path]]]:
    """The splits of a hub data set, train among them, and the places where its files lie; errors below name it."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    name, local = asked.name, asked.is_local
    if not local and Path(name).exists():  # `datasets` would take it for the data set
        raise UsageError(
            f"DATA {data}: {name} lies in the working folder and would be read instead of the hub's data set; write "
            f"./{name} for the folder, or work in another folder"
        )
    if local and (pattern := next((c for c in "*[" if c in name), "")):
        raise UsageError(f"DATA {data}: {pattern} in a path is a pattern to `datasets`; rename the folder")
    remedy = "check the id, the revision, the config and the network, or give a local folder or parquet file"
    with reading(data, remedy, kept_in=root), nullcontext() if local else without_waiting():
        splits = datasets.load_dataset(
            name,
            asked.config or None,
            revision=asked.revision or None,
            cache_dir=str(root / "huggingface"),
            # What it kept of a local folder may be of files that were replaced since.
            download_mode="force_redownload" if local else None,
        )
        if (wanted := asked.train or "train") not in splits:
            raise DataError(f"{data}: no {wanted} split among {', '.join(splits)}; name one: ?train=<split>")
        # Files of a hub data set lie in one of these; a cell that names another file is not the data set's.
        yield splits, (root / "huggingface", *([Path(name)] if local else []), Path(HF_HUB_CACHE))


def _from_hub(name: str, asked: HubName, prefix: str, table: Any, places: Sequence[Path]) -> Source:
    """A split, a `datasets.Dataset` with an image and a label column."""
    import datasets

    image_column = _column(name, table.column_names, (asked.image,) if asked.image else _IMAGE_COLUMNS)
    label_column = _column(name, table.column_names, (asked.label,) if asked.label else _LABEL_COLUMNS)
    values: list[Any] = table.select_columns([label_column])[:][label_column]
    feature = table.features[label_column]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    open_row = _hub_images(table, image_column, places)
    columns: Columns = {
        name: partial(lambda name: table.select_columns([name])[:][name], name)
        for name in table.column_names
        if name not in (*_IMAGE_COLUMNS, image_column)
    }
    return _source(name, prefix, values, names, label_column, open_row, table.info.license or "", columns)


def _hub_images(table: Any, column: str, places: Sequence[Path]) -> Callable[[int], Image.Image]:
    """What opens the image of a row of a `datasets.Dataset`."""
    import datasets

    encoded = table.cast_column(column, datasets.Image(decode=False))
    return lambda row: _open_cell(encoded[row][column], None, places)


def _source(
    name: str,
    prefix: str,
    values: Sequence[Any],
    names: tuple[str, ...] | None,
    column: str,
    open_row: Callable[[int], Image.Image],
    licence: str,
    columns: Columns,
) -> Source:
    """The rows that have a label. Without `names` the integers or texts of the column become sorted classes.

    A negative integer names no class: data sets mark what is not labelled by -1 (huggingface/datasets#5624). Of texts
    the space around them does not count, and an empty one names none: so it is in lists of files.
    """
    values = [value.strip() if isinstance(value, str) else value for value in values]
    if names is not None:
        label_of: Mapping[Any, int] = {label: label for label in range(len(names))}
    else:
        kinds = {type(value) for value in values if value is not None}
        if not kinds <= {str, int, bool} or (str in kinds and len(kinds) > 1):
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise DataError(f"{name}: column {column} holds {found}; give integers, text or a ClassLabel")
        known = sorted(
            {value for value in values if value is not None and (value if isinstance(value, str) else value >= 0)}
        )
        names = tuple(str(value) for value in known)
        label_of = {value: label for label, value in enumerate(known)}
    ids = numbered(prefix, len(values))
    rows = [row for row, value in enumerate(values) if value in label_of]
    labels = tuple(label_of[values[row]] for row in rows)
    remedy = "label the image, or remove its row; where it is a class, write the labels as text"
    unlabelled = tuple(
        Problem(id_, f"label {value!r} names no class", remedy, fatal=True)
        for id_, value in zip(ids, values, strict=True)
        if value not in label_of
    )
    return Source(
        name,
        tuple(ids[row] for row in rows),
        labels,
        names,
        lambda row: open_row(rows[row]),
        (*unlabelled, *unused_classes(prefix, labels, names)),
        licence,
        lambda: {key: partial(_of_rows, read, rows) for key, read in columns.items()},
    )


def _of_rows(read: Callable[[], Sequence[Any]], rows: Sequence[int]) -> list[Any]:
    values = read()
    return [values[row] for row in rows]


def _open_cell(cell: Any, folder: Path | None, places: Sequence[Path]) -> Image.Image:
    """Open the image of a cell: its bytes, the path of a file, or a struct of both; see `_named_file`."""
    if isinstance(cell, dict):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if cell is None:
        raise UnusableImageError("the cell holds no image", "store the image in the cell, or remove its row")
    if isinstance(cell, bytes):
        return open_image(cell)
    if str(cell).startswith(_BASE64_STARTS):
        raise UnusableImageError("the cell holds base64 text, no image", "store the bytes: base64.b64decode(cell)")
    return open_image(_named_file(str(cell), folder, places))


def _named_file(path: str, folder: Path | None, places: Sequence[Path]) -> Path:
    """The file that a cell names, relative to `folder`. Raises UnusableImageError unless it lies below one of `places`.

    Without that a table from others could make any image on this disk part of a published data set.
    """
    named = Path(path)
    if named.is_absolute() or folder is not None:
        real = (named if folder is None else folder / named).resolve()
        if any(real.is_relative_to(place.resolve()) for place in places):
            return real
    raise UnusableImageError(
        f"the cell holds no bytes, only a path outside the data set ({path[:80]})", "store the image in the cell"
    )


def _column(name: str, columns: Sequence[str], wanted: Sequence[str]) -> str:
    for column in wanted:
        if column in columns:
            return column
    raise DataError(f"{name}: no column {' or '.join(wanted)} among {', '.join(columns)}; rename the one you want")
