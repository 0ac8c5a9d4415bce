"""The commit protocol for files: a file is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import DiskError
from .faults import fault_point

# First part of the name of a file that is being written. A killed process leaves them; `remove_partials` clears up.
PARTIAL_PREFIX = ".partial-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
_guards: list[Callable[[], None]] = []  # asked before anything gets its name
_SYNCS = 8  # files that are synced at once: the journal takes several in one commit


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


@contextmanager
def guarded(may_write: Callable[[], None]) -> Iterator[None]:
    """Ask `may_write`, which raises where the answer is no, before each rename and each record in the block."""
    _guards.append(may_write)
    try:
        yield
    finally:
        _guards.remove(may_write)


def ask_guards() -> None:
    """Raise what a guard raises; see `guarded`."""
    for may_write in list(_guards):
        may_write()


def sync_folder(folder: Path) -> None:
    """Make a new name in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def commit_file(path: Path, write: Callable[[Path], None], before_rename: Callable[[str], None] | None = None) -> str:
    """Write a file so that `path` holds its old content or all of the new; return the SHA-256 as 64 hex digits.

    `write` gets a temporary path in the same folder with the same suffix. It may write into that file or put
    another in its place, as safetensors does with mode 0600: the result has the mode that the umask gives.
    `before_rename` gets the SHA-256 when the new content is on disk under its temporary name. Missing parent folders
    are made. Raises DiskError; other errors of `write` pass through. After an error before the rename, `path` is as
    it was.
    """
    with disk_errors(path), _partial(path) as partial:
        mode = partial.stat().st_mode & 0o777
        write(partial)
        fault_point("written")
        digest = _sync_and_hash(partial, mode)
        fault_point("synced")
        ask_guards()
        if before_rename is not None:
            before_rename(digest)
        os.replace(partial, path)
        fault_point("renamed")
        sync_folder(path.parent)
        fault_point("committed")
    return digest


def commit_bytes(path: Path, data: bytes, before_rename: Callable[[str], None] | None = None) -> str:
    """Write `data` to `path` as `commit_file` does; return the SHA-256 as 64 hex digits. Raises DiskError."""
    return commit_file(path, lambda partial: _write(partial, data), before_rename)


def commit_many(files: Mapping[Path, bytes]) -> dict[Path, str]:
    """Write several files as `commit_bytes` does, in far less time: one sync a folder, files synced side by side.

    Each is whole or absent, but a kill can leave some of them: only a manifest record tells that all are there.
    Returns the SHA-256 of each. Raises DiskError.
    """
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    with ExitStack() as stack:
        partials = {}
        for path, data in files.items():
            stack.enter_context(disk_errors(path))
            partials[path] = stack.enter_context(_partial(path))
            _write(partials[path], data)
        fault_point("written")
        with ThreadPoolExecutor(_SYNCS) as pool:
            list(pool.map(_sync, partials.values()))
        fault_point("synced")
        ask_guards()
        for path, partial in partials.items():
            os.replace(partial, path)
        fault_point("renamed")
        for folder in {path.parent for path in files}:
            sync_folder(folder)
        fault_point("committed")
    return digests


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Make an empty temporary file beside `path`; it is deleted after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL_PREFIX}{secrets.token_hex(6)}{path.suffix}")
    # Made here first so that the kernel applies the umask; os.umask() cannot be read without setting it.
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield partial
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _write(partial: Path, data: bytes) -> None:
    partial.write_bytes(data)


def _sync(partial: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())


def _sync_and_hash(partial: Path, mode: int) -> str:
    digest = hashlib.sha256()
    with partial.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    return digest.hexdigest()


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A copy of `folder`, where there is one, to write into; it takes its place when the block ends without an error.

    After a kill the folder is as it was, or, killed between two renames, comes back with the next call. Raises
    DiskError.
    """
    made, before = (folder.with_name(f"{PARTIAL_PREFIX}{part}-{folder.name}") for part in ("new", "old"))
    with disk_errors(folder):
        if before.is_dir() and not folder.exists():
            before.rename(folder)
        for left in (made, before):
            shutil.rmtree(left, ignore_errors=True)
        try:
            if folder.is_dir():
                shutil.copytree(folder, made)
            made.mkdir(parents=True, exist_ok=True)
            yield made
            for path in made.rglob("*"):
                if path.is_file():
                    _sync(path)
            if folder.is_dir():
                folder.rename(before)
            made.rename(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def remove_partials(folder: Path, is_anothers: Callable[[Path], bool] = lambda below: False) -> None:
    """Delete files that killed writers left anywhere below `folder`; folders are `replaced_folder`'s own to clear.

    Call it only while no other process writes there, but in folders below of which `is_anothers` says so: these stay
    as they are. Raises DiskError.
    """
    for above, folders, files in os.walk(folder):
        folders[:] = (name for name in folders if not is_anothers(Path(above, name)))
        for partial in (Path(above, name) for name in files if name.startswith(PARTIAL_PREFIX)):
            with disk_errors(partial):
                partial.unlink(missing_ok=True)
