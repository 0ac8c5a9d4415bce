"""Safe decoding of one image to 8-bit RGB: what a file may cost, and what it shows."""

from __future__ import annotations

import io
import math
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..errors import DataError
from .tiff import read_rightly, unread_kind

MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256_000_000
MAX_DECODING_BYTES = 450_000_000  # with PyTorch's own 0.5 GB a process stays below 1 GB
MAX_PROFILE_BYTES = 4_000_000
BACKGROUND = 255  # white: what lies below transparent pixels
# Only these decoders are offered to a file: others start programs (EPS) or are rarely fuzzed.
_FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),
)
_STRIP_PIXELS = 1 << 20  # pixels converted at a time
_SMALLEST_SHARE = 1 / 3  # of a picture that its central square should keep
_NEARLY_BLACK = 1 / 8  # of the range
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_ROWS_PER_STRIP, _TIFF_SAMPLE_FORMAT, _ORIENTATION = 258, 262, 278, 339, 274
_UNSIGNED, _SIGNED = 1, 2  # values of TIFF's SampleFormat


class Note(NamedTuple):
    """What decoding had to decide about a usable image."""

    cause: str
    remedy: str


class UnusableImageError(DataError):
    """One image cannot be decoded; `cause` and `remedy` go into its `Problem`."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause = cause
        self.remedy = remedy


def open_image(file: Path | bytes) -> Image.Image:
    """Open a file or its bytes without decoding; size and mode are known then. Close what it returns."""
    if isinstance(file, bytes):
        size = len(file)
    else:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise UnusableImageError("not a regular file", "put a copy of the image in its place")
        size = status.st_size
    if size == 0:
        raise UnusableImageError("the file is empty", "replace the file with a whole copy, or delete it")
    if size > MAX_FILE_BYTES:
        cause = f"{size / 1e6:.0f} MB: above the limit of {MAX_FILE_BYTES // 10**6} MB for a file"
        raise UnusableImageError(cause, "compress it or make the image smaller")
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS)
    except UnidentifiedImageError as error:
        if kind := unread_kind(file):
            raise UnusableImageError(*kind) from error
        raise


@contextmanager
def naming_causes() -> Iterator[None]:
    """Turn whatever an image decoder raises into `UnusableImageError`."""
    with warnings.catch_warnings():
        # The cap below is stricter than Pillow's warning, and damaged metadata is no reason to print.
        warnings.simplefilter("ignore")
        try:
            yield
        except UnusableImageError:
            raise
        except Image.DecompressionBombError as error:
            raise _too_large("more than Pillow opens") from error
        except FileNotFoundError as error:
            raise UnusableImageError("the file is gone", "restore it, or remove it from the data") from error
        except PermissionError as error:
            raise UnusableImageError("no permission to read it", "chmod it") from error
        except UnidentifiedImageError as error:
            cause = "unreadable: no image in a format that is read (PNG, JPEG, WebP, AVIF, BMP, GIF, TIFF, PPM)"
            raise UnusableImageError(cause, "replace the file with a whole copy, or delete it") from error
        except Exception as error:  # Damaged files make decoders raise nearly any type; each is reported.
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            remedy = "replace the file with a whole copy, or delete it"
            raise UnusableImageError(f"unreadable: {cause}", remedy) from error


def shorter_side(image: Image.Image) -> int:
    """Shorter side in px from the header. Raises `UnusableImageError` where decoding would cost too much memory."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} px")
    needed = width * height * _bytes_per_pixel(image)
    if needed > MAX_DECODING_BYTES:
        cause = f"{width} x {height} px: this kind of {image.format} needs {needed / 1e6:.0f} MB to decode"
        raise UnusableImageError(
            f"{cause}, above the limit of {MAX_DECODING_BYTES // 10**6}", "make the image smaller, or save it as PNG"
        )
    return min(width, height)


def _bytes_per_pixel(image: Image.Image) -> int:
    """The most that decoding holds at once, measured per format: decoder's buffers, Pillow's copy, the RGB result."""
    height = max(1, image.size[1])
    stored = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}.get(image.mode, 4)
    buffers = 0
    if image.format in ("WEBP", "AVIF"):
        # WebP: two canvases of the animation decoder and the frame that it hands over. AVIF: planes of at most 16 bits
        # with alpha, and RGBA made of them (9 were measured of 8 bits in 4:2:0).
        buffers = 12
    elif image.info.get("progressive"):
        buffers = 2 * len(image.getbands())  # the coefficients of all scans
    elif image.format == "TIFF":
        rows = min(_tag(image, _TIFF_ROWS_PER_STRIP, (height,))[0], height)  # of the strip that is held unpacked
        buffers = math.ceil(sum(_tag(image, _TIFF_BITS, (8,))) / 8 * rows / height)
        if _tag(image, _ORIENTATION, (1,))[0] != 1:
            buffers = max(buffers, stored)  # turned by Pillow
    return stored + buffers + 3


