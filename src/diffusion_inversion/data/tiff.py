"""TIFF files that Pillow would read wrongly, and what kind of samples those have that it does not read at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from ..engine.untrusted import LFS_CAUSE, LFS_POINTER, LFS_REMEDY

_WIDTH, _BITS, _PHOTOMETRIC, _CHANNELS, _PLANES, _FORMAT = 256, 258, 262, 277, 284, 339
_SEPARATE = 2
_FORMATS = {1: "unsigned", 2: "signed", 3: "float", 4: "untyped", 5: "complex integer", 6: "complex float"}
_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}
_REMEDY = "save it as PNG or JPEG, or as a TIFF of 8 or 16-bit unsigned grey or RGB"


def read_rightly(image: Image.Image) -> tuple[str, str] | None:
    """Mend how a TIFF that was opened, but not loaded, will be unpacked; other formats stay as they are.

    libtiff hands over samples in the machine's order, and Pillow turns those of big-endian files again
    (python-pillow/Pillow#4621). Uncompressed planes of 16 bits are unpacked as if they had 8.
    Returns cause and remedy where it cannot be mended.
    """
    if image.format != "TIFF":
        return None
    tags: Any = getattr(image, "tag_v2", {})
    wide = _numbers(tags, _BITS, 8)[0] == 16
    planar = _numbers(tags, _PLANES, 1)[0] == _SEPARATE and _numbers(tags, _CHANNELS, 1)[0] > 1
    if planar and image.mode not in ("RGB", "RGBA", "CMYK"):
        return _kind(tags)
    tiles: list[Any] = []
    for tile in getattr(image, "tile", ()):
        codec, extents, offset, args = tile
        mode = args[0] if isinstance(args, tuple) else args
        if codec == "libtiff":
            mode = _native(mode)
        elif planar:
            if mode not in tuple(image.mode):
                return _kind(tags)
            if wide:
                mode = f"{mode};16{'B' if tags.prefix == b'MM' else 'L'}"
        args = (mode, *args[1:]) if isinstance(args, tuple) else mode
        tiles.append(tile._replace(args=args) if hasattr(tile, "_replace") else (codec, extents, offset, args))
    image.tile = tiles  # type: ignore[attr-defined]
    return None


def _native(mode: str) -> str:
    """Pillow's raw mode with its byte order, B for big-endian, replaced by the machine's: "F;32BF" => "F;32NF"."""
    name, _, layout = mode.partition(";")
    return f"{name};{layout.replace('B', 'N')}" if layout[:2] in ("16", "32") else mode


def unread_kind(file: Path | bytes) -> tuple[str, str] | None:
    """Cause and remedy for a Git LFS pointer, or a TIFF whose samples Pillow does not know; None for other files."""
    from PIL import TiffImagePlugin

    try:
        with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as handle:
            head = handle.read(8)
            if head == LFS_POINTER[:8]:
                return LFS_CAUSE, LFS_REMEDY
            if head[:4] not in (b"II*\0", b"MM\0*"):
                return None
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            handle.seek(tags.next)
            tags.load(handle)
            return _kind(tags) if _WIDTH in tags else None  # a directory that was cut off
    except Exception:  # A damaged directory makes Pillow raise nearly any type; then it is no TIFF that we can name.
        return None


def _kind(tags: Any) -> tuple[str, str]:
    channels, planes = _numbers(tags, _CHANNELS, 1)[0], _numbers(tags, _PLANES, 1)[0]
    bits = "/".join(dict.fromkeys(map(str, _numbers(tags, _BITS, 1))))
    sample = _FORMATS.get(_numbers(tags, _FORMAT, 1)[0], "unknown")
    colour = _COLOURS.get(_numbers(tags, _PHOTOMETRIC, 1)[0], "unknown colours")
    apart = " in planes" if planes == _SEPARATE and channels > 1 else ""
    return f"TIFF of {channels} x {bits}-bit {sample} samples ({colour}{apart}): this kind is not read", _REMEDY


def _numbers(tags: Any, tag: int, default: int) -> tuple[int, ...]:
    value = tags.get(tag, default)
    found = tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)
    return found or (default,)
