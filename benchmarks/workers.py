"""How much sooner two workers are done than one, and what ten killed workers leave.

Command:  python benchmarks/workers.py                        # on a machine that does nothing else
          python benchmarks/workers.py --rounds 0 --kills 10  # whatever else it does
Method:   Seconds on the clock, and CPU seconds of all processes, of `dinv invert` by `mini` with one and with two
          workers of one thread each, in turns, and of the same command where everything is done, which is what a worker
          costs before it works. With `--kills`: `dinv run` with two workers, of which one, drawn at random, dies by
          SIGKILL whenever a further share of the units is committed; what is there at the end is compared with a run
          that nobody harmed.
Cost:     about 3 minutes a round on two cores; about 5 CPU minutes for the kills.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import statistics
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


def table(images: int, rounds: int, folder: Path) -> str:
    """Measure `rounds` times what one and two workers take, in turns: a table in Markdown."""
    load, cores, work = os.getloadavg()[0], len(os.sched_getaffinity(0)), WORK.format(images=images)
    spent: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for number in range(rounds):
        for workers in spent:
            spent[workers].append(cost(work, folder / f"{workers}-{number}", workers))
    begun = cost(work, folder / "1-0", 1)  # everything is done there
    sooner = [one[1] / two[1] for one, two in zip(spent[1], spent[2], strict=True)]
    working = [(one[1] - begun[1]) / (two[1] - begun[1]) for one, two in zip(spent[1], spent[2], strict=True)]
    dearer = [two[0] / one[0] for one, two in zip(spent[1], spent[2], strict=True)]
    lines = [
        f"{images} images, {cores} cores, n = {rounds}, load before {load:.1f}\n",
        "| workers of one thread | seconds on the clock | CPU seconds |\n|---|---|---|",
        *(
            f"| {name} | {cell([wall for _, wall in runs], 0)} | {cell([cpu for cpu, _ in runs], 0)} |"
            for name, runs in (("one", spent[1]), ("two", spent[2]), ("one, and nothing left to do", [begun]))
        ),
        f"| two are sooner by, two cost more by | x {cell(sooner, 2)} | x {cell(dearer, 2)} |",
        f"| two are sooner by, less what nothing takes | x {cell(working, 2)} | |",
    ]
    return "\n".join(lines)


def cell(values: Sequence[float], digits: int) -> str:
    """The median, and the least to the most where there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.rounds:
            print(table(given.images, given.rounds, Path(folder)), flush=True)
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
            found: dict[str, Any] = {
                "killed at": died, "restarts": ended.restarts, "jobs": len(expected),
                "lost": len({*expected} - {*there}), "doubled": len(there) - len({*there}),
                "same bits": contents(run) == contents(whole), "files": len(contents(whole)),
                "damaged": len(verify(run).findings),
            }  # fmt: skip
            print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