def decode_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], tuple[Note, ...]]:
    """Decode fully to (H, W, 3) uint8 RGB; the notes say what a user should know about a picture that is usable.

    EXIF orientation is applied. Colours are converted to sRGB where an ICC profile says that they are others.
    Transparency is composited on white. 16-bit grey is scaled by 0..65535 (12 bits: 0..4095) to 0..255, float grey
    by 0..1; integers and floats outside those ranges by the image's own minimum and maximum, with a note. Colour of
    16 bits is reduced to its high byte, as Pillow does. Of several frames the first is taken, with a note.
    Raises `UnusableImageError` within `naming_causes`, else whatever the decoder raises.
    """
    shorter_side(image)
    # MPO is what phones write: a JPEG with previews behind it, not an animation. Asked before load closes the file.
    animated = image.format != "MPO" and getattr(image, "is_animated", False)
    bits, sample_format = _tag(image, _TIFF_BITS, (0,)), _tag(image, _TIFF_SAMPLE_FORMAT, (_UNSIGNED,))
    wide = ";16" in "".join(str(tile.args) for tile in getattr(image, "tile", ()))
    if bits[0] == 8 and sample_format[0] == _SIGNED:
        raise UnusableImageError("signed 8-bit samples", "save it with unsigned samples")
    if kind := read_rightly(image):
        raise UnusableImageError(*kind)
    image.load()
    notes = [Note("several frames; the first is used", "save the wanted frame as a PNG")] if animated else []
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        notes.append(Note("CMYK without Adobe's marker: read as inverted, as Adobe writes it", "convert it to RGB"))
    grey = image.mode == "F" or image.mode.startswith("I")
    alphas: list[int] = []
    to_rgb = _grey_scale(image, bits[0], sample_format[0], notes) if grey else _colour_scale(image, notes, alphas)
    pixels = _by_strips(image, _orientation(image, notes), to_rgb)
    height, width, _ = pixels.shape
    if max(alphas, default=1) == 0:
        notes.append(Note("transparent everywhere: a white picture", "remove its alpha channel, or the file"))
    if wide and not grey and 0 < int(pixels.max()) < 255 * _NEARLY_BLACK:
        notes.append(Note("16-bit colours that use an eighth of their range: nearly black at 8 bits", "stretch them"))
    share = min(height, width) / max(height, width)
    if share < _SMALLEST_SHARE:
        cause = f"{width} x {height} px: its central square keeps {100 * share:.2g} % of it"
        notes.append(Note(cause, "crop it to what matters"))
    return pixels, tuple(notes)


def _tag(image: Image.Image, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """A tag of a TIFF file as integers; `default` for other formats."""
    tags = getattr(image, "tag_v2", {})
    value = tags.get(tag, default)
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)


