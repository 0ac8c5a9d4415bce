"""Jobs that need one another, each done once, whoever does it; what a job found is kept as JSON in the ledger."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.ledger import Ledger
from ..engine.lock import claim, is_shared
from ..errors import DataError

_POLL = 1.0  # seconds between two looks at jobs that other processes hold


@dataclass(frozen=True)
class Job:
    """One piece of work. `name` depends on all that its result depends on; `do` returns JSON data."""

    name: str  # <kind>/<digest>
    says: str  # for people
    needs: tuple[str, ...]
    do: Callable[[], dict[str, Any]]

    @property
    def file(self) -> str:
        """Where its result is kept, below the folder of the sweep."""
        return f"results/{self.name}.json"


def run_jobs(folder: Path, jobs: Mapping[str, Job]) -> None:
    """Do every job that is left, after those it needs. In a shared folder, return when all are done.

    Call it inside `run_lock(folder)`. A job whose `do` raises ends the call; what was done before is kept.
    """
    ledger = Ledger(folder)
    total = len(jobs)
    while True:
        done = _done(ledger, jobs.values())
        left = [job for name, job in jobs.items() if name not in done]
        if not left:
            return
        worked = False
        for job in left:
            if not done.issuperset(job.needs):
                continue
            if not is_shared(folder):
                _do(ledger, job, len(done), total)
                done.add(job.name)
                worked = True
                continue
            with claim(folder, job.name.replace("/", "-")) as mine:
                done = _done(ledger, jobs.values())
                if mine and job.name not in done:
                    _do(ledger, job, len(done), total)
                    done.add(job.name)
                    worked = True
        if not worked:
            time.sleep(_POLL)


def _do(ledger: Ledger, job: Job, done: int, total: int) -> None:
    print(f"{done + 1} of {total}: {job.says}", file=sys.stderr, flush=True)
    text = json.dumps(job.do(), allow_nan=False) + "\n"
    ledger.commit(job.file, text.encode())


def _done(ledger: Ledger, jobs: Iterable[Job]) -> set[str]:
    committed = ledger.manifest.units()
    return {job.name for job in jobs if job.file in committed}


def result(folder: Path, job: Job) -> dict[str, Any]:
    """What a job found. Raises DataError where it was not done or its file changed since."""
    found: dict[str, Any] | None = Ledger(folder).read_json(job.file)
    if found is None:
        raise DataError(f"{folder / job.file}: not there yet. Run the same `dinv sweep` command again.")
    return found
