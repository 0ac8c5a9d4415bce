"""What two workers cost over one, and what ten killed workers leave.

Command:  python benchmarks/workers.py
Method:   CPU seconds, of all processes, of `dinv invert` by `mini` with one and with two workers of one thread each, in
          turns, and of the same command where everything is done, which is what a worker costs before it works. Then
          `dinv run` with two workers, of which one, drawn at random, dies by SIGKILL whenever a further share of the
          units is committed; what is there at the end is compared with a run that nobody harmed.
          Seconds on the clock are printed too; they say something on a machine that does nothing else.
Cost:     about 14 CPU minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from diffusion_inversion.engine.executors.local import Local
from diffusion_inversion.engine.executors.watch import watch
from diffusion_inversion.engine.executors.worker import Command, Worker
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.run.layout import STORES
from diffusion_inversion.run.verify import verify

DATA = "digits --test-limit 100 --device cpu"
WORK = f"invert {DATA} --limit {{images}} --steps 50 --invert-batch-size 10"
WHOLE = (
    f"run {DATA} --limit 60 --steps 10 --invert-batch-size 4 --variants 4 --sample-batch-size 12 --recipe fast "
    "--train-steps 30 --seeds 0,1 --arms real,synthetic,real+synthetic --no-preview"
)


def command(text: str, out: Path) -> Command:
    """The command of a worker, on one thread."""
    logs = out.with_name(f"{out.name}-workers-{time.monotonic_ns()}")
    logs.mkdir()
    return Command((*text.split(), "--out", str(out), "--join"), Path.cwd(), logs, (("OMP_NUM_THREADS", "1"),))


def cost(text: str, out: Path, workers: int) -> tuple[float, float]:
    """CPU seconds of the workers, and seconds on the clock."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    given = command(text, out)
    watch(Local(given), given, workers, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, time.monotonic() - start


def jobs(run: Path) -> list[str]:
    """Every job that is committed: one that was committed twice, and not dropped between, is there twice."""
    found = []
    for place in STORES:
        for record in Manifest(run / place.manifest).records():
            if record["event"] == "commit":
                found += [(record["unit"], f"{place.folder}/{job}") for job in record["ids"]]
            elif record["event"] == "drop":
                found = [one for one in found if one[0] != record["unit"]]
    return [job for _, job in found]


def contents(run: Path) -> dict[str, str]:
    """sha256 of every file that a unit of work made."""
    found = {}
    for place in STORES:
        for path in sorted((run / place.folder).rglob("*")):
            if path.is_file() and place.kind_of(path.relative_to(run / place.folder).as_posix()) == "unit":
                found[path.relative_to(run).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Harmed(Local):
    """Starts processes and remembers them."""

    living: ClassVar[list[Worker]] = []

    def start(self, numbers: Sequence[int]) -> list[Worker]:
        started = super().start(numbers)
        self.living.extend(started)
        return started


def harm(executor: Harmed, run: Path, units: int, kills: int, seed: int, died: list[str]) -> None:
    """Kill a worker whenever a further share of the units is committed."""
    drawn = random.Random(seed)
    for kill in range(kills):
        while len(jobs(run)) <= units * kill / kills:
            time.sleep(0.05)
        time.sleep(drawn.uniform(0, 1))
        while not (alive := [worker for worker in executor.living if worker.poll() is None]):
            time.sleep(0.05)
        drawn.choice(alive).stop(at_once=True)
        died.append(f"{len(jobs(run))} of {units} jobs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found: dict[str, Any] = {"images": given.images, "cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as folder:
        work, spent = WORK.format(images=given.images), {1: [], 2: []}
        for number in range(given.rounds):
            for workers in (1, 2):
                spent[workers].append(cost(work, Path(folder, f"{workers}-{number}"), workers))
                print(f"{workers}: {spent[workers][-1][0]:.0f} s of CPU", file=sys.stderr, flush=True)
        if given.rounds:
            begun = cost(work, Path(folder, "1-0"), 1)[0]
            ratios = [two[0] / one[0] for one, two in zip(spent[1], spent[2], strict=True)]
            found |= {"cpu and wall seconds": spent, "cpu seconds before work": begun, "cpu ratios": ratios}
            found |= {"median cpu ratio": statistics.median(ratios)}
        if given.kills:
            whole, run, died = Path(folder, "whole"), Path(folder, "killed"), []
            cost(WHOLE, whole, 1)
            harmed = Harmed(command(WHOLE, run))
            expected = jobs(whole)
            arguments = (harmed, run, len(expected), given.kills, given.seed, died)
            killing = threading.Thread(target=harm, args=arguments, daemon=True)
            killing.start()
            ended = watch(harmed, harmed.command, 2, given.kills)
            with run_lock(run):  # sweeps what the killed ones left under temporary names
                there = jobs(run)
            found |= {
                "killed at": died, "restarts": ended.restarts, "jobs": len(expected),
                "lost": len({*expected} - {*there}), "doubled": len(there) - len({*there}),
                "same bits": contents(run) == contents(whole), "files": len(contents(whole)),
                "damaged": len(verify(run).findings),
            }  # fmt: skip
    print(re.sub(r"\d+\.\d{3,}", lambda one: f"{float(one[0]):.2f}", json.dumps(found, indent=1)))


if __name__ == "__main__":
    main()
