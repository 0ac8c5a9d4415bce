"""How far is `dinv plan` from what the same run then takes?

Command:  python benchmarks/plan_errors.py cifar10-train.parquet cifar10-test.parquet > docs/results/plan.md
Method:   ten small runs of `mini` that differ in data, steps, variants, guidance, sampler, batch sizes, recipe and
          architecture. For each, `dinv plan --json` in a process of its own, then `dinv run` with the same options in
          another, on the clock from start to end of the process.
Cost:     about 15 minutes on one free core; three times as long beside three other processes on two.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

DIGITS = "digits --test-limit 200"
CIFAR = "{train} --test {test} --test-limit 300"
RUNS = (
    f"{DIGITS} --limit 24 --steps 10 --variants 3 --train-steps 40",
    f"{DIGITS} --limit 60 --steps 5 --variants 2 --train-steps 60 --arms real,synthetic",
    f"{DIGITS} --limit 16 --steps 40 --variants 2 --train-steps 20",
    f"{DIGITS} --limit 30 --steps 6 --variants 8 --guidance-scales 2 --train-steps 20",
    f"{DIGITS} --limit 40 --steps 4 --variants 3 --inference-steps 30 --scheduler ddim --train-steps 30 --recipe fast",
    f"{CIFAR} --limit 40 --steps 6 --variants 2 --train-steps 40 --recipe fast",
    f"{CIFAR} --limit 40 --steps 4 --variants 2 --train-steps 30",
    f"{CIFAR} --limit 24 --steps 20 --variants 2 --invert-batch-size 8 --train-steps 20 --recipe fast",
    f"{CIFAR} --limit 60 --steps 3 --variants 3 --sample-batch-size 16 --architecture resnet18 --train-steps 4",
    f"{CIFAR} --limit 40 --steps 5 --variants 2 --train-steps 150 --recipe fast",
)
SEEDS = "--seeds 0,1,2"
STAGES = {"stage 1": "invert", "stage 2": "sample", "training": "train"}  # as a plan and as run.json call them
COLUMNS = ("total", *STAGES)
SAYS = """
Seconds on the clock; in each cell what was planned -> what it took. The total is of the whole process, the stages are
those that a run records. Where others work on the machine at the same time, a part of each error is their coming and
going between the plan and the run, which a plan cannot know."""


@dataclass(frozen=True)
class Outcome:
    """One run: what was planned and what it took, in seconds."""

    options: str
    planned: dict[str, float]
    taken: dict[str, float]
    planning: float  # what the plan itself took

    @property
    def error(self) -> float:
        """Of the total, relative to what it took."""
        return self.planned["total"] / self.taken["total"] - 1


def call(command: str, options: str, *more: str) -> tuple[str, float]:
    """What `dinv COMMAND` prints on stdout, and its seconds."""
    start = time.monotonic()
    words = [sys.executable, "-m", "diffusion_inversion", command, *shlex.split(options), *shlex.split(SEEDS), *more]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)}\n{done.stderr}")
    return done.stdout, time.monotonic() - start


def measure(options: str, folder: Path) -> Outcome:
    """Plan a run, then do it."""
    plan, planning = call("plan", options, "--json")
    found = json.loads(plan)
    run = folder / "run"
    _, total = call("run", options, "--out", str(run))
    stages = json.loads((run / "run.json").read_text())["stages"]
    taken = {name: stages[stage]["seconds"] for name, stage in STAGES.items()}
    planned = {name: found["seconds"][name] for name in STAGES}
    planned["total"], taken["total"] = found["total_seconds"], total
    return Outcome(options, planned, taken, planning)


def row(one: Outcome) -> str:
    """As a line of Markdown."""
    cells = " | ".join(f"{one.planned[name]:.0f} -> {one.taken[name]:.0f}" for name in COLUMNS)
    return f"| `{one.options}` | {cells} | {100 * one.error:+.0f} % |"


def summary(outcomes: list[Outcome]) -> str:
    """The errors of the total over all runs."""
    errors = [abs(one.error) for one in outcomes]
    whole = sum(one.planned["total"] for one in outcomes) / sum(one.taken["total"] for one in outcomes) - 1
    planning = statistics.median(one.planning for one in outcomes)
    return (
        f"Error of the total, without its sign (n={len(errors)}): median {100 * statistics.median(errors):.0f} %, "
        f"largest {100 * max(errors):.0f} %, at most 20 % in {sum(error <= 0.2 for error in errors)}; of all runs "
        f"together {100 * whole:+.0f} %. A plan took {planning:.0f} s (median), start and reading of images among them."
    )


def busy() -> str:
    return f"{os.getloadavg()[0]:.1f} processes wanted to compute on {os.cpu_count()} cores"


def main() -> None:
    train, test = map(shlex.quote, sys.argv[1:])
    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores are free")
    say = partial(print, flush=True)
    say("# What a run takes, and what `dinv plan` said")
    say("Command: `python benchmarks/plan_errors.py cifar10-train.parquet cifar10-test.parquet`; all runs with")
    say(f"`{SEEDS}`, by `mini`; threads: {threads}. {SAYS.strip()}\n\nBefore the first run {busy()}.\n")
    say(f"| options | {' | '.join(COLUMNS)} | error of the total |\n|---|{'---|' * (len(COLUMNS) + 1)}")
    outcomes = []
    for options in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(options.format(train=train, test=test), Path(folder))
        outcomes.append(replace(found, options=options.format(train="TRAIN", test="TEST")))
        say(row(outcomes[-1]))
    say(f"\nAfter the last {busy()}. {summary(outcomes)}")


if __name__ == "__main__":
    main()
