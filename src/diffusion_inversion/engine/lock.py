"""Who may work in a run folder: one process, or several that share its units of work."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigMismatchError, DiskError, LockedError
from .store import disk_errors, remove_partials

LOCK_NAME, CLAIMS = ".lock", ".claims"
_PATIENCE = 3.0  # seconds
_held: dict[str, bool] = {}  # run folders this process holds => whether it shares them


def _holder(text: str) -> str:
    """Describe who wrote the lock file; the file is empty for an instant after it is made."""
    try:
        record = json.loads(text)
        return f"process {record['pid']} on {record['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def run_lock(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold the run folder until the block ends; make the folder if it is missing and clear up after killed writers.

    `shared` lets other processes that share work beside this one, each on units that no other has claimed.
    The lock is the kernel's (flock on `<folder>/.lock`), so it ends with the process, however that ends; the file
    stays. Inside a block that holds it already, in the same process, it does nothing. Raises LockedError, which names
    the holder, and DiskError where the folder cannot be written.
    """
    key = os.path.realpath(folder)
    if key in _held:
        yield
        return
    path = folder / LOCK_NAME
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        alone = _try_lock(descriptor, fcntl.LOCK_EX, path)
        if not alone and not (shared and _join(descriptor, path)):
            holder = _holder(path.read_text(errors="replace"))
            raise LockedError(
                f"{folder}: {holder} works in this run folder; wait until it ends, stop it, or choose another folder. "
                "Several processes share a run where each was started with --join."
            )
        with disk_errors(path):
            os.ftruncate(descriptor, 0)
            us = {"pid": os.getpid(), "host": socket.gethostname(), "shared": shared}
            os.pwrite(descriptor, json.dumps(us).encode(), 0)
            if alone:
                remove_partials(folder)
        if alone and shared:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        _held[key] = shared
        yield
    finally:
        _held.pop(key, None)
        os.close(descriptor)


def _join(descriptor: int, path: Path) -> bool:
    """Take the shared lock; the first of those who share holds it alone at first, while it clears up."""
    patience = time.monotonic() + _PATIENCE
    while not _try_lock(descriptor, fcntl.LOCK_SH, path):
        if time.monotonic() > patience and '"shared": true' not in path.read_text(errors="replace"):
            return False
        time.sleep(0.05)
    return True


def is_shared(folder: Path) -> bool:
    """Whether this process holds the run folder together with others."""
    return _held.get(os.path.realpath(folder), False)


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Hold one unit of work of a shared run until the block ends; yield whether no other process has it."""
    with _claim_file(folder, name) as descriptor:
        yield _try_lock(descriptor, fcntl.LOCK_EX, folder / CLAIMS / name)


@contextmanager
def same_jobs(folder: Path, stage: str, jobs: str) -> Iterator[None]:
    """Work on a list of jobs together with others who have the same list; `jobs` is its name.

    Raises ConfigMismatchError where others work on another list: units of both would overlap.
    """
    path = folder / CLAIMS / f"{stage}-jobs"
    with _claim_file(folder, f"{stage}-jobs") as descriptor:
        while not (first := _try_lock(descriptor, fcntl.LOCK_EX, path)) and not _try_lock(
            descriptor, fcntl.LOCK_SH, path
        ):
            time.sleep(0.01)
        if first:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, jobs.encode(), 0)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.pread(descriptor, 64, 0).decode(errors="replace") != jobs:
            raise ConfigMismatchError(
                f"{folder}: other processes share this run with other images or another number of variants. Give all "
                "of them the same command, or wait until they have ended."
            )
        yield


@contextmanager
def briefly(folder: Path, name: str) -> Iterator[None]:
    """Wait until no other process of a shared run is inside a block of this name, however long that takes.

    Most blocks take an instant; what a run chooses once takes as long as its trials, for which the others wait.
    """
    if not is_shared(folder):
        yield
        return
    with _claim_file(folder, name) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _claim_file(folder: Path, name: str) -> Iterator[int]:
    path = folder / CLAIMS / name
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int, path: Path) -> bool:
    """Whether the lock was free. Raises DiskError where the file system of `path` has no locks (ENOSYS, ENOLCK)."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise DiskError(
                f"{path}: cannot be locked ({error.strerror}), so two processes could work here at once; choose a "
                f"folder on another disk (`dinv doctor {path.parent}` tries its locks)"
            ) from error
        return False
    return True
