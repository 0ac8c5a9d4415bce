"""One process at a time works in a run folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LockedError
from .store import disk_errors, remove_partials

LOCK_NAME = ".lock"


def _holder(text: str) -> str:
    """Describe who wrote the lock file; the file is empty for an instant after it is made."""
    try:
        record = json.loads(text)
        return f"process {record['pid']} on {record['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the run folder until the block ends; make the folder if it is missing and clear up after killed writers.

    The lock is the kernel's (flock on `<folder>/.lock`), so it ends with the process, however that ends. The file
    stays. It is not re-entrant: a second lock on the same folder, in the same process too, raises LockedError, which
    names the holder. Raises DiskError where the folder cannot be written.
    """
    path = folder / LOCK_NAME
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = _holder(path.read_text(errors="replace"))
            raise LockedError(
                f"{folder}: {holder} works in this run folder; wait until it ends, stop it, or choose another folder"
            ) from error
        with disk_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
            remove_partials(folder)
        yield
    finally:
        os.close(descriptor)
