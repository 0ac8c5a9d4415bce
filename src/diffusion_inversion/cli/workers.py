"""`--workers N`: the same command in several places, each with `--join`, and the summary of one of them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import LockedError, UsageError
from .given import Given

if TYPE_CHECKING:
    from ..config.working import WorkerSettings
    from ..engine.executors.worker import Command, Executor


def by_workers(given: Given[WorkerSettings], run: Path, restart: bool = False) -> dict[str, Any] | None:
    """Let workers do the command that was given on a run folder; None where it asks for none.

    Returns the summary that one of them ends with, and `workers`: how many, where, who was started again how often.
    Raises what they were refused for.
    """
    settings = given.settings()
    if settings.workers is None:
        return None
    if restart:
        raise UsageError("--workers --restart: one would delete what the others do. Restart alone, then let them work.")
    from ..engine.executors.watch import watch
    from ..engine.executors.worker import Command
    from ..engine.lock import run_lock

    logs = Path(f"{os.path.abspath(run)}-workers") / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    executor, command = _executor(settings, Command(joined(sys.argv[1:], given.flags().values()), Path.cwd(), logs))
    logs.mkdir(parents=True)
    typer.echo(f"{settings.workers} workers ({settings.executor}); their logs: {logs}; dinv status {run}", err=True)
    ended = watch(executor, command, settings.workers, settings.max_restarts)
    with suppress(LockedError), run_lock(run):  # clears up after those that were killed, unless others still work
        pass
    found = command.summary(ended.first).read_text(encoding="utf-8")
    told = {
        "workers": {
            "count": settings.workers, "executor": settings.executor, "logs": str(logs), "restarts": ended.restarts,
            "failed": ended.failed,
        }
    }  # fmt: skip
    if "--json" not in sys.argv:
        return {**told, "text": found.rstrip("\n")}
    summary = json.loads(found)
    del summary["ok"]
    return {**summary, **told, "text": ""}


def joined(arguments: Sequence[str], flags: Collection[str]) -> tuple[str, ...]:
    """The arguments of a worker: those given, with `--join` in place of options, each of which has a value."""
    found: list[str] = []
    words = iter(arguments)
    for word in words:
        if word.partition("=")[0] not in flags:
            found.append(word)
            continue
        if "=" not in word:
            next(words)
        if "--join" not in found:
            found.append("--join")
    return tuple(found)


def _executor(settings: WorkerSettings, command: Command) -> tuple[Executor, Command]:
    """Who starts the workers, and the command with the environment of each."""
    from dataclasses import replace

    from ..engine.executors.local import Local, dealt_cores, dealt_devices
    from ..engine.executors.ray import Ray
    from ..engine.executors.slurm import Slurm
    from ..engine.threads import FIXED_BY

    workers, gpus = settings.workers or 1, settings.gpus_per_worker
    local = settings.executor == "local"
    cores = settings.cpus_per_worker or (dealt_cores(workers) if local else 1)
    fixed = {name: os.environ[name] for name in FIXED_BY if os.environ.get(name)}
    if settings.cpus_per_worker is not None or not fixed:
        fixed = dict.fromkeys(FIXED_BY, str(cores))
    command = replace(command, environment=tuple(fixed.items()))
    if settings.executor == "ray":
        return Ray(command, cores, gpus or 0, settings.max_restarts), command
    if settings.executor == "slurm":
        return Slurm(command, cores, gpus or 0), command
    return Local(command, () if gpus is None else dealt_devices(workers, gpus)), command
