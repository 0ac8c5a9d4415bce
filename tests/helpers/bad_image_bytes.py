"""Writers for image files that no library writes: 16-bit colour, odd TIFF samples, ICC profiles, bombs."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
RNG = np.random.default_rng(3)
NOISE: Pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
# Large flat blocks, different in every corner: survives JPEG, and no turn or mirror image of it is itself.
BLOCKS: Pixels = np.repeat(
    np.repeat(np.array([[(250, 10, 10), (10, 250, 10)], [(10, 10, 250), (250, 250, 10)]], np.uint8), 16, 0), 16, 1
)


def encoded(image: Image.Image | NDArray[Any], format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: NDArray[Any], colour_type: int, *extra: bytes, size: tuple[int, int] | None = None) -> bytes:
    """values (H, W) or (H, W, C), 8 or 16 bits; colour_type 0 grey, 2 RGB, 4 grey + alpha, 6 RGBA."""
    height, width = values.shape[:2]
    bits = 8 * values.dtype.itemsize
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, colour_type, 0, 0, 0)
    big = values.astype(values.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + row.tobytes() for row in big)
    body = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    values: NDArray[Any],
    photometric: int,
    sample_format: int = 1,
    extra: Sequence[tuple[int, int]] = (),
    size: tuple[int, int] | None = None,
) -> bytes:
    """Uncompressed little-endian TIFF 6.0 of one strip; values (H, W) or (H, W, C); size claims another one."""
    height, width = values.shape[:2]
    bands = 1 if values.ndim == 2 else values.shape[2]
    bits = 8 * values.dtype.itemsize
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    wide, high = size or (width, height)
    short, long = 3, 4
    tags: list[tuple[int, int, list[int]]] = [
        (256, long, [wide]),
        (257, long, [high]),
        (258, short, [bits] * bands),
        (259, short, [1]),
        (262, short, [photometric]),
        (273, long, [8]),
        (277, short, [bands]),
        (278, long, [high]),
        (279, long, [len(data)]),
        (339, short, [sample_format] * bands),
        *((tag, short, [value]) for tag, value in extra),
    ]
    entries, outside = b"", b""
    directory = 8 + len(data)
    after = directory + 2 + 12 * len(tags) + 4
    for tag, kind, content in sorted(tags):
        packed = struct.pack(f"<{len(content)}{'H' if kind == short else 'I'}", *content)
        if len(packed) > 4:
            place = struct.pack("<I", after + len(outside))
            outside += packed
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, len(content)) + place
    head = b"II*\0" + struct.pack("<I", directory) + data
    return head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + outside


def linear_profile(space: bytes = b"RGB ") -> bytes:
    """ICC profile, version 2: sRGB's primaries (adapted to D50) with linear light instead of sRGB's curve."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256) + b"\0\0"  # gamma 1.0 as u8Fixed8
    text = b"text\0\0\0\0none\0\0\0\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 7) + b"linear\0" + b"\0" * 79
    tags = {b"desc": description + b"\0" * (-len(description) % 4), b"cprt": text, b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if space == b"RGB ":
        primaries = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)]
        tags |= {name: xyz(*value) for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
        tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
    else:
        tags[b"kTRC"] = curve
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(">I4xI4s4s4s", 132 + 12 * len(tags) + len(body), 0x02100000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


def srgb_encoded(values: Pixels) -> NDArray[np.float64]:
    """Linear light 0..255 => sRGB 0..255 (IEC 61966-2-1)."""
    light = values / 255
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def without_adobe(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def turned(upright: Pixels, orientation: int) -> Pixels:
    """How a camera that wrote this EXIF orientation stored the picture (TIFF 6.0, tag 274; checked by hand)."""
    top_left, mirrored = upright, upright[:, ::-1]
    stored = {
        1: top_left,
        2: mirrored,
        3: top_left[::-1, ::-1],
        4: top_left[::-1],
        5: top_left.transpose(1, 0, 2),  # row 0 of the file is the left side, column 0 the top
        6: np.rot90(top_left),  # shown after a quarter turn clockwise
        7: top_left[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(top_left, -1),  # shown after a quarter turn the other way
    }[orientation]
    return np.ascontiguousarray(stored)


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def webp_header(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas + b"VP8L" + struct.pack("<I", 8) + b"\x2f" * 8
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_header(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0;"


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 200, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(NOISE, "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)
