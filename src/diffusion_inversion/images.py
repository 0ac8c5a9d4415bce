"""Labelled images in memory, safe decoding of one image, and the scan of a folder of class folders."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from .errors import DataError

MAX_PIXELS = 64_000_000
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
# Only these decoders are offered to a file: others start programs (EPS) or are rarely fuzzed.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_SYSTEM_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})
_SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Problem:
    """Something about one file that a user should know; `fatal` means that the image cannot be used."""

    file: str
    cause: str
    remedy: str
    fatal: bool


class UnusableImageError(DataError):
    """One image cannot be decoded; `cause` and `remedy` go into its `Problem`."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause = cause
        self.remedy = remedy


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """N square RGB images of one size in memory, with their labels and where they came from.

    An image that was not square was cropped to its central square and resized (antialiased bicubic).
    `hashes` are of the decoded pixels at the original size, so they do not depend on `size`.
    """

    name: str
    ids: tuple[str, ...]  # unique and stable: "cat/001.png" in a folder, else "train/000123"
    hashes: tuple[str, ...]  # sha256 hex of the RGB pixels at original size, and that size
    labels: Tensor  # (N,) int64 in [0, len(class_names))
    class_names: tuple[str, ...]
    images: Tensor  # (N, 3, S, S) uint8 RGB
    native_size: int  # px: shorter side of the images as stored, the smallest where they vary
    problems: tuple[Problem, ...] = ()
    licence: str = ""  # set where it restricts use

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.images.dtype != torch.uint8 or self.images.shape != (n, 3, self.size, self.size):
            raise DataError(
                f"{self.name}: images are {tuple(self.images.shape)} {self.images.dtype}; give ({n}, 3, S, S) uint8"
            )
        if len(self.hashes) != n or self.labels.shape != (n,) or self.labels.dtype != torch.int64:
            raise DataError(f"{self.name}: {n} ids need {n} hashes and ({n},) int64 labels")
        if len(set(self.ids)) != n:
            raise DataError(f"{self.name}: an id occurs twice; give every image its own")
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise DataError(f"{self.name}: a label lies outside 0..{len(self.class_names) - 1}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """Side S of the images in px."""
        return int(self.images.shape[-1])

    @property
    def digest(self) -> str:
        """sha256 hex of what is learned from: ids, contents and labels of all images, and the class names."""
        rows = [f"{i} {h} {k}" for i, h, k in zip(self.ids, self.hashes, self.labels.tolist(), strict=True)]
        return hashlib.sha256("\n".join([*self.class_names, "", *rows]).encode()).hexdigest()

    def resized(self, size: int) -> LabelledImages:
        """The same images at `size` px (antialiased bicubic); self where they have that size already."""
        if size == self.size:
            return self
        return replace(self, images=resize(self.images, size))

    def subset(self, rows: Sequence[int]) -> LabelledImages:
        """The images of these rows, in this order; the problems stay."""
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            hashes=tuple(self.hashes[row] for row in rows),
            labels=self.labels[index],
            images=self.images[index],
        )


def to_model_range(images: Tensor) -> Tensor:
    """uint8 [0, 255] => float32 [-1, 1], any shape."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float [-1, 1] => uint8 [0, 255], rounded and clamped, any shape."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize (B, C, H, W) uint8 to (B, C, size, size) uint8: bicubic, antialiased when it shrinks."""
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)


def square(pixels: NDArray[np.uint8], size: int) -> Tensor:
    """Crop (H, W, 3) uint8 to its central square and resize that to (3, size, size) uint8."""
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cropped = torch.from_numpy(pixels[top : top + side, left : left + side]).permute(2, 0, 1)
    return cropped if side == size else resize(cropped[None], size)[0]


def content_hash(pixels: NDArray[np.uint8]) -> str:
    """sha256 hex of (H, W, 3) uint8 pixels and their height and width."""
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def open_image(file: Path | bytes) -> Image.Image:
    """Open a file or its bytes without decoding; size and mode are known then. Close what it returns."""
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS)


@contextmanager
def naming_causes() -> Iterator[None]:
    """Turn whatever an image decoder raises into `UnusableImageError`."""
    with warnings.catch_warnings():
        # The cap below is stricter than Pillow's warning.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
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
        except Exception as error:  # Damaged files make decoders raise nearly any type; each is reported.
            cause = " ".join(str(error).split()) or type(error).__name__
            if "cannot identify image file" in cause:
                cause = "no image in a format that is read (PNG, JPEG, WebP, BMP, GIF, TIFF, PPM)"
            remedy = "replace the file with a whole copy, or delete it"
            raise UnusableImageError(f"unreadable: {cause}", remedy) from error


def shorter_side(image: Image.Image) -> int:
    """Shorter side in px from the header. Raises `UnusableImageError` above `MAX_PIXELS`, before any decoding."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} px")
    return min(width, height)


