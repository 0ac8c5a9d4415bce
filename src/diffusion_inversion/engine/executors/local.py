"""Workers that are processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UsageError
from ..threads import usable_cores
from .worker import Command, Worker


@dataclass(frozen=True)
class Process:
    """A worker on this machine."""

    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self, at_once: bool = False) -> None:
        self.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)


@dataclass(frozen=True)
class Local:
    """Starts processes. `devices`: CUDA_VISIBLE_DEVICES of each worker; none: what this process sees."""

    command: Command
    devices: tuple[str, ...] = ()

    def start(self, numbers: Sequence[int]) -> list[Worker]:
        """Start the workers of these numbers."""
        started: list[Worker] = []
        for number in numbers:
            own = [("CUDA_VISIBLE_DEVICES", self.devices[number])] if self.devices else []
            started.append(Process(self.command.start(number, own)))
        return started


def dealt_cores(workers: int) -> int:
    """Cores of each worker where all that this process may use are dealt between them: one at least."""
    return max(1, int(usable_cores()) // workers)


def dealt_devices(workers: int, each: int) -> tuple[str, ...]:
    """CUDA_VISIBLE_DEVICES of each worker, who has `each` GPUs to itself. Raises UsageError where there are too few."""
    if each == 0:
        return ("",) * workers
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None:
        import torch

        names = [str(number) for number in range(torch.cuda.device_count())]
    else:
        names = [name for name in seen.split(",") if name]
    if workers * each > len(names):
        raise UsageError(
            f"--workers {workers} --gpus-per-worker {each}: {workers * each} GPUs are wanted, {len(names)} are seen "
            "here. Give fewer workers, or leave --gpus-per-worker out, so that all see the same."
        )
    return tuple(",".join(names[number * each : (number + 1) * each]) for number in range(workers))
