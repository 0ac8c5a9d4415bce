"""How many threads to compute with beside what else the machine does.

Threads that share cores with other work wait for each other and take many times as long as one thread would. So the
number follows the cores that others leave free, looked at every few seconds. Results differ by rounding from one number
of threads to another; with OMP_NUM_THREADS or --threads the number stays as it says.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

PERIOD = 10.0  # seconds between two looks
FIRST = 0.2  # seconds that the first look takes
FIXED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Look:
    """CPU seconds since the machine started, of the cores that this process may use, and of the process itself."""

    at: float  # seconds of a clock
    busy: float
    own: float


def look(stat: Path = Path("/proc/stat"), cores: Collection[int] | None = None) -> Look | None:
    """What the system says now; None where it does not. Niced work counts too: it still makes threads wait.

    cores: numbers of the usable ones, by default those that this process may run on.
    """
    try:
        usable = {f"cpu{core}" for core in (os.sched_getaffinity(0) if cores is None else cores)}
        lines = [line.split() for line in stat.read_text().splitlines()]
        tick = os.sysconf("SC_CLK_TCK")
        own = os.times()
    except (OSError, AttributeError, ValueError):
        return None
    busy = 0.0
    for name, *ticks in lines:
        if name in usable:
            user, nice, system, _, _, irq, softirq, steal, *_ = (*map(int, ticks), *[0] * 8)
            busy += (user + nice + system + irq + softirq + steal) / tick
    return Look(time.monotonic(), busy, own.user + own.system)


def quota(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that the container may use (cgroup v2 and v1); infinite where there is no limit."""
    try:
        most, period = (folder / "cpu.max").read_text().split()
        return float("inf") if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        pass
    try:
        most, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float("inf") if int(most) <= 0 else int(most) / int(period)
    except (OSError, ValueError):
        return float("inf")


def others(before: Look, after: Look) -> float:
    """Cores that other processes used between two looks, on average."""
    seconds = max(after.at - before.at, 1e-9)
    return max(0.0, (after.busy - before.busy) - (after.own - before.own)) / seconds


def fair(before: Look, after: Look, cores: float, most: float = float("inf")) -> int:
    """The whole cores, one at least, that others left free between two looks, no more than `most`, a quota.

    What this process itself used is free.
    """
    return max(1, int(min(cores - others(before, after), most) + 0.5))


def own_cores() -> int:
    """How many cores this process may run on: all where the system ties no process to some, as macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> float:
    """`own_cores`, a container's quota among the limits."""
    return min(own_cores(), quota())


@dataclass
class Follower:
    """Sets the number of PyTorch's threads to the `cores` that others leave free, looked at every `period` seconds."""

    look: Callable[[], Look | None] = look
    cores: Callable[[], float] = own_cores
    most: Callable[[], float] = quota
    period: float = PERIOD
    first: float = FIRST
    last: Look | None = None

    def __call__(self) -> None:
        """Look again, where it is time to; nothing changes where the system does not say."""
        before = self.last
        if before is not None and time.monotonic() - before.at < self.period:
            return
        if before is None:
            if (before := self.look()) is None:
                return
            time.sleep(self.first)  # a rate takes two looks, and the first step should be right already
        if (after := self.look()) is None:
            return
        self.last = after
        import torch

        if (threads := fair(before, after, self.cores(), self.most())) != torch.get_num_threads():
            torch.set_num_threads(threads)


_followers: list[Follower] = []  # one, in a process that asked for it


def share_cores(threads: int | None = None) -> None:
    """Follow from now on: for commands, which have the process to themselves. Not where the number is FIXED_BY.

    With `threads` it stays at that many. Raises UsageError for more than there are cores: they would wait in turn.
    """
    _followers[:] = [] if threads is not None or any(os.environ.get(name) for name in FIXED_BY) else [Follower()]
    if threads is None:
        return
    if threads > (most := math.ceil(usable_cores())):
        raise UsageError(f"--threads {threads}: this process may use {_cores()}. Give at most {most}, or leave it out.")
    import torch

    torch.set_num_threads(threads)


def _cores() -> str:
    """`4 cores, a container's quota of 1.5`."""
    count, limit = own_cores(), quota()
    cores = f"{count} core{'s' if count > 1 else ''}"
    return cores if math.isinf(limit) else f"{cores}, a container's quota of {limit:.2g}"


def explain(look: Callable[[], Look | None] = look) -> str:
    """How many threads a command would begin with now, and why."""
    if fixed := next((name for name in FIXED_BY if os.environ.get(name)), None):
        return f"{os.environ[fixed]} on {_cores()}: {fixed} says so; unset it and the number follows what is free"
    before = look()
    time.sleep(FIRST)
    after = look()
    if before is None or after is None:
        return f"PyTorch's own number on {_cores()}: the system does not say what other processes use"
    threads = fair(before, after, own_cores(), quota())
    return f"{threads} on {_cores()}: other processes use {others(before, after):.1f} of them; --threads N fixes it"


def follow() -> None:
    """Follow, in a process that asked for it; cheap to call after every step."""
    for follower in _followers:
        follower()
