"""Everything that loading checks, before any compute and without stopping at the first error."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..engine.memory import large_array, require_memory
from ..engine.store import commit_bytes
from ..engine.text import shown
from ..errors import DataError, UsageError
from .duplicates import Part, find_duplicates, shared_problems
from .groups import suggested
from .images import content_hash, square
from .listed import Source
from .near_duplicates import SIDE, thumbnail
from .problems import Problem, aligned, csv_cell
from .reading import common_side, read_headers, read_pixels
from .selection import (
    HOLDOUT,
    Chosen,
    How,
    Selection,
    check_arguments,
    check_classes,
    refuse_shared_groups,
    select,
    with_classes,
)
from .sources import default_root

_COLUMNS = ("split", "file", "severity", "cause", "remedy")  # of the CSV file
_SPLITS: dict[How, str] = {
    "own": "the data set's own",
    "given": "test images named apart",
    "holdout": "a stratified part of DATA is held out",
}


@dataclass(frozen=True)
class PartInspection:
    """One of train and test: what it holds, and all that is wrong with it."""

    split: str  # "train" or "test"
    name: str
    licence: str
    images: int  # that were looked at
    usable: int  # of them
    classes: dict[str, int]  # images of each class, class names in their order
    sides: tuple[int, int, int]  # px: smallest, median and largest shorter side; zeros where no image is readable
    formats: dict[str, int]  # "PNG RGB" and so on, the most frequent first
    groups: int  # that the images are of; 0 where none were given
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found in DATA."""

    data: str
    how: How
    size: int  # px at which the images would be loaded
    train: PartInspection
    test: PartInspection

    @property
    def usable(self) -> bool:
        """Whether `load_splits` would load it with the same arguments: no problem is fatal."""
        return not any(problem.fatal for _, problem in self._problems())

    def _problems(self) -> list[tuple[str, Problem]]:
        """(split, problem), the fatal ones first, else in the order found."""
        found = [(part.split, problem) for part in (self.train, self.test) for problem in part.problems]
        return sorted(found, key=lambda item: not item[1].fatal)

    def table(self) -> str:
        """A summary and a row for every problem, for a terminal: aligned, names escaped, without a last line break."""
        found = self._problems()
        fatal = sum(problem.fatal for _, problem in found)
        verdict = "usable" if self.usable else "not usable as it is"
        lines = [f"{shown(self.data)}: {verdict}; {fatal} fatal problem(s), {len(found) - fatal} to know of"]
        rows = [("split", _SPLITS[self.how]), ("size", f"{self.size} px")]
        for part in (self.train, self.test):
            low, median, high = part.sides
            classes = ", ".join(f"{name} {count}" for name, count in part.classes.items())
            formats = ", ".join(f"{name} {count}" for name, count in part.formats.items())
            rows += [
                (part.split, f"{part.usable} of {part.images} images of {part.name} can be decoded"),
                ("  classes", f"{len(part.classes)}: {classes}"),
                ("  shorter side", f"{low} / {median} / {high} px (min / median / max)"),
                ("  formats", formats),
                *([("  groups", f"{part.groups}")] if part.groups else []),
                *([("  licence", part.licence)] if part.licence else []),
            ]
        lines += aligned(rows)
        if found:
            header = ("split", "severity", "file", "cause", "remedy")
            lines += ["", *aligned([header, *(_row(split, problem) for split, problem in found)], indent="")]
        return "\n".join(lines)

    def write_csv(self, path: Path) -> None:
        """One line for every problem: split, file, severity, cause, remedy. No cell can run as a formula.

        The file is whole or absent. Raises DiskError.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(_COLUMNS)
        for split, problem in self._problems():
            _, severity, file, cause, remedy = _row(split, problem)
            writer.writerow([csv_cell(cell) for cell in (split, file, severity, cause, remedy)])
        commit_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))

    def record(self) -> dict[str, Any]:
        """The same as JSON data."""
        return {"usable": self.usable, **asdict(self)}


def require_own_csv(path: Path) -> None:
    """Raise UsageError for a file that `write_csv` would replace and did not write: labels are .csv files too."""
    begins = ",".join(_COLUMNS).encode()
    try:
        with path.open("rb") as file:
            if file.read(len(begins)) == begins:
                return
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"--csv {path}: cannot be read ({error.strerror}); give another name.") from error
    raise UsageError(f"--csv {path}: exists already and is no table of problems; give another name.")


def _row(split: str, problem: Problem) -> tuple[str, str, str, str, str]:
    return split, "fatal" if problem.fatal else "note", problem.file, problem.cause, problem.remedy


def inspect(
    data: str,
    *,
    test: str | None = None,
    size: int | None = None,
    limit: int | None = None,
    test_limit: int | None = None,
    holdout: float = HOLDOUT,
    seed: int = 0,
    root: str | Path | None = None,
    drop_duplicates: bool = False,
    allow_near_duplicates: bool = False,
    balanced: bool = False,
    per_class: int | None = None,
    groups: str | None = None,
    licence: str | None = None,
) -> Inspection:
    """Check all that `load_splits` checks, with its arguments, and collect every problem instead of the first.

    Without `groups` it says where file names suggest some. Images are decoded one at a time; 3 KB of each are kept, in
    a file where memory is short.
    Raises UsageError for what names no data or means nothing, and DataError where DATA cannot be opened or parted.
    """
    check_arguments(size, holdout, limit=limit, test_limit=test_limit)
    folder = default_root(root)
    chosen = select(
        data, test, limit=limit, test_limit=test_limit, holdout=holdout, seed=seed, root=folder,
        chosen=Chosen(balanced=balanced, per_class=per_class), groups=groups, licence=licence,
    )  # fmt: skip
    general: list[Problem] = []  # of no single file
    test_source = chosen.test

    def check(step: Callable[[], Source | None]) -> Source | None:
        try:
            return step()
        except DataError as error:
            cause, _, remedy = str(error).rpartition("; ")
            general.append(Problem(chosen.train.name, cause, remedy, fatal=True))
            return None

    check(lambda: check_classes(chosen.train))
    test_source = check(lambda: with_classes(chosen.test, chosen.train)) or test_source
    check(lambda: refuse_shared_groups(chosen))
    if groups is None:
        general += _suggested_groups(chosen)
    agree = test_source.class_names == chosen.train.class_names
    side, train, part = _look("train", chosen.train, chosen.train_rows, size)
    _, tested, test_part = _look("test", test_source, chosen.test_rows, side)
    found = find_duplicates(part, test_part if agree else None, chosen.train.class_names)
    allow_near = allow_near_duplicates or (chosen.published and not drop_duplicates)
    shared = shared_problems(test_part, found.shared, drop=drop_duplicates, allow_near=allow_near)
    lost = {item.row for item in found.shared if drop_duplicates and not (item.near and allow_near)}
    if test_part.ids and len(lost) == len(test_part.ids):
        cause = "every test image is a training image too"
        general.append(Problem(tested.name, cause, "give other test images", fatal=True))
    return Inspection(
        data,
        chosen.how,
        side,
        replace(train, problems=(*general, *train.problems, *found.train)),
        replace(tested, problems=(*tested.problems, *found.test, *shared)),
    )


def _suggested_groups(chosen: Selection) -> list[Problem]:
    """What `--groups` may be, where file names suggest it."""
    train, rows = chosen.train, chosen.train_rows
    tested = [chosen.test.ids[row] for row in chosen.test_rows]
    found = suggested([train.ids[row] for row in rows], [train.labels[row] for row in rows], tested)
    if found is None:
        return []
    cause = f"file names suggest {found.groups} groups, {found.across} of them in train and test"
    remedy = f"give --groups '{found.pattern}' if each is one patient, part, camera or scene"
    return [Problem(chosen.train.name, cause, remedy, fatal=False)]


def _look(split: str, source: Source, rows: Sequence[int], size: int | None) -> tuple[int, PartInspection, Part]:
    """Read one part; the side that the images would get, what they are, and what the search for duplicates needs."""
    problems = list(source.problems)
    headers = read_headers(source, rows, problems)
    _, side = common_side(source, headers, size, problems)
    one = 20 * side**2  # bytes: the pixels, and as float32 on their way to that side
    require_memory(one, f"{source.name}: an image at {side} px needs", "give a smaller --size")
    readable = [row for row in rows if row in headers]
    used: list[int] = []
    hashes: list[str] = []
    thumbnails = torch.from_numpy(large_array((len(readable), 3, SIDE, SIDE)))
    for place, pixels in read_pixels(source, readable, problems):
        thumbnails[len(used)] = thumbnail(square(pixels, side))
        hashes.append(content_hash(pixels))
        used.append(readable[place])
    if not rows:
        cause = "no images"
        problems.append(Problem(source.name, cause, "give a folder of class folders that hold images", fatal=True))
    labels = [source.labels[row] for row in used]
    counts = Counter(source.labels[row] for row in rows)
    sides = sorted(header.side for header in headers.values()) or [0]
    formats = Counter(f"{header.format} {header.mode}" for header in headers.values())
    found = PartInspection(
        split=split,
        name=source.name,
        licence=source.licence,
        images=len(rows),
        usable=len(used),
        classes={name: counts[label] for label, name in enumerate(source.class_names)},
        sides=(sides[0], round(statistics.median(sides)), sides[-1]),
        formats=dict(formats.most_common()),
        groups=len({source.groups[row] for row in rows}) if source.groups else 0,
        problems=tuple(problems),
    )
    return side, found, Part([source.ids[row] for row in used], hashes, labels, thumbnails[: len(used)])
