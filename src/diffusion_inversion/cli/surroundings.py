"""What a process is started with: streams, encodings, a home. Put right before anything else runs."""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO

# What a terminal without Unicode shows for the signs that we print.
_PLAIN = {"±": "+-", "→": "->", "…": "..."}


def prepare() -> None:
    """Give the process streams that can be written, names that are UTF-8, and a home. May start Python again."""
    _open_streams()
    _use_utf8()
    codecs.register_error("dinv-plain", _plain)
    sys.stdout.reconfigure(errors="dinv-plain")  # type: ignore[union-attr]
    # Nobody's work ends because its progress cannot be shown.
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Lossy(2, "w", closefd=False)), sys.stderr.encoding, "dinv-plain", line_buffering=True
    )
    _find_home()


class _Lossy(io.FileIO):
    """A file that takes what cannot be written (a full disk, a reader that is gone) as written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def _open_streams() -> None:
    """Open /dev/null where a stream was closed (`>&-`): the next file that is opened would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one
        if getattr(sys, name) is None:
            stream: TextIO = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where file names would be read as Latin-1 or the like."""
    if sys.getfilesystemencoding().lower().replace("_", "-") in ("utf-8", "utf8") or sys.flags.utf8_mode:
        return
    if sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in found), error.end


def _find_home() -> None:
    """Set HOME and USER where the user has no passwd entry (containers): libraries fail, or write to a folder "~"."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(Path.cwd() / ".diffusion-inversion" / "home")
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        import pwd

        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            os.environ["USER"] = f"uid{os.getuid()}"
