"""Progress on stderr: a bar with an estimate of the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .threads import follow

_PLAIN_INTERVAL = 10.0  # seconds between two plain lines
_RECENT = 60.0  # seconds of which a plain line's rate and time left are


def duration(seconds: float) -> str:
    """Format seconds as `42 s`, `3:07` or `2:03:07`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def already(description: str, count: int, total: int, what: str) -> None:
    """Say on stderr how much of the work an earlier call had done; nothing where it was none."""
    if count:
        print(f"{description}: {count} of {total} {what} were there", file=sys.stderr, flush=True)


@contextmanager
def track(description: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Show the progress of `total` units of work on stderr; yield `advance(n)`, which counts n more units as done.

    Not a terminal: at most one line in 10 s, and one at the end, which tells where an error stopped the work.
    Call `advance` from one thread. The number of PyTorch's threads follows what other processes leave free
    (`threads.follow`). Where nothing is to be done nothing is shown.
    """
    if not total:
        yield lambda n: None
        return
    follow()
    show = _bar if sys.stderr.isatty() else _lines
    with show(description, total, unit) as count:

        def advance(n: int) -> None:
            count(n)
            follow()

        yield advance


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(escape(unit)),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(escape(description), total=total)

        def advance(n: int) -> None:
            progress.advance(task, n)

        yield advance


@contextmanager
def _lines(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    start = printed_at = time.monotonic()
    done = 0
    recent = deque([(start, 0)])  # when a line was printed, and what was done by then

    def line(now: float, *, last: bool) -> str:
        elapsed = now - start
        since, then = (start, 0) if last else recent[0]
        rate = (done - then) / (now - since) if now > since else 0.0
        if last:
            time_text = f"{'done' if done >= total else 'stopped'} after {duration(elapsed)}"
        else:
            time_text = f"about {duration((total - done) / rate)} left" if rate > 0 else "time left not known"
        return f"{description}: {done}/{total} {unit}, {rate:.{0 if rate >= 100 else 1}f} {unit}/s, {time_text}"

    def advance(n: int) -> None:
        nonlocal done, printed_at
        done += n
        now = time.monotonic()
        if done < total and now - printed_at >= _PLAIN_INTERVAL:
            printed_at = now
            while now - recent[0][0] > _RECENT and len(recent) > 1:
                recent.popleft()
            print(line(now, last=False), file=sys.stderr, flush=True)
            recent.append((now, done))

    try:
        yield advance
    finally:
        print(line(time.monotonic(), last=True), file=sys.stderr, flush=True)
