"""Seconds of several things, measured in turn, so that a busy machine is busy for all of them.

What a GPU does is over when the clock is read.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ...engine.graphs import WARM_CALLS


@dataclass
class Timed:
    """Something to measure: `call` does the work of `images` images; `repeats` caps how often, None = every round."""

    name: str
    call: Callable[[], object]
    images: int = 1
    repeats: int | None = None
    cpu: list[float] = field(default_factory=list)  # seconds over all threads of the process, one for each round
    wall: list[float] = field(default_factory=list)
    on_gpu: bool = False

    @property
    def cost_per_image(self) -> float:
        """What is compared: CPU seconds, on a GPU those on the clock."""
        return self.wall_per_image if self.on_gpu else self.cpu_per_image

    @property
    def cpu_per_image(self) -> float:
        """Median CPU seconds for each image."""
        return statistics.median(self.cpu) / self.images

    @property
    def wall_per_image(self) -> float:
        """Median seconds on the clock for each image."""
        return statistics.median(self.wall) / self.images

    def record(self) -> dict[str, float | int]:
        """The medians as JSON data, with their number."""
        return {
            "cpu_seconds_per_image": round(self.cpu_per_image, 6),
            "wall_seconds_per_image": round(self.wall_per_image, 6),
            "images": self.images,
            "n": len(self.cpu),
        }


def measure_in_turn(tasks: Sequence[Timed], repeats: int) -> None:
    """Call every task once unmeasured, then once in each of `repeats` rounds, the order turned by one every round.

    On a GPU it is called as often beforehand as it takes until its work is recorded (engine/graphs.py), and once more.
    Says on stderr what was measured, line by line.
    """
    for number in range(repeats + 1):
        start = number % max(1, len(tasks))
        for task in [*tasks[start:], *tasks[:start]]:
            if task.repeats is not None and number > task.repeats:
                continue
            for _ in range(WARM_CALLS + 1 if task.on_gpu and not number else 0):
                task.call()
            _finish(task)
            cpu, wall = time.process_time(), time.perf_counter()
            task.call()
            _finish(task)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                task.cpu.append(cpu)
                task.wall.append(wall)
            which = f"round {number}/{repeats}" if number else "warm-up"
            print(f"bench: {which}: {task.name}: {cpu:.2f} CPU s, {wall:.2f} s", file=sys.stderr, flush=True)


def _finish(task: Timed) -> None:
    if task.on_gpu:
        torch.cuda.synchronize()