def decode_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], str]:
    """Decode fully to (H, W, 3) uint8 RGB; the second value is a note for the user, or "".

    EXIF orientation is applied. Transparency is composited on white. CMYK and palettes are converted.
    16-bit grey is scaled by 0..65535 to 0..255, float grey in 0..1 by 1; integers and floats outside those
    ranges by the image's own minimum and maximum, with a note. Of several frames the first is taken, with a note.
    Raises `UnusableImageError` within `naming_causes`, else whatever the decoder raises.
    """
    shorter_side(image)
    # MPO is what phones write: a JPEG with previews behind it, not an animation. Asked before load closes the file.
    animated = image.format != "MPO" and getattr(image, "is_animated", False)
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F" or upright.mode.startswith("I"):
        return _grey_to_rgb(upright)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(upright.convert("RGB")), "several frames; the first is used" if animated else ""


def _grey_to_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], str]:
    values = np.array(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnusableImageError("holds NaN or infinite values", "write it again with finite values")
    low, high = float(values.min()), float(values.max())
    full = 1.0 if image.mode == "F" else 65535.0
    note = ""
    if low >= 0 and high <= full:
        values = values / full
        if full > 1 and 0 < high < full / 8:
            note = f"16-bit image that uses 0..{high:.0f} only: nearly black at 8 bits"
    else:
        values = (values - low) / (high - low) if high > low else np.zeros_like(values)
        note = f"scaled by its own range {low:g}..{high:g}"
    grey = np.rint(values * 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2), note


def _too_large(what: str) -> UnusableImageError:
    return UnusableImageError(f"{what}: above the limit of {MAX_PIXELS // 10**6} megapixels", "make the image smaller")


@dataclass(frozen=True)
class FolderScan:
    """What a folder of class folders holds. Every entry below it is either a file here or a problem."""

    files: tuple[Path, ...]
    ids: tuple[str, ...]  # posix path relative to the base
    labels: tuple[int, ...]
    class_names: tuple[str, ...]  # folders with at least one image, sorted
    problems: tuple[Problem, ...]


def scan_folder(folder: Path, base: Path | None = None) -> FolderScan:
    """List `<folder>/<class>/<image>` by name; ids and problems name files relative to `base` (default: folder).

    Hidden and system files, symbolic links, other files and empty folders are reported and not used.
    Images at another depth, names that are not UTF-8 and folders that cannot be listed are fatal problems.
    """
    scan = _Scan(base or folder)
    files: list[Path] = []
    labels: list[int] = []
    names: list[str] = []
    for entry in scan.usable(folder):
        if not entry.is_dir(follow_symlinks=False):
            scan.stray(entry, "image outside a class folder")
            continue
        images = scan.images_of_class(entry)
        if images:
            files += images
            labels += [len(names)] * len(images)
            names.append(entry.name)
    ids = tuple(file.relative_to(scan.base).as_posix() for file in files)
    return FolderScan(tuple(files), ids, tuple(labels), tuple(names), tuple(scan.problems))


def scan_beside(folder: Path, splits: Sequence[str]) -> tuple[Problem, ...]:
    """What lies in a folder beside its split folders (train, test): nothing of it is used."""
    scan = _Scan(folder)
    for entry in scan.usable(folder):
        if not entry.is_dir(follow_symlinks=False):
            scan.stray(entry, "image outside a class folder")
        elif entry.name not in splits:
            cause = f"folder beside {' and '.join(splits)}, not used"
            scan.report(entry.path, cause, "delete it, or give it as --test")
    return tuple(scan.problems)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is hidden or made by an operating system ("._a.png", "Thumbs.db")."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


@dataclass
class _Scan:
    """One walk: reports everything below `base` that is no image of a class."""

    base: Path
    problems: list[Problem] = field(default_factory=list)

    def report(self, path: str, cause: str, remedy: str, fatal: bool = False) -> None:
        shown = Path(path).relative_to(self.base).as_posix().encode("utf-8", "backslashreplace").decode()
        self.problems.append(Problem(shown, cause, remedy, fatal))

    def usable(self, folder: Path) -> list[os.DirEntry[str]]:
        """Real files and folders in it, by name; hidden files, links and special files are reported."""
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.report(str(folder), f"cannot be listed: {error.strerror}", "make it readable", fatal=True)
            return []
        kept = []
        for entry in found:
            if not _is_utf8(entry.name):
                self.report(entry.path, "its name is not UTF-8", "rename it", fatal=True)
            elif is_ignored(entry.name):
                self.report(entry.path, "hidden or system file, not used", "delete it")
            elif entry.is_symlink():
                self.report(entry.path, "symbolic link, not followed", "put a copy of the file in its place")
            elif not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
                self.report(entry.path, "not a regular file, not used", "remove it")
            else:
                kept.append(entry)
        return kept

    def images_of_class(self, class_folder: os.DirEntry[str]) -> list[Path]:
        images = []
        for entry in self.usable(Path(class_folder)):
            if entry.is_dir(follow_symlinks=False):
                self.too_deep(entry)
            elif _has_image_suffix(entry.name):
                images.append(Path(entry.path))
            else:
                self.stray(entry, "")
        if not images:
            self.report(class_folder.path, "class folder without images, not a class", "add images or delete it")
        return images

    def too_deep(self, folder: os.DirEntry[str]) -> None:
        entries = self.usable(Path(folder))
        if not entries:
            self.report(folder.path, "folder without images inside a class folder, not used", "delete it")
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                self.too_deep(entry)
            else:
                self.stray(entry, "image too deep: a class folder holds images, not folders")

    def stray(self, entry: os.DirEntry[str], cause_if_image: str) -> None:
        if _has_image_suffix(entry.name):
            remedy = "move it: <data>/<class>/<image>, or <data>/train/<class>/<image> beside test/"
            self.report(entry.path, cause_if_image, remedy, fatal=True)
        else:
            self.report(entry.path, "no image by its suffix, not used", "delete it, or convert it to PNG or JPEG")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_image_suffix(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def raise_fatal(name: str, problems: Sequence[Problem]) -> None:
    """Raise `DataError` with a table of the fatal problems (the first 10 and how many more), if there are any."""
    fatal = [problem for problem in problems if problem.fatal]
    if not fatal:
        return
    rows = [("file", "cause", "remedy"), *((p.file, p.cause, p.remedy) for p in fatal[:_SHOWN_PROBLEMS])]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"  {file:<{widths[0]}}  {cause:<{widths[1]}}  {remedy}" for file, cause, remedy in rows]
    if len(fatal) > _SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(fatal) - _SHOWN_PROBLEMS} more")
    count = "1 file" if len(fatal) == 1 else f"{len(fatal)} files"
    raise DataError("\n".join([f"{name}: {count} cannot be used; nothing was computed.", *lines]))
