"""Read the images of a source one at a time: first all headers, which give the size, then the pixels."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine.progress import track
from .decode import UnusableImageError, decode_rgb, naming_causes, shorter_side
from .listed import Source
from .problems import Problem

MAX_NATIVE_SIZE = 512
_QUIET = 2000  # images; fewer are read without showing progress


@dataclass(frozen=True)
class Header:
    """What a file says about itself before its pixels are decoded."""

    side: int  # px: the shorter one
    format: str  # "PNG", ...; "array" for data sets that are no files
    mode: str  # Pillow's: "RGB", "L", "CMYK", ...


def read_headers(source: Source, rows: Sequence[int], problems: list[Problem]) -> dict[int, Header]:
    """Headers by row. Rows that cannot be opened, or cost too much to decode, are left out and added to `problems`."""
    found: dict[int, Header] = {}
    kinds: dict[Header, Header] = {}  # most are equal, and one stands for them
    for row in rows:
        try:
            with naming_causes(), source.open(row) as image:
                header = Header(shorter_side(image), image.format or "array", image.mode)
                found[row] = kinds.setdefault(header, header)
        except UnusableImageError as error:
            problems.append(Problem(source.ids[row], error.cause, error.remedy, fatal=True))
    return found


def common_side(
    source: Source, headers: Mapping[int, Header], size: int | None, problems: list[Problem]
) -> tuple[int, int]:
    """Native size and the side in px at which all are used: `size`, else the smallest image's, at most 512."""
    sides = {row: header.side for row, header in headers.items()}
    native = min(sides.values(), default=1)
    if size is None and sides and 2 * native < statistics.median(sides.values()):
        smallest = source.ids[min(sides, key=lambda row: sides[row])]
        problems.append(Problem(smallest, f"its {native} px set the size of all images", "give --size", fatal=False))
    return native, size or min(native, MAX_NATIVE_SIZE)


def read_pixels(
    source: Source, rows: Sequence[int], problems: list[Problem]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (place in rows, (H, W, 3) uint8 RGB), one image in memory at a time; the rest as in `read_headers`."""
    quiet: AbstractContextManager[Callable[[int], None]] = nullcontext(lambda done: None)
    with quiet if len(rows) <= _QUIET else track("decode", len(rows)) as advance:
        for place, row in enumerate(rows):
            advance(1)
            try:
                with naming_causes(), source.open(row) as image:
                    pixels, notes = decode_rgb(image)
            except UnusableImageError as error:
                problems.append(Problem(source.ids[row], error.cause, error.remedy, fatal=True))
                continue
            problems += [Problem(source.ids[row], note.cause, note.remedy, fatal=False) for note in notes]
            yield place, pixels
