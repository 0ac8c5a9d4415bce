"""The scan of a folder of class folders: every entry below it is an image of a class or a problem."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .problems import Problem

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
# How files of these formats begin, as far as it tells them from text.
_START = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|.{4}ftypavi[fs]|II\*\0|MM\0\*|BM.{4}\0{4}|P[456]\s+[#0-9]",
    re.DOTALL,
)
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9_-]{0,11}")
_HIDDEN = "hidden or system file"
_SYSTEM_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})


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

    Images are known by their suffix, and by their content where they have none. Hidden and system files, symbolic
    links, other files and empty folders are reported and not used. Images at another depth, names that are not UTF-8,
    folders that cannot be listed, and class folders of which nothing is left (links, other files) are fatal problems:
    a class never vanishes without a word.
    """
    scan = _Scan(base or folder)
    files: list[Path] = []
    labels: list[int] = []
    names: list[str] = []
    for entry in scan.usable(folder, classes=True):
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

    def usable(self, folder: Path, classes: bool = False) -> list[os.DirEntry[str]]:
        """Real files and folders in it, by name; hidden files, links and special files are reported.

        Where it holds `classes`, a link to a folder is one that would be lost.
        """
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.report(str(folder), f"cannot be listed: {error.strerror}", "make it readable", fatal=True)
            return []
        kept = []
        for entry in found:
            if not entry.name.isascii() and not _names_are_utf8():
                cause = f"this process reads names as {sys.getfilesystemencoding()}, so others see another name"
                self.report(entry.path, cause, "set PYTHONUTF8=1", fatal=True)
            elif not _is_utf8(entry.name):
                self.report(entry.path, "its name is not UTF-8", "rename it", fatal=True)
            elif is_ignored(entry.name):
                self.report(entry.path, f"{_HIDDEN}, not used", "delete it")
            elif entry.is_symlink():
                if classes and os.path.isdir(entry.path):
                    cause, remedy = "symbolic link to a folder, not followed: its class is lost", "put a copy of the "
                    self.report(entry.path, cause, f"{remedy}folder in its place, or delete the link", fatal=True)
                else:
                    self.report(entry.path, "symbolic link, not followed", "put a copy of the file in its place")
            elif not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
                self.report(entry.path, "not a regular file, not used", "remove it")
            else:
                kept.append(entry)
        self.twins(kept)
        return kept

    def twins(self, entries: Sequence[os.DirEntry[str]]) -> None:
        """Report names that file systems of macOS or Windows merge: they differ in case or Unicode form alone."""
        first: dict[str, str] = {}
        for entry in entries:
            folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", entry.name).casefold())
            other = first.setdefault(folded, entry.name)
            if other != entry.name:
                case = unicodedata.normalize("NFC", other) != unicodedata.normalize("NFC", entry.name)
                differs = "upper and lower case" if case else "Unicode form (NFC, NFD)"
                cause = f"its name differs from {other!a} in {differs} only: other file systems merge them"
                self.report(entry.path, cause, "rename one of them")

    def images_of_class(self, class_folder: os.DirEntry[str]) -> list[Path]:
        images, before = [], len(self.problems)
        for entry in self.usable(Path(class_folder)):
            if entry.is_dir(follow_symlinks=False):
                self.too_deep(entry)
            elif is_image(Path(entry)):
                images.append(Path(entry.path))
            else:
                self.stray(entry, "")
        if not images:
            of_system = f"{_HIDDEN}, not used"
            held = [problem for problem in self.problems[before:] if problem.cause != of_system]
            if held:
                cause = f"class folder without a usable image: its class is lost ({held[0].cause.partition(',')[0]})"
                self.report(class_folder.path, cause, "add images that can be used, or move it out", fatal=True)
            else:
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
        if is_image(Path(entry)):
            remedy = "move it: <data>/<class>/<image>, or <data>/train/<class>/<image> beside test/"
            self.report(entry.path, cause_if_image, remedy, fatal=True)
        elif _begins_as_image(entry.path):
            suffix = Path(entry.name).suffix
            self.report(entry.path, f"an image, but not by its suffix {suffix}, not used", "rename it, or delete it")
        else:
            self.report(entry.path, "no image by its suffix, not used", "delete it, or convert it to PNG or JPEG")


def _names_are_utf8() -> bool:
    return sys.getfilesystemencoding().lower().replace("-", "") == "utf8"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_image(file: Path) -> bool:
    """By its suffix; by its content where it has none (a number after a dot is none)."""
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    return not _SUFFIX.fullmatch(file.suffix) and _begins_as_image(file)


def _begins_as_image(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:  # said when it is decoded, if it is one
        return False
    return _START.match(start) is not None
