"""TIFF files of every kind, written byte by byte (TIFF 6.0; predictor 3: Adobe Photoshop TIFF Technical Note 3)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CODECS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773, "zstd": 50000}
FORMATS = {"u": 1, "i": 2, "f": 3}  # SampleFormat by numpy's kind
LAYOUTS = {"grey": 1, "grey+alpha": 2, "RGB": 3, "RGBA": 4}


class Variant(NamedTuple):
    """One way to store the same picture."""

    dtype: str  # numpy's, without byte order
    layout: str  # of LAYOUTS
    order: str  # "<" or ">"
    codec: str  # of CODECS
    predictor: int  # 1: none, 2: differences, 3: of floats
    planar: bool

    def __str__(self) -> str:
        planes = "planes" if self.planar else "pixels"
        return f"{self.dtype}-{self.layout}-{self.order}-{self.codec}-p{self.predictor}-{planes}"


def variants() -> Iterator[Variant]:
    """672: 6 sample types x 7 layouts and planes x 2 byte orders x 8 codecs and predictors."""
    for dtype, layout, order, codec in product(("u1", "u2", "i2", "u4", "i4", "f4"), LAYOUTS, "<>", CODECS):
        difference = 3 if dtype == "f4" else 2
        for predictor in (1,) if codec in ("none", "packbits") else (1, difference):
            for planar in (False,) if layout == "grey" else (False, True):
                yield Variant(dtype, layout, order, codec, predictor, planar)


def tiff(samples: NDArray[Any], variant: Variant, rows_per_strip: int = 8, extra: int = 2) -> bytes:
    """The file of samples (H, W, channels). `extra`: what an alpha channel is, 2 or 1 where colours hold it already."""
    height, width, channels = samples.shape
    kind = np.dtype(variant.order + variant.dtype)
    planes = [samples[..., [band]] for band in range(channels)] if variant.planar else [samples]
    strips = [
        _packed(_predicted(plane[top : top + rows_per_strip].astype(kind), variant), variant.codec)
        for plane in planes
        for top in range(0, height, rows_per_strip)
    ]
    bits = kind.itemsize * 8
    tags: list[tuple[int, int, list[int]]] = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [bits] * channels),
        (259, 3, [CODECS[variant.codec]]),
        (262, 3, [2 if channels > 2 else 1]),
        (273, 4, [0] * len(strips)),
        (277, 3, [channels]),
        (278, 3, [rows_per_strip]),
        (279, 4, [len(strip) for strip in strips]),
        (284, 3, [2 if variant.planar else 1]),
        (317, 3, [variant.predictor]),
        *([(338, 3, [extra])] if channels in (2, 4) else []),
        (339, 3, [FORMATS[kind.kind]] * channels),
    ]
    e = variant.order
    size = {3: 2, 4: 4}
    start = 8 + 2 + 12 * len(tags) + 4
    outside = sum(size[t] * len(v) for _, t, v in tags if size[t] * len(v) > 4)
    places = start + outside + np.cumsum([0, *map(len, strips)])[:-1]
    ifd, beyond = struct.pack(f"{e}H", len(tags)), b""
    for tag, code, values in tags:
        values = places.tolist() if tag == 273 else values
        packed = struct.pack(f"{e}{len(values)}{'H' if code == 3 else 'I'}", *values)
        if len(packed) > 4:
            ifd += struct.pack(f"{e}HHII", tag, code, len(values), start + len(beyond))
            beyond += packed
        else:
            ifd += struct.pack(f"{e}HHI", tag, code, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if e == "<" else b"MM\0*") + struct.pack(f"{e}I", 8)
    return head + ifd + bytes(4) + beyond + b"".join(strips)


def _predicted(strip: NDArray[Any], variant: Variant) -> bytes:
    if variant.predictor == 2:
        first = strip.copy()
        first[:, 1:] = strip[:, 1:] - strip[:, :-1]  # wraps around
        return first.tobytes()
    if variant.predictor == 3:
        height, width, channels = strip.shape
        big = strip.astype(strip.dtype.newbyteorder(">")).tobytes()
        rows = np.frombuffer(big, np.uint8).reshape(height, width * channels, strip.itemsize)
        planes = rows.transpose(0, 2, 1).reshape(height, -1)  # all first bytes, then all second ones, ...
        first = planes.copy()
        first[:, channels:] = planes[:, channels:] - planes[:, :-channels]
        return first.tobytes()
    return strip.tobytes()


def _packed(data: bytes, codec: str) -> bytes:
    if codec == "deflate":
        return zlib.compress(data)
    if codec == "zstd":
        import pyarrow as pa

        return pa.Codec("zstd").compress(data, asbytes=True)
    if codec == "packbits":  # literal runs alone
        return b"".join(bytes([len(p) - 1]) + p for p in (data[i : i + 128] for i in range(0, len(data), 128)))
    return _lzw(data) if codec == "lzw" else data


def _lzw(data: bytes) -> bytes:
    """Section 13: codes of 9 to 12 bits, most significant bit first, one bit more a code early."""
    clear, end = 256, 257
    table: dict[bytes, int] = {bytes([value]): value for value in range(256)}
    width, found, value, count, word = 9, 258, 0, 0, b""

    def put(code: int) -> None:
        nonlocal value, count
        value, count = value << width | code, count + width

    put(clear)
    for byte in data:
        longer = word + bytes([byte])
        if longer in table:
            word = longer
            continue
        put(table[word])
        table[longer] = found
        found += 1
        width = max(width, found.bit_length() if found + 1 >> width else width)
        if found == 4094:
            put(clear)
            table = {bytes([value]): value for value in range(256)}
            width, found = 9, 258
        word = bytes([byte])
    if word:
        put(table[word])
        found += 1
        width = max(width, found.bit_length() if found + 1 >> width else width)
    put(end)
    pad = -count % 8
    return (value << pad).to_bytes((count + pad) // 8, "big")
