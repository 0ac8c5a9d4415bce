"""How long stage 1 and a classifier take beside busy neighbours: as many threads as cores, one, or as many as are free.

    python benchmarks/neighbours.py [--seconds 200]

A neighbour is a process of this priority that never waits. Neighbours and ways take turns, round after round, as many
rounds as the seconds allow, one at least; medians (least to most) of seconds on the clock, start-up left out. "fixed"
sets OMP_NUM_THREADS to the number of cores, as PyTorch does by itself.
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
MOST = 2  # neighbours


def work() -> None:
    """Do both jobs for every line of stdin, and print their seconds."""
    from diffusion_inversion import Generator, InvertSettings, TrainSettings, invert, load_images, train
    from diffusion_inversion.engine.threads import share_cores

    generator, images = Generator.load("mini"), load_images("digits", limit=20, size=32)
    for line in sys.stdin:
        steps, job_steps = json.loads(line)
        share_cores()  # as a command that is started now
        seconds = {}
        with tempfile.TemporaryDirectory() as run:
            start = time.monotonic()
            invert(images, generator, run, InvertSettings(steps=steps))
            seconds["invert"] = time.monotonic() - start
        start = time.monotonic()
        train(images, settings=TrainSettings(architecture="resnet20", steps=job_steps, batch_size=64))
        seconds["train"] = time.monotonic() - start
        print(json.dumps(seconds), flush=True)


def started(threads: str) -> subprocess.Popen[str]:
    """A process that waits for its turns, with so many threads; none given: as many as are free."""
    environment = {name: value for name, value in os.environ.items() if name not in FIXED_BY}
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    command = [sys.executable, __file__, "--work"]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def turn(process: subprocess.Popen[str], steps: int, job_steps: int) -> dict[str, float]:
    """Seconds of each job."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"[{steps}, {job_steps}]\n")
    process.stdin.flush()
    found: dict[str, float] = json.loads(process.stdout.readline())
    return found


def cell(seconds: list[float]) -> str:
    """`median (least to most)`."""
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return
    begun, load = time.monotonic(), os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    ways = {way: started(threads) for way, threads in (("fixed", str(cores)), ("one", "1"), ("followed", ""))}
    for process in ways.values():
        turn(process, 2, 5)  # what is done for the first time takes longer
    found: dict[tuple[int, str, str], list[float]] = {}
    rounds, longest = 0, 0.0
    while not rounds or time.monotonic() - begun + longest < options.seconds:
        start = time.monotonic()
        for count in range(MOST + 1):
            spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
            try:
                for way, process in ways.items():
                    for job, seconds in turn(process, 10, 40).items():
                        found.setdefault((count, job, way), []).append(seconds)
            finally:
                for neighbour in spinning:
                    neighbour.kill()
                    neighbour.wait()
        rounds, longest = rounds + 1, max(longest, time.monotonic() - start)
    for process in ways.values():
        process.kill()
    columns = ["neighbours", *(f"{job}, {way}" for job in JOBS for way in ways)]
    print(f"{cores} cores, n = {rounds}, load before {load:.1f}, {time.monotonic() - begun:.0f} s in all\n")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for count in range(MOST + 1):
        print(f"| {count or 'none'} | {' | '.join(cell(found[count, job, way]) for job in JOBS for way in ways)} |")


if __name__ == "__main__":
    main()
