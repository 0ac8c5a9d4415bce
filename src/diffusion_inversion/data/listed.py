"""Labelled images that are listed but not decoded: what every kind of DATA becomes."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, DinvError, DiskError, UsageError
from .licences import read_licence
from .problems import Problem

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
Columns = Mapping[str, Callable[[], Sequence[Any]]]  # of a table, and what reads the values of each


@dataclass(frozen=True)
class Source:
    """Labelled images that are listed but not decoded: `open(row)` reads one header.

    columns: those that a table of the images has beside them, once they are asked for.
    groups: what each image is of (a patient, a scene), where that was asked for: groups.py.
    """

    name: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    open: Callable[[int], Image.Image]
    problems: tuple[Problem, ...] = ()
    licence: str = ""
    columns: Callable[[], Columns] = dict
    groups: tuple[str, ...] = ()


def with_licence(source: Source, given: str) -> Source:
    """The source under a licence that was given. Raises UsageError where it names another one itself."""
    own, other = read_licence(source.licence), read_licence(given)
    if source.licence and (own.name or own.text) != (other.name or other.text):
        raise UsageError(
            f"--licence {given}: DATA {source.name} names its own, {source.licence}. Leave --licence out: it is for "
            "DATA that names none."
        )
    return replace(source, licence=source.licence or given)


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}/{row:06d}" for row in range(count))


def unused_classes(split: str, labels: Sequence[int], class_names: Sequence[str]) -> tuple[Problem, ...]:
    used = set(labels)
    return tuple(
        Problem(f"{split}: class {name}", "class without images", "add images, or leave the class out", fatal=False)
        for label, name in enumerate(class_names)
        if label not in used
    )


@contextlib.contextmanager
def reading(data: str, remedy: str, kept_in: Path | None = None) -> Iterator[None]:
    """Name the data set in what its library raises; keep the library's prints off stdout, which is for results.

    `kept_in`: the folder that is written to. Raises DiskError where it cannot be, else DataError.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except DinvError:
        raise
    except Exception as error:  # Each library has its own errors for no network, damaged files and unknown ids.
        # `datasets` wraps the cause: "An error occurred while generating the dataset".
        cause = error.__cause__ or error
        disk = next((e for e in (cause, error) if isinstance(e, OSError) and e.errno in _NOT_WRITABLE), None)
        if kept_in is not None and disk is not None:
            raise DiskError(
                f"{data}: {disk.filename or kept_in} cannot be written ({disk.strerror}); give another folder by "
                "--root or $DINV_DATA, and by $HF_HOME for what the hub keeps"
            ) from error
        raise DataError(f"{data}: cannot be read: {' '.join(str(cause).split())}; {remedy}") from error
