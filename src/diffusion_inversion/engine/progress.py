"""Progress on stderr: a bar with the time left on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from .lock import say
from .threads import follow

_PLAIN_INTERVAL = 10.0  # seconds between two plain lines
_RECENT = 60.0  # seconds of which rate and time left are
_OFTEN = 1.0  # seconds between two looks at the rate
_DAY = 86400.0


def duration(seconds: float) -> str:
    """Format seconds as `42 s`, `3:07` or `2:03:07`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def time_of_day(at: float, now: float | None = None) -> str:
    """Format seconds since 1970 as `14:32` of this machine's time zone, with the day where that is not today."""
    here, there = time.localtime(now), time.localtime(at)
    if there[:3] == here[:3]:
        return time.strftime("%H:%M", there)
    return time.strftime("%a %H:%M" if at - time.mktime(here) < 6 * _DAY else "%d %b %H:%M", there)


def already(description: str, count: int, total: int, what: str) -> None:
    """Say on stderr how much of the work an earlier call had done; nothing where it was none."""
    if count:
        print(f"{description}: {count} of {total} {what} were there", file=sys.stderr, flush=True)


class Pace:
    """How much of some work is done, and how fast that goes of late."""

    def __init__(self, total: int, unit: str, images: float | None) -> None:
        """`images`: how many of them a unit is; None where that cannot be said, or the unit is an image."""
        self.total, self.unit, self.images = total, unit, images
        self.done = 0
        self.start = self.looked = time.monotonic()
        self._recent = deque([(self.start, 0)])  # when it was looked, and what was done by then

    def add(self, n: int) -> bool:
        """Count n more units; return whether a second has gone by since that was last so."""
        self.done += n
        now = time.monotonic()
        if now - self.looked < _OFTEN:
            return False
        self.looked = now
        while now - self._recent[0][0] > _RECENT and len(self._recent) > 1:
            self._recent.popleft()
        self._recent.append((now, self.done))
        return True

    @property
    def rate(self) -> float:
        """Units a second in the last minute, once a second has gone by; 0 where that is not known."""
        (since, then), (now, done) = self._recent[0], self._recent[-1]
        return max(done - then, 0) / (now - since) if now > since else 0.0

    def speed(self, rate: float) -> str:
        """A rate in words: `14.4 steps/s, 1843 images/s`."""
        rates = {self.unit: rate, **({} if self.images is None else {"images": rate * self.images})}
        return ", ".join(f"{value:.{0 if value >= 100 else 1}f} {name}/s" for name, value in rates.items())

    @property
    def left(self) -> str:
        """When it will be done, in words."""
        if not self.rate:
            return "time left not known"
        seconds = (self.total - self.done) / self.rate
        return f"about {duration(seconds)} left, ends at {time_of_day(time.time() + seconds)}"

    def record(self, description: str) -> dict[str, object]:
        """As JSON data, for `dinv status`."""
        rate = {"rate": self.rate, "images_per_second": self.rate * (self.images or 1.0)}
        if self.images is None and self.unit != "images":
            del rate["images_per_second"]
        return {
            "what": description, "done": self.done, "total": self.total, "unit": self.unit, **rate, "at": time.time(),
        }  # fmt: skip


@contextmanager
def track(
    description: str, total: int, unit: str = "images", images: float | None = None
) -> Iterator[Callable[[int], None]]:
    """Show the progress of `total` units of work on stderr; yield `advance(n)`, which counts n more units as done.

    A unit that is no image may be so many `images`, whose rate is shown too. Not a terminal nor a notebook: at most one
    line in 10 s, and one at the end, which tells where an error stopped the work. The lock file says the same to
    `dinv status` (`lock.say`). Call `advance` from one thread. The number of PyTorch's threads follows what other
    processes leave free (`threads.follow`). Where nothing is to be done nothing is shown.
    """
    if not total:
        yield lambda n: None
        return
    follow()
    pace = Pace(total, unit, images)
    say({"doing": pace.record(description)})
    show = _bar if sys.stderr.isatty() or _is_notebook() else _lines
    try:
        with show(description, pace) as count:

            def advance(n: int) -> None:
                if pace.add(n):
                    say({"doing": pace.record(description)})
                count(n)
                follow()

            yield advance
    finally:
        say({"doing": pace.record(description)})


def _is_notebook() -> bool:
    """Whether this is a notebook that can show a bar that moves: rich draws it in a widget."""
    if "ipykernel" not in sys.modules or find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console().is_jupyter


@contextmanager
def _bar(description: str, pace: Pace) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(14),  # what is beside it fits into 80 columns up to the time of day
        MofNCompleteColumn(),
        TextColumn(escape(pace.unit)),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(escape(description), total=pace.total, pace="")

        def count(n: int) -> None:
            now = f"{pace.left}, {pace.speed(pace.rate)}" if pace.rate and pace.done < pace.total else ""
            progress.update(task, advance=n, pace=escape(now))

        yield count


@contextmanager
def _lines(description: str, pace: Pace) -> Iterator[Callable[[int], None]]:
    printed_at = pace.start

    def line(rate: float, time_text: str) -> str:
        return f"{description}: {pace.done}/{pace.total} {pace.unit}, {pace.speed(rate)}, {time_text}"

    def count(n: int) -> None:
        nonlocal printed_at
        now = time.monotonic()
        if pace.done < pace.total and now - printed_at >= _PLAIN_INTERVAL:
            printed_at = now
            print(line(pace.rate, pace.left), file=sys.stderr, flush=True)

    try:
        yield count
    finally:
        elapsed = time.monotonic() - pace.start
        ended = f"{'done' if pace.done >= pace.total else 'stopped'} after {duration(elapsed)}"
        print(line(pace.done / elapsed if elapsed else 0.0, ended), file=sys.stderr, flush=True)
