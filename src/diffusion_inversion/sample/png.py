"""Images as PNG: how stage 2 writes them, and how many are read at a time, each checked before it is decoded."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.decode import MAX_PIXELS
from ..engine.memory import large_array
from ..engine.untrusted import inside
from ..errors import DataError

READERS = 4  # threads: what takes long in a file of more than a few kB (reading, hash, zlib) needs no Python lock
_AT_ONCE = 64  # files that a thread takes at a time
# PNG specification, 5.2 and 11.2.2: width, height, bit depth and colour type follow the signature.
_HEADER, _SIGNATURE, _RGB = struct.Struct(">16sIIBB"), b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 2


def encode_png(image: Tensor) -> bytes:
    """uint8 (3, H, W) => PNG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def read_png(folder: Path, name: str, remedy: str) -> bytes:
    """The file of this name below `folder`. Raises DataError, which ends with `remedy`, where it is missing."""
    path = inside(folder, name)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: listed in the manifest but missing. {remedy}") from error


def read_pngs(folder: Path, names: Sequence[str], hashes: Sequence[str], remedy: str) -> Tensor:
    """The images below `folder` of these names, uint8 (N, 3, H, W) RGB in their order, all of the first one's size.

    As `decode_pngs`; the files are those of these names.
    """

    def part(start: int) -> Iterator[tuple[int, Path, bytes]]:
        for place in range(start, min(start + _AT_ONCE, len(names))):
            yield place, folder / names[place], read_png(folder, names[place], remedy)

    return decode_pngs([partial(part, start) for start in range(0, len(names), _AT_ONCE)], hashes, remedy)


def decode_pngs(
    parts: Sequence[Callable[[], Iterator[tuple[int, Path, bytes]]]], hashes: Sequence[str], remedy: str
) -> Tensor:
    """The images that `parts` give with their places, uint8 (N, 3, H, W) RGB, all of one size; parts go side by side.

    Nothing but the result and an image for each thread is in memory. Raises DataError, which ends with `remedy`, for
    the first image that is missing, does not have its hash (sha256 hex), or is no PNG of that size.
    """
    from PIL.PngImagePlugin import PngImageFile

    def checked(part: Callable[[], Iterator[tuple[int, Path, bytes]]]) -> Iterator[tuple[int, Path, bytes]]:
        for place, path, data in part():
            if hashlib.sha256(data).hexdigest() != hashes[place]:
                raise DataError(f"{path}: changed since it was written. {remedy}")
            yield place, path, data

    if (first := next((one for part in parts for one in checked(part)), None)) is None:
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    height, width = _size(*first[1:], remedy)
    pixels = large_array((len(hashes), 3, height, width))
    filled = np.zeros(len(hashes), bool)

    def read(part: Callable[[], Iterator[tuple[int, Path, bytes]]]) -> None:
        for place, path, data in checked(part):
            size = _size(path, data, remedy)
            if size != (height, width):
                raise DataError(f"{path}: {size[1]} x {size[0]} px, others {width} x {height}. {remedy}")
            try:
                pixels[place] = np.asarray(PngImageFile(io.BytesIO(data))).transpose(2, 0, 1)
            except (OSError, SyntaxError, ValueError) as error:
                raise DataError(f"{path}: cannot be decoded ({error}). {remedy}") from error
            filled[place] = True

    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(read, parts):  # in order, so the error is the first one's
            pass
    if not filled.all():
        raise DataError(f"{first[1].parent}: {int((~filled).sum())} images are in no file that is listed. {remedy}")
    return torch.from_numpy(pixels)


def _size(path: Path, data: bytes, remedy: str) -> tuple[int, int]:
    """Height and width by the header, which says what decoding costs. Raises DataError for no PNG of 8-bit RGB."""
    header = data[: _HEADER.size]
    signature, width, height, depth, colour = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
    if (signature, depth, colour) != (_SIGNATURE, 8, _RGB):
        raise DataError(f"{path}: not a PNG of 8-bit RGB. {remedy}")
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width} x {height} px, above {MAX_PIXELS // 10**6} megapixels. {remedy}")
    return height, width
