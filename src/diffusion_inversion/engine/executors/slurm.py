"""Workers that are tasks of a Slurm array, by way of submitit.

Options of a site (partition, account, time, memory) come from sbatch's own variables: SBATCH_PARTITION,
SBATCH_TIMELIMIT and the like win over what submitit writes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from ...errors import DiskError, UsageError, how_to_install
from .worker import LOST, Command, Worker

MINUTES = 60  # that a task asks for at a time; it is queued again until the work is done
NOTICE = 120  # seconds before that end: enough to end a batch, or to save the state of a long one
LOOK = 10.0  # seconds between two looks at the queue
_AS_OFTEN_AS_NEEDED = 1_000_000


@dataclass
class Task:
    """What a task of the array does: a worker's command; with the notice of its end it asks to be queued again."""

    command: Command
    number: int
    process: subprocess.Popen[bytes] | None = field(default=None, compare=False)

    def __call__(self) -> int:
        """Do it; return the exit code."""
        if not self.command.is_watched(self.number):
            return DiskError.exit_code
        self.process = self.command.start(self.number)
        return self.process.wait()

    def checkpoint(self) -> Any:
        """Let the batch in hand end, and return what is to be queued; submitit calls it on the signal of the notice."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.process.pid, signal.SIGTERM)
                os.waitpid(self.process.pid, 0)  # not `wait`, inside of which the signal came: it holds a lock
        return DelayedSubmission(Task(self.command, self.number))


@dataclass
class Queued:
    """A task that was given to Slurm; `in_queue` says whether its job waits or works."""

    job: Any
    in_queue: Callable[[Any], bool]
    looked: float = field(default_factory=time.monotonic)

    def poll(self) -> int | None:
        """Its exit code by the file that submitit leaves; its own `done` asks an accounting that may not be there."""
        if not self.job.paths.result_pickle.exists():
            if time.monotonic() - self.looked < LOOK:
                return None
            self.looked = time.monotonic()
            if self.in_queue(self.job):
                return None
            if not self.job.paths.result_pickle.exists():
                return LOST
        from submitit.core.utils import FailedJobError

        try:
            return int(self.job.result())
        except FailedJobError:  # its traceback is in submitit's own log
            return 1

    def stop(self, at_once: bool = False) -> None:
        self.job.cancel(check=False)


def _in_queue(job: Any) -> bool:
    """Whether Slurm has a job that waits or works; so it is said to be where Slurm does not answer."""
    asked = subprocess.run(["squeue", "--noheader", "--job", job.job_id], capture_output=True, text=True)
    return bool(asked.stdout.strip()) if asked.returncode == 0 else "Invalid job id" not in asked.stderr


@dataclass(frozen=True)
class Slurm:
    """Starts tasks. `cluster` "local" is submitit's own imitation of Slurm: processes here.

    Raises UsageError where submitit is not installed, or Slurm's commands are not on this machine.
    """

    command: Command
    cpus: int
    gpus: int
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        if find_spec("submitit") is None:
            raise UsageError(f"--executor slurm: not installed; {how_to_install('slurm')}")
        if self.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise UsageError("--executor slurm: no sbatch on this machine. Give the command on a node of the cluster.")

    def start(self, numbers: Sequence[int]) -> list[Worker]:
        """Queue the workers of these numbers as one array. Raises UsageError where Slurm does not take it."""
        import submitit
        from submitit.core.utils import FailedJobError

        executor = submitit.AutoExecutor(
            self.command.logs / "submitit", cluster=self.cluster, slurm_max_num_timeout=_AS_OFTEN_AS_NEEDED
        )
        gpus = {"gpus_per_node": self.gpus} if self.gpus else {}
        executor.update_parameters(
            name="dinv", nodes=1, timeout_min=MINUTES, cpus_per_task=self.cpus, **gpus,
            slurm_signal_delay_s=NOTICE, slurm_additional_parameters={"requeue": True},
        )  # fmt: skip
        in_queue = _in_queue if self.cluster == "slurm" else lambda job: not job.done()
        tasks = [Task(self.command, number) for number in numbers]
        try:
            return [Queued(job, in_queue) for job in executor.submit_array(tasks)]
        except FailedJobError as error:
            raise UsageError(f"--executor slurm: {error}. Its options are SBATCH_PARTITION and the like.") from error
