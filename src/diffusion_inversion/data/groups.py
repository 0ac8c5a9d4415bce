"""What images are of, beside their class: groups that no split may part (a patient, a scene), attributes."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError, UsageError
from .beside import TABLES_BESIDE
from .listed import Source, reading

# File names that say what an image is of: the picture that a box is cut from (boxes.py); what stands before the first _
# or -; what ends with the first number; what stands before the last _ or -.
_USUAL = (r"^([^#]+)#", r"^([^_-]+)[_-]", r"^(\D*\d+)\D+\d", r"^(.+)[_-][^_-]+$")
_FILE_REMEDY = "give a CSV file of image name and value in each line"
Option = Literal["groups", "attributes", "balance"]
_CALLED: dict[Option, str] = {"groups": "group", "attributes": "value", "balance": "value"}
_FEWEST = 3  # groups that file names may suggest
_NAMED = 3  # ids or names in a message


def with_groups(source: Source, given: str) -> Source:
    """The source with the group of each image, as `--groups` gives it: `values_of`. Raises UsageError, DataError."""
    groups = values_of(source, given, "groups")
    if not os.path.isfile(given) and given in source.columns():  # of some use, other than the scan says
        others = [problem for problem in source.problems if _file_name(problem.file) not in TABLES_BESIDE]
        source = replace(source, problems=tuple(others))
    return replace(source, groups=groups)


def values_of(source: Source, given: str, option: Option) -> tuple[str, ...]:
    """What each image of a source is of, as an option gives it.

    An existing file is a CSV of image (its id, or its file name) and value; else a column of the table of the images
    is meant, where it has one of that name; else a regular expression, which is searched for in the file name: its
    first capture group is the value, or the whole match where it has none. Raises UsageError for what is none of
    these, DataError for images without a value.
    """
    what = f"--{option} {given}"
    if os.path.isfile(given):
        values = _of_file(source, Path(given), what)
    elif given in (columns := source.columns()):
        values = [_text(value) for value in columns[given]()]
    else:
        values = _of_names(source, given, what)
    without = [image_id for image_id, value in zip(source.ids, values, strict=True) if not value]
    if without:
        own = ", its own where it goes with no other" if option == "groups" else ""
        raise DataError(
            f"{what}: {len(without)} of {len(values)} images of {source.name} have no {_CALLED[option]} "
            f"({_some(without)}); give every image one{own}"
        )
    return tuple(values)


def _text(value: Any) -> str:
    """A value of a column; "" for none."""
    return "" if value is None or value != value else str(value).strip()  # NaN differs from itself


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _of_file(source: Source, path: Path, what: str) -> list[str]:
    value_of: dict[str, str] = {}
    with reading(what, _FILE_REMEDY), path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        for row in rows:
            name, value = (cell.strip() for cell in row) if len(row) == 2 else ("", "")
            if row and not name:
                raise DataError(f"{what}: line {rows.line_num} is no image name and value; {_FILE_REMEDY}")
            if value_of.setdefault(name, value) != value:
                raise DataError(f"{what}: {name} has {value_of[name]} and {value}; give each image one")
    return [value_of.get(image_id) or value_of.get(_file_name(image_id), "") for image_id in source.ids]


def _of_names(source: Source, given: str, what: str) -> list[str]:
    columns = ", ".join(source.columns()) or "none"
    if "/" in given or given.endswith(".csv"):
        raise UsageError(f"{what}: no such file; {_FILE_REMEDY}")
    try:
        pattern = re.compile(given)
    except re.error as error:
        raise UsageError(
            f"{what}: no file, no column of {source.name} (its columns: {columns}) and no regular "
            f"expression ({error}); give one of them"
        ) from error
    found = [pattern.search(_file_name(image_id)) for image_id in source.ids]
    if not any(found):
        raise UsageError(
            f"{what}: no file, no column of {source.name} (its columns: {columns}), and found in none of "
            f"its file names, such as {_some([_file_name(image_id) for image_id in source.ids])}; give one of them"
        )
    return [match[1 if pattern.groups else 0] or "" if match else "" for match in found]


def _file_name(image_id: str) -> str:
    return image_id.rpartition("/")[2]


def refuse_one_group(source: Source) -> None:
    """Raise DataError where all images are of one group: nothing can be tested on another."""
    if len({*source.groups}) == 1:
        raise DataError(
            f"{source.name}: all {len(source.ids)} images are of one group, {source.groups[0]}; give --groups that "
            "tells two or more apart, or leave it out"
        )


@dataclass(frozen=True)
class Suggestion:
    """A regular expression that parts the file names of images into groups."""

    pattern: str
    groups: int
    across: int  # groups that are in train and test


def suggested(ids: Sequence[str], labels: Sequence[int], tested_ids: Sequence[str]) -> Suggestion | None:
    """The first usual pattern by which file names go together: every name has one, and no class has one alone.

    ids, labels: of the training images.
    """
    names, tested = ([_file_name(one) for one in part] for part in (ids, tested_ids))
    for pattern in _USUAL:
        found = [re.search(pattern, name) for name in (*names, *tested)]
        groups = [match[1] for match in found if match]
        if len(groups) < len(found) or not _FEWEST <= len({*groups}) <= len(groups) / 2:
            continue
        own = groups[: len(names)]
        pairs = {*zip(labels, own, strict=True)}
        if min(Counter(label for label, _ in pairs).values(), default=0) > 1:
            return Suggestion(pattern, len({*groups}), len({*own} & {*groups[len(names) :]}))
    return None
