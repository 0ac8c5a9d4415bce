"""One worker: a process with the command that all of them have, and its log."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..lock import LOCK_NAME

STARTED = "--- worker "  # begins the line of a log that says when the worker was started
LOST = -int(signal.SIGKILL)  # exit code of a worker of which nothing is known but that it is gone
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


@dataclass(frozen=True)
class Command:
    """What each worker does. It can be pickled: a worker may be started on another machine that sees the same folders.

    arguments: of `dinv`. folder: the working folder. logs: folder of the logs. environment: what is set in it.
    """

    arguments: tuple[str, ...]
    folder: Path
    logs: Path
    environment: tuple[tuple[str, str], ...] = ()

    def log(self, number: int) -> Path:
        """Where worker `number` says what it does, the lines of each start behind those of the one before."""
        return self.logs / f"worker-{number}.log"

    def summary(self, number: int) -> Path:
        """What worker `number` printed on stdout when it was started last."""
        return self.logs / f"worker-{number}.out"

    def starts(self, number: int) -> int:
        """How often worker `number` was started, on whatever machine."""
        try:
            lines = self.log(number).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return 0
        return sum(line.startswith(STARTED) for line in lines)

    def is_watched(self, number: int) -> bool:
        """Whether this machine sees the lock of who watches, hence other workers' claims; else its log says so.

        A worker that was started before has seen it: its watch may be gone, and the work goes on. Raises OSError where
        the folders are not seen.
        """
        if self.starts(number):
            return True
        with (self.logs / LOCK_NAME).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        host = socket.gethostname()
        with self.log(number).open("a", encoding="utf-8") as log:
            log.write(
                f"{STARTED}{number} on {host}\nerror: {self.logs}: a lock that another machine holds there is not seen "
                f"on {host}, so several workers could do the same. Choose a folder on a file system whose locks reach "
                "all machines, such as NFS 4.\n"
            )
        return False

    def start(self, number: int, environment: Sequence[tuple[str, str]] = ()) -> subprocess.Popen[bytes]:
        """Start worker `number` on this machine.

        It has a session of its own, so Ctrl-C reaches who watches it alone; should the thread that started it end, it
        gets SIGTERM, so that no worker outlives its watch. Raises OSError where the folders are not seen here.
        """
        library, parent = ctypes.CDLL(None), os.getpid()

        def follow_parent() -> None:  # between fork and exec
            if sys.platform == "linux":
                library.prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
                if os.getppid() != parent:
                    os._exit(1)

        with self.log(number).open("ab") as log, self.summary(number).open("wb") as summary:
            log.write(f"{STARTED}{number} on {socket.gethostname()}, watched by process {parent}\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", "diffusion_inversion", *self.arguments],
                cwd=self.folder, env={**os.environ, **dict(self.environment), **dict(environment)},
                stdin=subprocess.DEVNULL, stdout=summary, stderr=log, start_new_session=True, preexec_fn=follow_parent,
            )  # fmt: skip


class Worker(Protocol):
    """A worker that was started."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, `LOST` where it is gone without one; None while it works."""

    def stop(self, at_once: bool = False) -> None:
        """Ask it to end: with the batch in hand, or at once. Does nothing where it has ended."""


class Executor(Protocol):
    """Who starts workers somewhere."""

    def start(self, numbers: Sequence[int]) -> list[Worker]:
        """Start the workers of these numbers."""
