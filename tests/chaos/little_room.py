"""A stage in a process that may write but so much."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from harness import JOBS, Bench, forkserver, pipeline

from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import DinvError


def _limited(bench: Bench, run: Path, stage: str, limit: int | None, spare: int | None) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends soon)
    bench.generator()
    if spare is not None:
        pipeline.SPARE_BYTES = spare
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        with run_lock(run):
            JOBS[stage](bench, run)
    except DinvError as error:
        sys.exit(error.exit_code)


def limited(bench: Bench, run: Path, stage: str, limit: int | None, spare: int | None = None) -> int | None:
    """Do a stage in a process whose files may have at most `limit` bytes; return its exit code."""
    process = forkserver().Process(target=_limited, args=(bench, run, stage, limit, spare))
    process.start()
    process.join(300)
    return process.exitcode
