"""Jobs that need one another, each done once, whoever does it; what a job found is kept as JSON in the ledger."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.disk import require_room
from ..engine.ledger import Ledger
from ..engine.lock import TakenOverError, claim, is_shared, say
from ..errors import DataError
from ..train.arms import ArmRun
from ..train.evaluation import Evaluation

SPARE_BYTES = 64 << 20  # results, page and figures
_POLL = 1.0  # seconds between two looks at jobs that other processes hold


@dataclass(frozen=True)
class Job:
    """One piece of work. `name` depends on all that its result depends on; `do` returns JSON data."""

    name: str  # <kind>/<digest>
    says: str  # for people
    needs: tuple[str, ...]
    do: Callable[[], dict[str, Any]]
    home: str  # the folder it writes to, below that of the sweep; one process at a time does
    whole: Callable[[], bool]  # whether that folder still has what the job made
    size: Callable[[], int] = lambda: 0  # bytes of vectors or images that the folder lacks

    @property
    def file(self) -> str:
        """Where its result is kept, below the folder of the sweep."""
        return f"results/{self.name}.json"


def run_jobs(folder: Path, jobs: Mapping[str, Job]) -> None:
    """Do every job that is left, after those it needs. In a shared folder, return when all are done.

    Call it inside `run_lock(folder)`. A job whose `do` raises ends the call; what was done before is kept.
    Raises DiskError, before the first, unless there is room for the vectors and images of all that are left.
    """
    ledger = Ledger(folder)
    total = len(jobs)
    done: set[str] = set()
    for name, job in jobs.items():  # each after those it needs: whether it is whole may be told by what these make
        if done.issuperset(job.needs) and _is_done(ledger, job):
            done.add(name)
    _require_room(folder, [job for name, job in jobs.items() if name not in done])
    say({"totals": {"jobs": total}, "jobs": len(done)})
    while len(done) < total:
        if not _do_first(folder, ledger, jobs, done):
            time.sleep(_POLL)


def _require_room(folder: Path, left: Sequence[Job]) -> None:
    sizes: dict[str, int] = {}
    for job in left:  # of jobs that fill one folder the largest: what the others ask for is largely the same
        sizes[job.home] = max(sizes.get(job.home, 0), job.size())
    require_room(folder, SPARE_BYTES + sum(sizes.values()), f"the vectors, images and results of {len(left)} jobs")


def _do_first(folder: Path, ledger: Ledger, jobs: Mapping[str, Job], done: set[str]) -> bool:
    """Do the first job that is left and can be done, in the order of the jobs; say whether there was one."""
    for job in jobs.values():
        if job.name in done or not done.issuperset(job.needs):
            continue
        with claim(folder, job.home.replace("/", "-")) if is_shared(folder) else nullcontext(True) as mine:
            if not mine:
                continue
            if not _is_done(ledger, job):
                step = f"{len(done) + 1} of {len(jobs)}: {job.says}"
                print(step, file=sys.stderr, flush=True)
                say({"step": step})
                try:
                    ledger.commit_json(job.file, job.do(), allow_nan=False)
                except TakenOverError as error:  # whoever has it now commits it
                    print(f"warning: {error}", file=sys.stderr, flush=True)
                    return True
            done.add(job.name)
            say({"jobs": len(done)})
            return True
    return False


def _is_done(ledger: Ledger, job: Job) -> bool:
    """Whether the job's result is there as it was written, and so is what the job made."""
    return ledger.holds(job.file) and job.whole()


def result(folder: Path, job: Job) -> dict[str, Any]:
    """What a job found. Raises DataError where it was not done or its file changed since."""
    found: dict[str, Any] | None = Ledger(folder).read_json(job.file)
    if found is None:
        raise DataError(f"{folder / job.file}: not there yet. Run the same `dinv sweep` command again.")
    return found


def measured(found: Evaluation) -> dict[str, Any]:
    """What a job says of a classifier on test images."""
    return {
        "accuracy": found.accuracy,
        "balanced_accuracy": found.balanced_accuracy,
        "ece": found.ece,
        "predictions": found.predictions.tolist(),
    }


def of_classifier(run: ArmRun, folder: Path) -> dict[str, Any]:
    """The same of one that lies below the folder of the sweep, with where and how long it was trained."""
    assert run.classifier is not None
    file = run.classifier.relative_to(folder).as_posix()
    return {**measured(run.evaluation), "seconds": run.seconds, "classifier": file}
