"""How long stage 1 and a classifier take beside busy neighbours: as many threads as cores, one, or as many as are free.

    python benchmarks/neighbours.py [--rounds 5]

A neighbour is a process of this priority that never waits. The ways take turns; medians of seconds, start-up left out.
"fixed" sets OMP_NUM_THREADS to the number of cores, as PyTorch does by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from diffusion_inversion.engine.threads import FIXED_BY

JOBS = ("invert", "train")


def work() -> None:
    """Do both jobs once, after a short one of each, and print their seconds."""
    from diffusion_inversion import Generator, InvertSettings, TrainSettings, invert, load_images, train
    from diffusion_inversion.engine.threads import share_cores

    share_cores()
    generator, images = Generator.load("mini"), load_images("digits", limit=30, size=32)
    seconds = {}
    for steps, job_steps in ((2, 5), (20, 60)):
        with tempfile.TemporaryDirectory() as run:
            start = time.monotonic()
            invert(images, generator, run, InvertSettings(steps=steps))
            seconds["invert"] = time.monotonic() - start
        start = time.monotonic()
        train(images, settings=TrainSettings(architecture="resnet20", steps=job_steps, batch_size=64))
        seconds["train"] = time.monotonic() - start
    print(json.dumps(seconds))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return
    cores = len(os.sched_getaffinity(0))
    ways = {"fixed": str(cores), "one": "1", "followed": ""}
    columns = ["neighbours", *(f"{job}, {way}" for job in JOBS for way in ways)]
    print(f"{cores} cores, n = {options.rounds}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for count in range(3):
        spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            found: dict[tuple[str, str], list[float]] = {}
            for _ in range(options.rounds):
                for way, threads in ways.items():
                    environment = {name: value for name, value in os.environ.items() if name not in FIXED_BY}
                    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
                    command = [sys.executable, __file__, "--work"]
                    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                    for job, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                        found.setdefault((job, way), []).append(seconds)
        finally:
            for process in spinning:
                process.kill()
        cells = [f"{statistics.median(found[job, way]):.1f}" for job in JOBS for way in ways]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
