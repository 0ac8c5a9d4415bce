"""Who may work in a run folder: one process, or several that share its units of work."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigMismatchError, DiskError, LockedError, UsageError
from .redaction import redact
from .store import disk_errors, guarded, remove_partials

LOCK_NAME, CLAIMS = ".lock", ".claims"
_PATIENCE = 3.0  # seconds


@dataclass
class _Hold:
    """A run folder that this process holds, and what its lock file says: who works there, at what."""

    descriptor: int
    record: dict[str, Any]

    def write(self) -> None:
        """Put the record into the file. Others read it without a lock: what follows the record counts for nothing."""
        content = json.dumps(self.record).encode()
        os.pwrite(self.descriptor, content, 0)
        os.ftruncate(self.descriptor, len(content))


_held: dict[str, _Hold] = {}  # run folders this process holds, the outermost first


def say(facts: Mapping[str, Any]) -> None:
    """Put facts about the work in hand, JSON data, into the lock file of the outermost folder that this process holds.

    `dinv status` reads them. Nothing depends on them: they are not synced, and a full disk does not stop the work.
    """
    for hold in list(_held.values())[:1]:
        hold.record |= facts
        with suppress(OSError):
            hold.write()


def record_of(folder: Path) -> dict[str, Any]:
    """What the lock file of a folder says, without locking it; nothing where there is none or it is being written."""
    try:
        found, _ = json.JSONDecoder().raw_decode((folder / LOCK_NAME).read_text(errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def holders(folder: Path) -> list[int] | None:
    """Processes that have the lock file of a folder open, so hold it; None where this machine cannot know.

    It looks at files that are open, for a lock that is tried would refuse a process that starts just then. Processes
    of other users are not seen, but for the one that the file names.
    """
    record = record_of(folder)
    if not record or record.get("host") != socket.gethostname():
        return None if record else []
    found = []
    try:
        ours = os.stat(folder / LOCK_NAME)
        processes = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return None
    for process in processes:
        try:
            with os.scandir(f"/proc/{process}/fd") as entries:
                opened = [os.stat(entry) for entry in entries]
        except PermissionError:
            found += [process] if process == record.get("pid") else []
        except OSError:  # it has ended
            continue
        else:
            found += [process] if any(os.path.samestat(one, ours) for one in opened) else []
    return found


def _is_worked_in(folder: Path) -> bool:
    """Whether a folder is a run that a process holds, or may hold from another machine. No lock is tried: `holders`."""
    record = record_of(folder)
    return bool(record) and ("ended" not in record or bool(record.get("shared"))) and holders(folder) != []


def _holder(folder: Path) -> str:
    """Describe who wrote the lock file; the file is empty for an instant after it is made."""
    record = record_of(folder)
    return f"process {record['pid']} on {record['host']}" if {"pid", "host"} <= record.keys() else "another process"


@contextmanager
def run_lock(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold the run folder until the block ends; make the folder if it is missing and clear up after killed writers.

    `shared` lets other processes that share work beside this one, each on units that no other has claimed.
    The lock is the kernel's (flock on `<folder>/.lock`), so it ends with the process, however that ends; the file
    stays. Inside a block that holds it already, in the same process, it does nothing. Raises LockedError, which names
    the holder, UsageError where no folder can be there, and DiskError where it cannot be written.
    """
    key = os.path.realpath(folder)
    if key in _held:
        yield
        return
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        raise UsageError(
            f"{folder}: cannot be made a folder ({error.strerror}); choose another place for it"
        ) from error
    except OSError:
        with disk_errors(path):
            raise
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        alone = _try_lock(descriptor, fcntl.LOCK_EX, path)
        if not alone and not (shared and _join(descriptor, path)):
            raise LockedError(
                f"{folder}: {_holder(folder)} works in this run folder; wait until it ends, stop it, or choose another "
                "folder. Several processes share a run where each was started with --join."
            )
        us = {"pid": os.getpid(), "host": socket.gethostname(), "shared": shared, "since": time.time()}
        hold = _Hold(descriptor, us)
        with disk_errors(path):
            hold.write()
            if alone:
                remove_partials(folder, _is_worked_in)
        if alone and shared:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        _held[key] = hold
        try:
            yield
        except BaseException as error:
            cause = redact(str(error).partition("\n")[0]) or type(error).__name__
            hold.record["error"] = "interrupted" if isinstance(error, KeyboardInterrupt) else cause
            raise
        finally:
            hold.record["ended"] = time.time()
            with suppress(OSError):
                hold.write()
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
    hold = _held.get(os.path.realpath(folder))
    return hold is not None and bool(hold.record["shared"])


class TakenOverError(LockedError):
    """A claim was lost while its owner lived, so another process may have it by now."""


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Hold one unit of work of a shared run until the block ends; yield whether no other process has it.

    A claim has no clock: it ends with its process, however that ends. It can be lost earlier where somebody deletes its
    file, or a file server forgets its locks. What the block commits from then on is refused by TakenOverError, so
    that the files of two processes never mix; between that look and a rename lies an instant that nothing guards.
    """
    path = folder / CLAIMS / name
    with _claim_file(folder, name) as descriptor:
        if not (_try_lock(descriptor, fcntl.LOCK_EX, path) and _is_at(descriptor, path)):
            yield False
            return

        def require() -> None:
            if not _is_at(descriptor, path):
                raise TakenOverError(
                    f"{path}: this claim was lost, because its file was deleted or its server forgot the lock, so "
                    "another process may do the same work. Nothing more of it is written here."
                )

        with guarded(require):
            yield True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path; a file server that lost its lock fails the read (EIO)."""
    try:
        os.pread(descriptor, 1, 0)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


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
