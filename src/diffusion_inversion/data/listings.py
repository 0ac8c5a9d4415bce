"""Lists of image files with labels: CSV, TSV and JSON lines."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..engine.untrusted import parse_json
from ..errors import DataError
from .decode import open_image
from .listed import Source, reading, unused_classes
from .problems import Problem

SUFFIXES = (".csv", ".tsv", ".jsonl")
PATH_COLUMNS = ("file_name", "path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class", "labels")
SPLIT_COLUMN = "split"
# Names of splits that are in use (huggingface/datasets#4839), the wanted test split first.
TRAIN = ("train", "training")
TESTS = (("test", "testing"), ("val", "valid", "validation"))
_EXAMPLE = '{"file_name": "a.png", "label": "cat"}'
_TEST_NAMES = frozenset(name for names in TESTS for name in names)


def listing(path: Path) -> tuple[Source, Source | None]:
    """The images that a list names, relative to its folder, and those of its test split where a column says so.

    Ids are the names as they stand in the list. Raises DataError: unreadable, a column that lacks, no images.
    """
    table = _read(path)
    files = _texts(path, table, PATH_COLUMNS)
    labels = _texts(path, table, LABEL_COLUMNS)
    splits = [str(one or "").strip().lower() for one in table.get(SPLIT_COLUMN, ["train"] * len(files))]
    names = tuple(sorted({label for label in labels if label}))
    rows = [row for row, split in enumerate(splits) if split in TRAIN]
    test = next((found for wanted in TESTS if (found := [r for r, s in enumerate(splits) if s in wanted])), None)
    if not files:
        raise DataError(f"{path}: no line but the first; give one for each image")
    if not rows:
        raise DataError(f"{path}: no image whose {SPLIT_COLUMN} is train; call them so, or leave the column out")
    train = _source(path, table, files, labels, names, rows)
    used = {*TRAIN, *(next((wanted for wanted in TESTS if {*wanted} & {*splits}), ()))}
    train = replace(train, problems=(*train.problems, *_unused(path, splits, used, fatal=test is None)))
    return train, None if test is None else _source(path, table, files, labels, names, test)


def _unused(path: Path, splits: Sequence[str], used: Collection[str], *, fatal: bool) -> Iterator[Problem]:
    """Splits that play no part, of which nobody would hear; fatal where other images would be tested on instead."""
    for split, count in Counter(splits).items():
        if split not in used and not (split in _TEST_NAMES and not fatal):
            cause = f"{SPLIT_COLUMN} {split!r}: {count} lines" if split else f"{count} lines without a {SPLIT_COLUMN}"
            yield Problem(path.name, f"{cause}, which are not used", "say train, test or val, or remove them", fatal)


def _read(path: Path) -> dict[str, list[Any]]:
    """The columns of a list by their names in lower case. Raises DataError where two have one name."""
    with reading(str(path), "give UTF-8 with one line for each image and, in CSV and TSV, a first line of names"):
        columns = _of_json(path) if path.suffix.lower() == ".jsonl" else _of_csv(path)
    found: dict[str, list[Any]] = {}
    for name, cells in columns:
        plain = name.strip().lower()
        if plain in found:
            raise DataError(f"{path}: two columns of one name, {plain}; rename one")
        found[plain] = cells
    return found


def _of_csv(path: Path) -> list[tuple[str, list[Any]]]:
    """Columns and their cells, every one of them text, so that 007 stays 007."""
    import pyarrow as pa
    import pyarrow.csv

    parsed = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    with pyarrow.csv.open_csv(path, parse_options=parsed) as stream:
        names = stream.schema.names
    kinds = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in names})
    found = pyarrow.csv.read_csv(path, parse_options=parsed, convert_options=kinds)
    return [(name, found.column(place).to_pylist()) for place, name in enumerate(found.column_names)]


def _of_json(path: Path) -> list[tuple[str, list[Any]]]:
    """Keys of JSON lines and what each line has there, as it is written: no date is made of a text like one."""
    records: list[dict[str, Any]] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(codecs.BOM_UTF8).strip()
            if not text:
                continue
            record = parse_json(text, f"{path}: line {number}")
            if not isinstance(record, dict):
                raise DataError(f"{path}: line {number}: no object; give one such as {_EXAMPLE}")
            records.append(record)
    if not records:
        raise DataError(f"{path}: no line; give one for each image, such as {_EXAMPLE}")
    names = dict.fromkeys(name for record in records for name in record)
    return [(name, [record.get(name) for record in records]) for name in names]


def _texts(path: Path, table: dict[str, list[Any]], wanted: Sequence[str]) -> list[str]:
    """The column of one of the wanted names, as text. Raises DataError where none is there, or one holds lists."""
    for name in wanted:
        if name in table:
            many = next((cell for cell in table[name] if isinstance(cell, (list, dict))), None)
            if many is not None:
                raise DataError(
                    f"{path}: column {name} holds {many}: several labels for an image are not learned here; give each "
                    "image one class"
                )
            return [_text(cell) for cell in table[name]]
    raise DataError(f"{path}: no column {' or '.join(wanted)} among {', '.join(table)}; rename the one you want")


def _text(cell: Any) -> str:
    """A cell as text, the same for 1 and 1.0."""
    whole = int(cell) if isinstance(cell, float) and cell.is_integer() else cell
    return "" if whole is None else str(whole).strip()


def _source(
    path: Path,
    table: dict[str, list[Any]],
    files: Sequence[str],
    labels: Sequence[str],
    names: tuple[str, ...],
    rows: Sequence[int],
) -> Source:
    base = path.parent.resolve()
    problems, kept, seen = [], [], set[str]()
    for row in rows:
        problem = _fault(base, files[row], labels[row], files[row] in seen)
        seen.add(files[row])
        if problem is None:
            kept.append(row)
        else:
            problems.append(Problem(files[row] or f"line {row + 2}", *problem, fatal=True))
    ids, numbers = tuple(files[row] for row in kept), tuple(names.index(labels[row]) for row in kept)
    return Source(
        path.stem,
        ids,
        numbers,
        names,
        lambda row: open_image(base / ids[row]),
        (*problems, *unused_classes(path.name, numbers, names)),
        columns=lambda: {name: partial(_of_rows, cells, kept) for name, cells in table.items()},
    )


def _of_rows(cells: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [cells[row] for row in rows]


def _fault(base: Path, file: str, label: str, again: bool) -> tuple[str, str] | None:
    """Cause and remedy for a line that cannot be used. Files outside the list's folder are not the data set's."""
    if not file:
        return "the line names no file", "name one, or remove the line"
    if not label:
        return "no label", "label the image, or remove its line"
    if again:
        return "named by two lines", "keep one of them"
    if not (base / file).resolve().is_relative_to(base):
        return "lies outside the folder of the list", "put the list above its images"
    return None
