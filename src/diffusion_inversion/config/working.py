"""Who does a command's work: settings of `--workers`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from .settings import Settings, setting

ExecutorName = Literal["local", "ray", "slurm"]


class WorkerSettings(Settings):
    """Workers that share what a command has to do; each is the same command with `--join`."""

    workers: int | None = setting(
        None, "workers that share the work; what dies is started again", unset="none: this process does it", ge=1
    )
    executor: ExecutorName = setting(
        "local", "processes of this machine, actors of a Ray cluster, or tasks of a Slurm array"
    )
    cpus_per_worker: int | None = setting(
        None, "cores of each worker, which are its threads", unset="local: the cores dealt between them; else 1", ge=1
    )
    gpus_per_worker: int | None = setting(
        None, "GPUs of each worker, which computes on the first", unset="local: all see the same; else 0", ge=0
    )
    max_restarts: int = setting(3, "times that a worker is started again", ge=0)

    @model_validator(mode="after")
    def _are_so_many(self) -> WorkerSettings:
        if self.workers is None and (given := self.model_fields_set):
            names = ", ".join(f"{name}={getattr(self, name)}" for name in sorted(given))
            raise ValueError(f"{names}: of workers; say how many with workers=N")
        return self
