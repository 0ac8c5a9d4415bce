"""Watches workers: starts again what died, stops all when it is interrupted, and ends when the work is done."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field

from ...errors import ConfigMismatchError, DataError, DinvError, DiskError, LockedError, PartialError, UsageError
from ..lock import run_lock
from .worker import Command, Executor, Worker

POLL = 0.2  # seconds between two looks
PATIENCE = 60.0  # seconds that the others get to end by themselves once one has found everything done
# A worker that ended with one of these was refused, for a reason that it says: it would be refused again.
_KINDS: tuple[type[DinvError], ...] = (
    UsageError, PartialError, DataError, ConfigMismatchError, LockedError, DiskError,
)  # fmt: skip
REFUSALS = {kind.exit_code: kind for kind in _KINDS}


@dataclass
class Ended:
    """How workers ended: who found everything done first, who was started again how often, who was refused or lost."""

    first: int
    restarts: dict[int, int] = field(default_factory=dict)  # worker => times
    failed: dict[int, int] = field(default_factory=dict)  # worker => exit code


def watch(executor: Executor, command: Command, workers: int, max_restarts: int) -> Ended:
    """Start workers and wait until one of them has found everything done, and the others have ended too.

    A worker that a signal or an error of the program ended is started again, at most `max_restarts` times; one that
    was refused is not, and the others go on without it. On KeyboardInterrupt all are asked to end with the batch in
    hand, on a second one at once, and it is raised again. Raises the error of the first worker where none is left, and
    PartialError where that one died.
    """
    with run_lock(command.logs):  # workers elsewhere look whether they see it
        return _watch(executor, command, workers, max_restarts)


def _watch(executor: Executor, command: Command, workers: int, max_restarts: int) -> Ended:
    running = dict(enumerate(executor.start(range(workers))))
    again = dict.fromkeys(running, 0)
    failed: dict[int, int] = {}
    first, since = None, 0.0
    try:
        while running:
            for number, worker in list(running.items()):
                if (code := worker.poll()) is None:
                    continue
                del running[number]
                if code == 0:
                    if first is None:
                        first, since = number, time.monotonic()
                elif first is not None:
                    pass  # nothing is left to do
                elif code not in REFUSALS and again[number] < max_restarts:
                    again[number] += 1
                    _say(f"worker {number} {_how(code)}; started again ({again[number]} of {max_restarts})")
                    running[number] = executor.start([number])[0]
                else:
                    failed[number] = code
                    _say(f"worker {number} {_how(code)}; {len(running)} left. Its log: {command.log(number)}")
            if first is not None and running and time.monotonic() - since > PATIENCE:
                _stop(running, PATIENCE)
                break
            if running:
                time.sleep(POLL)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            _say("stopping: the workers finish the batches in hand first; once more stops at once")
        _stop(running)
        raise
    if first is None:
        raise _error(command, *next(iter(failed.items())))
    restarts = {number: max(command.starts(number) - 1, 0) for number in again}
    return Ended(first, {number: times for number, times in restarts.items() if times}, failed)


def _stop(running: dict[int, Worker], patience: float = math.inf) -> None:
    """Ask workers to end, and wait until they have; ask again on an interrupt or after `patience` seconds, then end."""
    for at_once in (False, False, True):
        until = time.monotonic() + patience
        try:
            for worker in running.values():
                worker.stop(at_once)
            while running and time.monotonic() < until:
                for number in [number for number, worker in running.items() if worker.poll() is not None]:
                    del running[number]
                time.sleep(POLL if running else 0)
        except KeyboardInterrupt:
            continue
        if not running:
            return


def _error(command: Command, number: int, code: int) -> DinvError:
    """The error that a worker ended with, as it said it."""
    log = command.log(number)
    if code not in REFUSALS:
        return PartialError(
            f"worker {number} {_how(code)} and was the last; what was committed is kept. Its log says why: {log}. "
            "The same command goes on."
        )
    said = log.read_text(encoding="utf-8", errors="replace").rpartition("\nerror: ")[2].strip()
    return REFUSALS[code](f"{said}\n(so said worker {number}; its log: {log})")


def _how(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
