"""Images as PNG: how stage 2 writes them, and how many files are read at a time, each checked before it is decoded."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.decode import MAX_PIXELS
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


def read_pngs(folder: Path, names: Sequence[str], hashes: Sequence[str], remedy: str) -> Tensor:
    """The images below `folder` of these names, uint8 (N, 3, H, W) RGB in their order, all of the first one's size.

    Nothing but the result and a file for each thread is in memory. Raises DataError, which ends with `remedy`, for the
    first file that is missing, does not have its hash (sha256 hex), or is no PNG of that size.
    """
    from PIL.PngImagePlugin import PngImageFile

    def load(place: int) -> tuple[bytes, tuple[int, int]]:
        path = inside(folder, names[place])
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{path}: listed in the manifest but missing. {remedy}") from error
        if hashlib.sha256(data).hexdigest() != hashes[place]:
            raise DataError(f"{path}: changed since it was written. {remedy}")
        return data, _size(path, data, remedy)

    if not names:
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    height, width = load(0)[1]
    pixels = np.empty((len(names), 3, height, width), np.uint8)

    def read(start: int) -> None:
        for place in range(start, min(start + _AT_ONCE, len(names))):
            data, size = load(place)
            if size != (height, width):
                found = f"{size[1]} x {size[0]} px, others {width} x {height}"
                raise DataError(f"{folder / names[place]}: {found}. {remedy}")
            try:
                pixels[place] = np.asarray(PngImageFile(io.BytesIO(data))).transpose(2, 0, 1)
            except (OSError, SyntaxError, ValueError) as error:
                raise DataError(f"{folder / names[place]}: cannot be decoded ({error}). {remedy}") from error

    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(read, range(0, len(names), _AT_ONCE)):  # in order, so the error is the first file's
            pass
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
