"""Labelled images that are listed but not decoded: what every kind of DATA becomes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from .errors import DataError, DinvError
from .problems import Problem


@dataclass(frozen=True)
class Source:
    """Labelled images that are listed but not decoded: `open(row)` reads one header."""

    name: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    open: Callable[[int], Image.Image]
    problems: tuple[Problem, ...] = ()
    licence: str = ""


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
def reading(data: str, remedy: str) -> Iterator[None]:
    """Name the data set in what its library raises; keep the library's prints off stdout, which is for results."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except DinvError:
        raise
    except Exception as error:  # Each library has its own errors for no network, damaged files and unknown ids.
        # `datasets` wraps the cause: "An error occurred while generating the dataset".
        cause = error.__cause__ or error
        raise DataError(f"{data}: cannot be read: {' '.join(str(cause).split())}; {remedy}") from error
