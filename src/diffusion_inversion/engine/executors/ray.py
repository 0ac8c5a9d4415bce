"""Workers that are actors of a Ray cluster, whose machines see the same run folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ...errors import DiskError, UsageError, how_to_install
from .worker import LOST, Command, Worker


class Actor:
    """Holds a worker's place in the cluster; the work is done by a process of its own, which ends with it."""

    def work(self, command: Command, number: int) -> int:
        """Do a worker's command; return its exit code."""
        return command.start(number).wait() if command.is_watched(number) else DiskError.exit_code


@dataclass(frozen=True)
class Placed:
    """A worker in the cluster. Ray itself starts an actor again that died, or whose machine is gone."""

    ray: Any
    actor: Any
    code: Any  # of what `work` will return

    def poll(self) -> int | None:
        if not self.ray.wait([self.code], timeout=0)[0]:
            return None
        try:
            return int(self.ray.get(self.code))
        except self.ray.exceptions.RayActorError:
            return LOST
        except self.ray.exceptions.RayTaskError as error:
            raise UsageError(
                f"--executor ray: a machine of the cluster cannot start the command ({error.cause}). All of them need "
                "this package, and must see the working folder and --out under the same names."
            ) from error

    def stop(self, at_once: bool = False) -> None:
        self.ray.kill(self.actor)  # its process then gets SIGTERM


@dataclass(frozen=True)
class Ray:
    """Starts actors in the cluster of RAY_ADDRESS, in the one that runs on this machine, or in a new one here.

    Raises UsageError where Ray is not installed.
    """

    command: Command
    cpus: int
    gpus: int
    max_restarts: int

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise UsageError(f"--executor ray: not installed; {how_to_install('ray')}")

    def start(self, numbers: Sequence[int]) -> list[Worker]:
        """Start the workers of these numbers. Raises UsageError where the cluster is not reached."""
        ray = _connected()
        lives = {"max_restarts": self.max_restarts, "max_task_retries": self.max_restarts}
        place = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, scheduling_strategy="SPREAD", **lives)(Actor)
        actors = [place.remote() for _ in numbers]
        return [
            Placed(ray, actor, actor.work.remote(self.command, number))
            for actor, number in zip(actors, numbers, strict=True)
        ]


def _connected() -> Any:
    """The module `ray`, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    import ray

    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = os.environ.get("RAY_ADDRESS", "a cluster of this machine")
            raise UsageError(
                f"--executor ray: {where} cannot be reached ({str(error).partition(chr(10))[0]}). Start Ray there, or "
                "set or unset RAY_ADDRESS."
            ) from error
    return ray