def _orientation(image: Image.Image, notes: list[Note]) -> int:
    """EXIF's orientation 1..8 of a loaded image; 1 with a note where the metadata is damaged."""
    if image.format is None:  # made from an array
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF is a file format of its own; Pillow raises SyntaxError, struct.error, KeyError, ...
        notes.append(Note("its EXIF data is damaged: taken as upright", "save it again"))
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _by_strips(
    image: Image.Image, orientation: int, to_rgb: Callable[[Image.Image], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Convert a few rows at a time, and turn them as they are written: one copy of the picture, not four."""
    width, height = image.size
    turned = orientation >= 5
    pixels = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    stored = pixels.transpose(1, 0, 2) if turned else pixels  # a view with the axes as in the file
    # EXIF 2.3, 4.6.4: row and column 0 of the file lie at (1: top left, 2: top right, 3: bottom right,
    # 4: bottom left, 5: left top, 6: right top, 7: right bottom, 8: left bottom).
    down, across = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1)}.get(orientation, (1, 1))
    if turned:
        down, across = {5: (1, 1), 6: (-1, 1), 7: (-1, -1), 8: (1, -1)}[orientation]
    stored = stored[::down, ::across]
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        stored[top:bottom] = to_rgb(image if bottom - top == height else image.crop((0, top, width, bottom)))
    return pixels


def _colour_scale(
    image: Image.Image, notes: list[Note], alphas: list[int]
) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """How a strip of an 8-bit image of any mode becomes RGB; `alphas` gets the largest alpha of each strip."""
    to_srgb = _profile_transform(image, notes)
    transparent = image.has_transparency_data

    def to_rgb(strip: Image.Image) -> NDArray[np.uint8]:
        if not transparent:
            return np.asarray(to_srgb(strip) if to_srgb else strip.convert("RGB"))
        rgba = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
        alpha = rgba.getchannel("A")
        alphas.append(int(np.asarray(alpha).max()))
        colours = rgba.convert("RGB")
        colours = to_srgb(colours) if to_srgb else colours
        colours.putalpha(alpha)
        below = Image.new("RGBA", rgba.size, (BACKGROUND,) * 3 + (255,))
        return np.asarray(Image.alpha_composite(below, colours).convert("RGB"))

    return to_rgb


def _profile_transform(image: Image.Image, notes: list[Note]) -> Callable[[Image.Image], Image.Image] | None:
    """The embedded ICC profile's conversion to sRGB; None where there is none, it is sRGB, or it cannot be used."""
    embedded = image.info.get("icc_profile")
    if not embedded:
        return None
    from PIL import ImageCms

    try:
        if len(embedded) > MAX_PROFILE_BYTES:
            raise ValueError("too large")
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        space = profile.profile.xcolor_space.strip()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[space]
        if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and image.mode not in ("1", "L", "LA", "La")):
            raise ValueError("of another colour space")
        # Unoptimised: lcms's shortcuts for 8 bits are off by up to 9 levels in the dark of linear grey.
        exact = ImageCms.Flags.NOOPTIMIZE
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", flags=exact)
        probe = _probe(mode)
        seen = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError, TypeError):
        notes.append(Note("its ICC profile is damaged or does not fit: taken as sRGB", "convert it to sRGB"))
        return None
    if mode != "CMYK" and np.abs(seen - np.asarray(probe.convert("RGB")).astype(int)).max() <= 2:
        return None  # sRGB under one of its many names: the pixels stay exact

    def to_srgb(strip: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(strip.convert(mode), transform)
        assert converted is not None  # None is for transforms in place
        return converted

    return to_srgb


def _probe(mode: str) -> Image.Image:
    """Colours over the whole range, to see what a profile does."""
    bands = Image.getmodebands(mode)
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[steps] * bands, indexing="ij"), -1).reshape(1, -1, bands)
    return Image.fromarray(grid[..., 0] if bands == 1 else np.ascontiguousarray(grid), mode)


def _grey_scale(
    image: Image.Image, bits: int, sample_format: int, notes: list[Note]
) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """How a strip of a loaded 12-, 16- or 32-bit grey image becomes RGB. Raises for values that are not finite."""
    unsigned = image.mode == "I" and bits == 32 and sample_format == _UNSIGNED

    def values(strip: Image.Image) -> NDArray[np.float64]:
        array = np.asarray(strip)
        return (array.view(np.uint32) if unsigned else array).astype(np.float64)

    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    low, high = np.inf, -np.inf
    for top in range(0, height, rows):
        part = values(image.crop((0, top, width, min(top + rows, height))))
        if not np.isfinite(part).all():
            raise UnusableImageError("holds NaN or infinite values", "write it again with finite values")
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    if image.info.get("icc_profile"):
        notes.append(Note("its ICC profile is not applied: grey of more than 8 bits", "convert it to 8-bit sRGB"))
    full = 1.0 if image.mode == "F" else 4095.0 if bits == 12 else 65535.0
    if low >= 0 and high <= full:
        if full > 1 and 0 < high < full * _NEARLY_BLACK:
            cause = f"{'12' if bits == 12 else '16'}-bit image that uses 0..{high:.0f} only: nearly black at 8 bits"
            notes.append(Note(cause, "stretch it to the whole range"))
        low, span = 0.0, full
    else:
        span = high - low or 1.0
        notes.append(Note(f"scaled by its own range {low:g}..{high:g}", "convert all images to 8 bits alike"))
    inverted = _tag(image, _TIFF_PHOTOMETRIC, (1,))[0] == 0  # WhiteIsZero, which Pillow passes on
    clear = image.info.get("transparency")

    def to_rgb(strip: Image.Image) -> NDArray[np.uint8]:
        part = values(strip)
        grey = np.rint((part - low) / span * 255).astype(np.uint8)
        grey = 255 - grey if inverted else grey
        if isinstance(clear, int):
            grey[part == clear] = BACKGROUND
        return np.repeat(grey[:, :, None], 3, axis=2)

    return to_rgb


def _too_large(what: str) -> UnusableImageError:
    return UnusableImageError(f"{what}: above the limit of {MAX_PIXELS // 10**6} megapixels", "make the image smaller")
