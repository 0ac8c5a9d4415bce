"""Data sets whose names, links or cells are odd or hostile, each with what must come of them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_image_bytes import NOISE, encoded
from bad_image_files import BadImage, Verdict

IMAGE = encoded(NOISE)
OTHER = encoded(255 - NOISE)
THIRD = encoded(NOISE[::-1])


def write(path: Path, data: bytes = IMAGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def named(case: str, name: str, verdict: Verdict = "usable", cause: str = "") -> BadImage:
    """One image of this name; its id must hold the name unchanged."""
    return BadImage(case, lambda folder: _put(folder, name), verdict, cause, NOISE, ids=(f"a/{name}",))


def _put(folder: Path, *names: str) -> None:
    for name, data in zip(names, (IMAGE, OTHER, THIRD), strict=False):
        write(folder / "a" / name, data)


def pair(case: str, first: str, second: str, verdict: Verdict, cause: str) -> BadImage:
    ids = tuple(sorted((f"a/{first}", f"a/{second}")))
    return BadImage(case, lambda folder: _put(folder, first, second), verdict, cause, ids=ids)


NFC, NFD = unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png")

NAMES = [
    named("name in NFC", NFC),
    named("name in NFD", NFD),
    pair("names that differ by Unicode form", NFC, NFD, "noted", "Unicode form (NFC, NFD) only"),
    pair("names that differ by case", "A.png", "a.png", "noted", "upper and lower case only"),
    named("name with a line break", "x\ny.png"),
    named("name with an escape sequence", "\x1b[2Jx.png"),
    named("name with right-to-left override", "\u202egnp.exe.png"),
    named("name in Hebrew", "תמונה.png"),
    named("name with a zero-width space", "a\u200bb.png"),
    named("name that is a formula", "=cmd|' |calc'!A0.png"),
    named("name with an emoji", "🐈.png"),
    named("name with a backslash and quotes", '"\\x1b".png'),
    named("name that looks like an option", "--help.png"),
    named("name of 255 bytes", "x" * 251 + ".png"),
    named("name with blanks", "  a b .png"),
    named("name in rich's markup", "[bold]x.png"),
]


def _classes_by_case(folder: Path) -> None:
    write(folder / "Cat" / "x.png")
    write(folder / "cat" / "y.png", OTHER)


def _link(target: Callable[[Path], Path | str], name: str = "link.png") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write(folder / "a" / "x.png")
        write(folder.parent / f"{folder.name}-outside" / "secret.png", OTHER)
        (folder / "a" / name).symlink_to(target(folder))

    return make


def _not_utf8(folder: Path) -> None:
    write(folder / "a" / "x.png")
    Path(os.fsdecode(os.fsencode(folder / "a") + b"/\xff.png")).write_bytes(OTHER)


def _fifo(folder: Path) -> None:
    write(folder / "a" / "x.png")
    os.mkfifo(folder / "a" / "pipe.png")


def _unreadable(folder: Path) -> None:
    write(folder / "a" / "x.png").chmod(0)


def _too_large(folder: Path) -> None:
    os.truncate(write(folder / "a" / "x.png"), 256_000_001)  # sparse: takes no space


def _put_deep(folder: Path) -> None:
    write(folder / "a" / "x.png")
    write(folder / "a" / "y.png" / "z.png", OTHER)


def _folder_as_image(folder: Path) -> None:
    write(folder / "a" / "x.png")
    (folder / "a" / "y.png").mkdir()


def _conflict(folder: Path) -> None:
    write(folder / "a" / "x.png")
    write(folder / "b" / "y.bmp", encoded(NOISE, "BMP"))


def _twice(folder: Path) -> None:
    write(folder / "a" / "x.png")
    write(folder / "a" / "y.png", encoded(NOISE, compress_level=0))


ONE = ("a/x.png",)
LINKS = [
    BadImage("link out of the data", _link(lambda f: f.parent / f"{f.name}-outside/secret.png"), "noted",
             "symbolic link", NOISE, ids=ONE),
    BadImage("link to /etc/passwd", _link(lambda f: "/etc/passwd"), "noted", "symbolic link", NOISE, ids=ONE),
    BadImage("link inside the data", _link(lambda f: "x.png"), "noted", "symbolic link", NOISE, ids=ONE),
    BadImage("link to itself", _link(lambda f: "link.png"), "noted", "symbolic link", NOISE, ids=ONE),
    BadImage("link to nothing", _link(lambda f: "gone.png"), "noted", "symbolic link", NOISE, ids=ONE),
    BadImage("link to the folder above", _link(lambda f: "..", "up"), "noted", "symbolic link", NOISE, ids=ONE),
    BadImage("class folder that is a link", _link(lambda f: f.parent / f"{f.name}-outside", "../b"), "fatal",
             "its class is lost"),
    BadImage("named pipe", _fifo, "noted", "not a regular file", NOISE, ids=ONE),
    BadImage("folder called y.png", _folder_as_image, "noted", "folder without images", NOISE, ids=ONE),
    BadImage("image in a folder called y.png", _put_deep, "fatal", "image too deep"),
    BadImage("no permission", _unreadable, "fatal", "no permission"),
    BadImage("name that is not UTF-8", _not_utf8, "fatal", "not UTF-8"),
    BadImage("file of 256 MB", _too_large, "fatal", "above the limit of 256 MB"),
    BadImage("classes that differ by case", _classes_by_case, "noted", "upper and lower case only",
             ids=("Cat/x.png", "cat/y.png")),
    BadImage("same pixels twice", _twice, "noted", "same pixels as a/x.png", ids=("a/x.png", "a/y.png")),
    BadImage("same pixels, two labels", _conflict, "noted", "conflicting labels", ids=("a/x.png", "b/y.bmp")),
]  # fmt: skip


def cells(
    case: str, verdict: Verdict, cause: str, *images: Any, labels: tuple[Any, ...] = (), **expected: Any
) -> BadImage:
    """A parquet file whose image column holds these cells."""

    def make(folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        write(folder.parent / f"{folder.name}-outside" / "secret.png", OTHER)
        write(folder / "beside.png")
        outside = str(folder.parent / f"{folder.name}-outside" / "secret.png")
        rows = [image(outside) if callable(image) else image for image in images]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = {"image": pa.array(rows, kind), "label": list(labels or ["a"] * len(rows))}
        pq.write_table(pa.table(table), folder / "data.parquet")

    return BadImage(case, make, verdict, cause, **expected)


def held(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


ROW = ("train/000000",)
OUTSIDE = "a path outside the data set"
TABLES = [
    cells("cell that names /etc/passwd", "fatal", OUTSIDE, held(None, "/etc/passwd")),
    cells("cell that names an image elsewhere", "fatal", OUTSIDE, lambda outside: held(None, outside)),
    cells("cell that names ../", "fatal", OUTSIDE,
          lambda outside: held(None, f"../{Path(outside).parent.name}/secret.png")),
    cells("cell that names a URL", "fatal", "unreadable|the file is gone|outside", held(None, "https://a.invalid/x.png")),
    cells("cell that names a file beside the table", "usable", "", held(None, "beside.png"), pixels=NOISE, ids=ROW),
    cells("cell with bytes and a hostile path", "usable", "", held(IMAGE, "../../etc/passwd"), pixels=NOISE, ids=ROW),
    cells("empty cell", "fatal", "the cell holds no image", None),
    cells("cell without bytes and path", "fatal", "the cell holds no image", held(None)),
    cells("cell with text", "fatal", "no image in a format", held(b"text")),
    cells("cell without a label", "fatal", "names no class", held(IMAGE), held(OTHER), labels=("a", None)),
]  # fmt: skip

FOLDERS = [*NAMES, *LINKS, *TABLES]
