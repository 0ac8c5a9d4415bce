"""Single image files that are damaged, odd or hostile, each with what must come of it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from bad_image_bytes import (
    BLOCKS,
    NOISE,
    Pixels,
    bmp_header,
    chunk,
    encoded,
    exif,
    gif_header,
    half,
    jpeg_claiming,
    linear_profile,
    png,
    srgb_encoded,
    tiff,
    turned,
    webp_header,
    without_adobe,
)
from numpy.typing import NDArray
from PIL import Image, ImageCms

Verdict = Literal["usable", "noted", "fatal"]


@dataclass(frozen=True)
class BadImage:
    """One case: `make` writes a data set below a folder; class "a" holds what is tested.

    verdict: usable = no problem named; noted = used, with a problem; fatal = nothing is loaded.
    """

    name: str
    make: Callable[[Path], None]
    verdict: Verdict
    cause: str = ""  # must be part of the problem's cause
    pixels: NDArray[Any] | None = None  # (H, W, 3) of the first image, at the size of the smallest
    tolerance: int = 0  # levels
    ids: tuple[str, ...] | None = None  # of the images that are used


def file(name: str, data: bytes, suffix: str, verdict: Verdict, cause: str = "", **expected: Any) -> BadImage:
    def make(folder: Path) -> None:
        (folder / "a").mkdir()
        (folder / "a" / f"x.{suffix}").write_bytes(data)

    return BadImage(name, make, verdict, cause, **expected)


def grey(*values: int) -> Pixels:
    """(1 or 2 rows) grey levels as RGB."""
    side = round(len(values) ** 0.5)
    return np.repeat(np.array(values, np.uint8).reshape(side, side, 1), 3, 2)


RED_CLEAR = np.array([[(255, 0, 0, 255), (255, 0, 0, 128)], [(0, 0, 0, 0), (0, 0, 255, 255)]], np.uint8)
ON_WHITE = np.array([[(255, 0, 0), (255, 127, 127)], [(255, 255, 255), (0, 0, 255)]], np.uint8)
U16 = np.array([[0, 257], [32896, 65535]], np.uint16)
U16_RGB = np.repeat(U16[..., None], 3, 2)
U16_LEVELS = grey(0, 1, 128, 255)
FRAMES = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
FIRST = np.full((4, 4, 3), 10, np.uint8)
PALETTE = Image.fromarray(NOISE).quantize(256)
BOMB = np.zeros((1, 1, 3), np.uint8)
CLEAR_L = np.array([[(0, 255), (0, 0)], [(0, 128), (200, 255)]], np.uint8)


def _palette_alpha() -> bytes:
    image = Image.new("PA", (2, 2))
    image.putpalette([255, 0, 0])
    image.putalpha(Image.fromarray(np.array([[255, 0], [128, 255]], np.uint8)))
    return encoded(image, "TIFF")


PALETTE_ALPHA = _palette_alpha()


def animated(format: str, **options: Any) -> bytes:
    return encoded(FRAMES[0], format, save_all=True, append_images=FRAMES[1:], **options)


def _palette_clear() -> bytes:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return encoded(image.resize((2, 2), 0), "PNG", transparency=1)


DAMAGED = [
    *(
        file(f"truncated {form}", half(encoded(np.tile(NOISE, (16, 16, 1)), form)), suffix, "fatal", "unreadable")
        for form, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"))
    ),
    file("truncated TIFF", half(encoded(NOISE, "TIFF", compression="tiff_lzw")), "tif", "fatal", "unreadable"),
    file("zero bytes", b"", "png", "fatal", "the file is empty"),
    file("text as .jpg", b"not an image\n" * 9, "jpg", "fatal", "no image in a format"),
    file("HTML as .png", b"<html>404</html>", "png", "fatal", "no image in a format"),
    file("SVG as .png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "png", "fatal", "no image in a format"),
    file("PostScript as .png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "png", "fatal", "no image"),
    file("PNG with a flipped bit", encoded(NOISE).replace(b"IDAT", b"IDAU"), "png", "fatal", "unreadable"),
    file("JPEG header alone", encoded(NOISE, "JPEG")[:20], "jpg", "fatal", "unreadable"),
    file("PNG named .jpg", encoded(NOISE), "jpg", "usable", pixels=NOISE),
    file("JPEG with bytes behind its end", encoded(BLOCKS, "JPEG", subsampling=0) + b"x" * 999, "jpg", "usable",
         pixels=BLOCKS, tolerance=24),
]  # fmt: skip

FRAMED = [
    file("animated GIF", animated("GIF"), "gif", "noted", "several frames", pixels=FIRST),
    file("animated PNG", animated("PNG"), "png", "noted", "several frames", pixels=FIRST),
    file("animated WebP", animated("WEBP", lossless=True), "webp", "noted", "several frames", pixels=FIRST),
    file("TIFF of two pages", animated("TIFF"), "tif", "noted", "several frames", pixels=FIRST),
    file("MPO of a phone", animated("MPO"), "jpg", "usable", pixels=FIRST, tolerance=2),
]

MODES = [
    file("grey", encoded(NOISE[..., 0]), "png", "usable", pixels=np.repeat(NOISE[..., :1], 3, 2)),
    file("1 bit", encoded(Image.fromarray(NOISE[..., 0] > 127)), "png", "usable",
         pixels=np.repeat((NOISE[..., :1] > 127).astype(np.uint8) * 255, 3, 2)),
    file("grey TIFF, white is zero", tiff(np.array([[0, 255], [128, 1]], np.uint8), 0), "tif", "usable",
         pixels=grey(255, 0, 127, 254)),
    file("palette", encoded(PALETTE), "png", "usable", pixels=np.asarray(PALETTE.convert("RGB"))),
    file("palette with a clear colour", _palette_clear(), "png", "usable",
         pixels=np.array([[(255, 0, 0), (255, 255, 255)]] * 2, np.uint8)),
    file("palette with alpha (PA)", PALETTE_ALPHA, "tif", "usable",
         pixels=np.array([[(255, 0, 0), (255, 255, 255)], [(255, 127, 127), (255, 0, 0)]], np.uint8)),
    file("RGBA on white", encoded(RED_CLEAR), "png", "usable", pixels=ON_WHITE),
    file("RGBA WebP", encoded(RED_CLEAR, "WEBP", lossless=True, exact=True), "webp", "usable", pixels=ON_WHITE),
    file("RGBA, all clear", encoded(np.zeros((2, 2, 4), np.uint8)), "png", "noted", "transparent",
         pixels=grey(*[255] * 4)),
    file("grey with alpha (LA)", png(CLEAR_L, 4), "png", "usable", pixels=grey(0, 255, 127, 200)),
    file("grey with a clear level", png(np.array([[7, 8], [9, 8]], np.uint8), 0, chunk(b"tRNS", b"\0\x08")), "png",
         "usable", pixels=grey(7, 255, 9, 255)),
    file("RGB with a clear colour", png(ON_WHITE, 2, chunk(b"tRNS", struct.pack(">3H", 0, 0, 255))), "png", "usable",
         pixels=np.array([[(255, 0, 0), (255, 127, 127)], [(255,) * 3] * 2], np.uint8)),
    file("CMYK JPEG", encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), "jpg", "usable",
         pixels=np.full((8, 8, 3), (255, 0, 0), np.uint8), tolerance=4),
    file("CMYK JPEG without Adobe's marker",
         without_adobe(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)), "jpg", "noted",
         "without Adobe's marker", pixels=np.full((8, 8, 3), (255, 0, 0), np.uint8), tolerance=4),
    file("CMYK TIFF", encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "TIFF"), "tif", "usable",
         pixels=np.full((8, 8, 3), (0, 255, 255), np.uint8)),
    file("Lab TIFF", encoded(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF"), "tif", "usable",
         pixels=grey(*[255] * 4), tolerance=2),
]  # fmt: skip

DEEP = [
    file("16-bit grey", png(U16, 0), "png", "usable", pixels=U16_LEVELS),
    file("16-bit grey TIFF", tiff(U16, 1), "tif", "usable", pixels=U16_LEVELS),
    file("16-bit grey TIFF, white is zero", tiff(U16, 0), "tif", "usable", pixels=255 - U16_LEVELS),
    file("16-bit grey with a clear level", png(U16, 0, chunk(b"tRNS", b"\x01\x01")), "png", "usable",
         pixels=grey(0, 255, 128, 255)),
    file("12 bits in 16", png(U16 >> 4, 0), "png", "noted", "0..4095", pixels=grey(0, 0, 8, 16)),
    file("16-bit RGB PNG", png(U16_RGB, 2), "png", "usable", pixels=U16_LEVELS, tolerance=1),
    file("16-bit RGB PNG, 12 bits used", png(U16_RGB >> 4, 2), "png", "noted", "nearly black"),
    file("16-bit RGBA PNG", png(np.dstack([U16_RGB, np.full((2, 2), 65535, np.uint16)]), 6), "png", "usable",
         pixels=U16_LEVELS, tolerance=1),
    file("16-bit grey with alpha", png(np.dstack([U16, np.full((2, 2), 65535, np.uint16)]), 4), "png", "usable",
         pixels=U16_LEVELS, tolerance=1),
    file("16-bit RGB TIFF", tiff(U16_RGB, 2), "tif", "usable", pixels=U16_LEVELS, tolerance=1),
    file("16-bit PPM", b"P6 2 2 65535\n" + U16_RGB.astype(">u2").tobytes(), "ppm", "usable", pixels=U16_LEVELS,
         tolerance=1),
    file("32-bit integers", tiff(np.array([[0, 1000], [2000, 200_000]], np.int32), 1, 2), "tif", "noted",
         "0..200000", pixels=grey(0, 1, 3, 255)),
    file("32-bit unsigned above 2^31", tiff(np.array([[0, 2**31], [2**32 - 1, 2**30]], np.uint32), 1), "tif", "noted",
         "own range", pixels=grey(0, 128, 255, 64)),
    file("negative integers", tiff(np.array([[-10, 0], [10, 5]], np.int16), 1, 2), "tif", "noted", "-10..10",
         pixels=grey(0, 128, 255, 191)),
    file("float in 0..1", tiff(np.array([[0, 0.5], [1, 0.25]], np.float32), 1, 3), "tif", "usable",
         pixels=grey(0, 128, 255, 64)),
    file("float of another range", tiff(np.array([[-100, 0], [100, 50]], np.float32), 1, 3), "tif", "noted",
         "-100..100", pixels=grey(0, 128, 255, 191)),
    file("float, constant", tiff(np.full((2, 2), 7, np.float32), 1, 3), "tif", "noted", "7..7",
         pixels=grey(0, 0, 0, 0)),
    file("float with NaN", tiff(np.array([[0, np.nan]], np.float32), 1, 3), "tif", "fatal", "NaN or infinite"),
    file("float with infinity", tiff(np.array([[0, np.inf]], np.float32), 1, 3), "tif", "fatal", "NaN or infinite"),
    file("float RGB TIFF", tiff(np.zeros((2, 2, 3), np.float32), 2, 3), "tif", "fatal", "32-bit float samples (RGB)"),
    file("signed 8-bit TIFF", tiff(np.array([[-1, 1], [2, 3]], np.int8), 1, 2), "tif", "fatal", "signed 8-bit"),
]  # fmt: skip

# EXIF orientations of a picture that is 16 wide and 32 high, or turned.
UPRIGHT = np.ascontiguousarray(BLOCKS)
TURNED = [
    *(
        file(f"EXIF orientation {n}", encoded(turned(UPRIGHT, n), exif=exif(n)), "png", "usable", pixels=UPRIGHT)
        for n in range(1, 9)
    ),
    *(
        file(f"EXIF orientation {n}, {form}", encoded(turned(UPRIGHT, n), form, exif=exif(n), **options), suffix,
             "usable", pixels=UPRIGHT, tolerance=tolerance)
        for n in (5, 6, 7, 8)
        for form, suffix, options, tolerance in (
            ("JPEG", "jpg", {"quality": 95, "subsampling": 0}, 16),
            ("WEBP", "webp", {"lossless": True}, 0),
            ("TIFF", "tif", {}, 0),
        )
    ),
    file("EXIF orientation 9", encoded(UPRIGHT, exif=exif(9)), "png", "usable", pixels=UPRIGHT),
    file("damaged EXIF", encoded(BLOCKS, "JPEG", subsampling=0, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), "jpg", "usable",
         pixels=BLOCKS, tolerance=24),
]  # fmt: skip

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOURED = [
    file("ICC profile sRGB", encoded(NOISE, icc_profile=SRGB), "png", "usable", pixels=NOISE),
    file("ICC profile of linear light", encoded(NOISE, icc_profile=linear_profile()), "png", "usable",
         pixels=srgb_encoded(NOISE), tolerance=1),
    file("ICC profile of linear grey", encoded(NOISE[..., 0], icc_profile=linear_profile(b"GRAY")), "png", "usable",
         pixels=srgb_encoded(np.repeat(NOISE[..., :1], 3, 2)), tolerance=1),
    file("ICC profile and alpha", encoded(np.full((2, 2, 4), (128, 128, 128, 0), np.uint8),
         icc_profile=linear_profile()), "png", "noted", "transparent", pixels=grey(*[255] * 4)),
    file("ICC profile, damaged", encoded(NOISE, icc_profile=linear_profile()[:150]), "png", "noted",
         "ICC profile is damaged", pixels=NOISE),
    file("ICC profile of grey in RGB", encoded(NOISE, icc_profile=linear_profile(b"GRAY")), "png", "noted",
         "does not fit", pixels=NOISE),
]  # fmt: skip

SIZED = [
    file("1 x 1", encoded(NOISE[:1, :1]), "png", "usable", pixels=NOISE[:1, :1]),
    file("1 x 20,000", encoded(np.zeros((20_000, 1), np.uint8)), "png", "noted", "keeps 0.005 %"),
    file("20,000 x 1", encoded(np.zeros((1, 20_000), np.uint8)), "png", "noted", "keeps 0.005 %"),
    file("bomb: PNG 50,000 x 50,000", png(BOMB, 2, size=(50_000, 50_000)), "png", "fatal", "megapixels"),
    file("bomb: PNG 8,001 x 8,001", encoded(Image.new("1", (8001, 8001))), "png", "fatal", "megapixels"),
    file("bomb: JPEG 65,500 x 65,500", jpeg_claiming(65_500, 65_500), "jpg", "fatal", "megapixels"),
    file("bomb: GIF 65,535 x 65,535", gif_header(65_535, 65_535), "gif", "fatal", "megapixels"),
    file("bomb: BMP 60,000 x 60,000", bmp_header(60_000, 60_000), "bmp", "fatal", "megapixels"),
    file("bomb: WebP 16,383 x 16,383", webp_header(16_383, 16_383), "webp", "fatal", "megapixels"),
    file("bomb: TIFF 60,000 x 60,000", tiff(BOMB, 2, size=(60_000, 60_000)), "tif", "fatal", "megapixels"),
    file("bomb: PPM 60,000 x 60,000", b"P6 60000 60000 255\n", "ppm", "fatal", "megapixels"),
    file("bomb: WebP 8,000 x 8,000", encoded(Image.new("RGB", (8000, 8000)), "WEBP", method=0), "webp", "fatal",
         "to decode, above the limit"),
    file("bomb: text chunk of 200 MB", png(NOISE, 2, chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(200_000_000)))),
         "png", "fatal", "unreadable"),
    file("bomb: profile chunk of 200 MB", png(NOISE, 2, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(200_000_000)))),
         "png", "fatal", "unreadable"),
]  # fmt: skip

FILES = [*DAMAGED, *FRAMED, *MODES, *DEEP, *TURNED, *COLOURED, *SIZED]
