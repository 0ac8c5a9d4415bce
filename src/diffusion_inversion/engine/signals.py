"""What Ctrl-C and `kill` do: the first lets the unit of work end and commit, the second stops at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

GRACE = 30.0  # seconds that a unit gets to end; a longer one saves its state and stops there
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_inside = False  # a unit of work is being done
_requested_at: float | None = None
_terminals: list[str] = []  # streams that a closed terminal takes away


def install() -> None:
    """Handle interrupts in this process from now on. A signal that the parent had ignored (nohup) stays ignored."""
    global _inside, _requested_at, _terminals
    _inside, _requested_at = False, None
    _terminals = [name for name in ("stdout", "stderr") if getattr(sys, name).isatty()]
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: object) -> None:
    global _requested_at
    if not _inside or _requested_at is not None:
        raise KeyboardInterrupt
    _requested_at = time.monotonic()
    if number == signal.SIGHUP:  # the terminal is gone: whoever writes to it gets an error
        for name in _terminals:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (until the process ends)
    with suppress(OSError, RuntimeError):  # RuntimeError: the signal came in the middle of another write
        print("stopping: the batch in hand is finished first; once more stops at once", file=sys.stderr, flush=True)


@contextmanager
def finishing() -> Iterator[None]:
    """Do one unit of work: a first signal inside waits for its end, then raises KeyboardInterrupt.

    Units may lie in one another: it waits for the end of the outermost.
    """
    global _inside
    before, _inside = _inside, True
    try:
        yield
    finally:
        _inside = before
    if _requested_at is not None and not before:
        raise KeyboardInterrupt


def asked_to_stop() -> bool:
    """Whether a stop was asked for: a unit of several parts ends with the one in hand."""
    return _requested_at is not None


def out_of_time() -> bool:
    """Whether a stop was asked for so long ago that a long unit must save its state and end now."""
    return _requested_at is not None and time.monotonic() - _requested_at >= GRACE
