"""The table beside the images of a folder, metadata.csv or metadata.parquet, as `imagefolder` of `datasets` has it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from .listed import Columns, reading
from .naming import METADATA

TABLES_BESIDE = ("metadata.csv", METADATA)
_FILE_NAME = "file_name"


def columns_beside(folder: Path, names: Sequence[str]) -> Columns:
    """The columns of the table in a folder of images; each reads the values of the files with these `names`.

    Its column file_name says which file a row is of, relative to the folder; without that the table has no columns. A
    value is None where a file has no row. Raises DataError.
    """
    path = next((path for name in TABLES_BESIDE if (path := folder / name).is_file()), None)
    if path is None:
        return {}
    with _reading(path):
        columns = _columns_of(path)
    return {one: partial(_values, path, one, names) for one in columns if one != _FILE_NAME and _FILE_NAME in columns}


def _reading(path: Path) -> AbstractContextManager[None]:
    return reading(str(path), "give a table with a column file_name beside the one that is wanted, or move it away")


def _columns_of(path: Path) -> Sequence[str]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return csv.DictReader(file).fieldnames or ()
    import pyarrow.parquet as pq

    return tuple(pq.read_schema(path).names)


def _values(path: Path, column: str, names: Sequence[str]) -> list[Any]:
    with _reading(path):
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                value_of = {row[_FILE_NAME]: row[column] for row in csv.DictReader(file)}
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(path, columns=[_FILE_NAME, column])
            value_of = dict(zip(*(table.column(one).to_pylist() for one in (_FILE_NAME, column)), strict=True))
    return [value_of.get(name) for name in names]
