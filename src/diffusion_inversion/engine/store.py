"""The commit protocol: a file is whole or absent, and what the manifest lists is on disk."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigMismatchError, DataError, DiskError

# First part of the name of a file that is being written. A killed process leaves them; `remove_partials` clears up.
PARTIAL_PREFIX = ".partial-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
_LONGEST_VALUE = 80  # characters of one value in a diff
_LONGEST_LIST = 10  # entries of a list that a diff shows whole
_MOST_DIFFERENCES = 20  # lines of a diff
_ABSENT = object()


def _disk_errno(error: Exception) -> int | None:
    """Return the errno of a disk failure, None for any other error."""
    numbers = _FULL + _NOT_WRITABLE
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in numbers else None
    # Writers in Rust or C++ (safetensors, pyarrow) raise errors of their own that keep only the system's text.
    return next((number for number in numbers if os.strerror(number) in str(error)), None)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk failure below (full, over quota, read-only, not permitted) into a DiskError that names `path`."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        number = _disk_errno(error)
        if number is None:
            raise
        remedy = "free some space" if number in _FULL else "make the folder writable or choose another"
        raise DiskError(
            f"{path}: cannot be written ({os.strerror(number)}); what was committed before is kept; "
            f"{remedy}, then run the same command again"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a new name in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def commit_file(path: Path, write: Callable[[Path], None]) -> str:
    """Write a file so that `path` holds its old content or all of the new; return the SHA-256 as 64 hex digits.

    `write` gets a temporary path in the same folder with the same suffix. It may write into that file or put
    another in its place, as safetensors does with mode 0600: the result has the mode that the umask gives.
    Missing parent folders are made. Raises DiskError; other errors of `write` pass through. After an error
    before the rename, `path` is as it was.
    """
    partial = path.with_name(f"{PARTIAL_PREFIX}{secrets.token_hex(6)}{path.suffix}")
    digest = hashlib.sha256()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Made here first so that the kernel applies the umask; os.umask() cannot be read without setting it.
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            mode = os.fstat(descriptor).st_mode & 0o777
            os.close(descriptor)
            write(partial)
            with partial.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return digest.hexdigest()


def commit_bytes(path: Path, data: bytes) -> str:
    """Write `data` to `path` as `commit_file` does; return the SHA-256 as 64 hex digits. Raises DiskError."""

    def write(partial: Path) -> None:
        partial.write_bytes(data)

    return commit_file(path, write)


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left anywhere below `folder`. Call it only while no other process writes there."""
    for partial in folder.rglob(f"{PARTIAL_PREFIX}*"):
        with disk_errors(partial):
            partial.unlink(missing_ok=True)


class Manifest:
    """The list of committed work: one JSON object a line, appended after the work itself is on disk.

    A last line that a kill or power cut tore is not a record: readers skip it and the next append cuts it.
    One process appends at a time (`run_lock`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = -1  # size after the last append; a file of another size is read again before the next

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """Return the records and the number of bytes that they take. Raises DataError for a damaged line."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return [], 0
        records: list[dict[str, Any]] = []
        end = 0
        for number, line in enumerate(io.BytesIO(content), start=1):
            torn = not line.endswith(b"\n")
            try:
                record = None if torn else json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                if end + len(line) == len(content):
                    break
                raise DataError(
                    f"{self.path}, line {number}: not a record, but records follow, so the file was damaged after it "
                    "was written; restore it from a copy, or delete it to do its work again"
                )
            records.append(record)
            end += len(line)
        return records, end

    def records(self) -> list[dict[str, Any]]:
        """Return every committed record in order; none if the file does not exist. Raises DataError if damaged."""
        return self._read()[0]

    def append(self, record: dict[str, Any]) -> None:
        """Add one record and wait until it is on disk. Raises DiskError; ValueError for NaN or infinity."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            with os.fdopen(descriptor, "rb+", buffering=0) as file:
                size = os.fstat(descriptor).st_size
                if size != self._end:
                    self._end = self._read()[1]
                    file.truncate(self._end)
                file.seek(self._end)
                written = file.write(line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            if self._end == 0:
                _sync_folder(self.path.parent)
            self._end += len(line)


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _differences(old: Any, new: Any, key: str) -> Iterator[str]:
    """Yield one line per setting that differs between two JSON values; keys of nested settings are dotted."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and max(map(len, (old, new))) > _LONGEST_LIST:
        if len(old) != len(new):
            yield f"{key}: was {len(old)} entries, now {len(new)}"
            return
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, f"{key}[{index}]")
    else:
        yield f"{key}: was {_show(old)}, now {_show(new)}"


def claim_run(folder: Path, stage: str, settings: dict[str, Any], *, begun: bool = True) -> None:
    """Write `<folder>/<stage>.config.json` the first time; later make sure that the settings are the same.

    `begun` says whether the stage has committed anything yet; until then settings may still change and are replaced.
    `settings` is JSON data, with everything that the stage's result depends on. Call it inside `run_lock`.
    Raises ConfigMismatchError, which lists every setting that differs, and DiskError.
    """
    path = folder / f"{stage}.config.json"
    text = json.dumps(settings, indent=2, allow_nan=False) + "\n"
    try:
        stored = path.read_bytes() if begun else None
    except FileNotFoundError:
        stored = None
    if stored is None:
        commit_bytes(path, text.encode())
        return
    try:
        old = json.loads(stored)
    except ValueError as error:
        raise ConfigMismatchError(
            f"{path}: not JSON ({error}), so it was changed by hand; restore it or choose another run folder"
        ) from error
    lines = list(_differences(old, json.loads(text), ""))
    if lines:
        more = len(lines) - _MOST_DIFFERENCES
        shown = [*lines[:_MOST_DIFFERENCES], *([f"and {more} more"] if more > 0 else [])]
        raise ConfigMismatchError(
            f"{folder}: {stage} was run here with other settings:\n"
            + "\n".join(f"  {line}" for line in shown)
            + f"\nUse the old settings to go on, or choose another run folder. The old ones are in {path}"
        )
