"""Kill stages many times and let processes race for runs, and log what came of it: docs/reliability.md.

python tests/chaos/campaign.py --kills 500 --rounds 50 --seed 1 --log chaos.tsv
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import STAGES, Bench, assert_same, finish, kill_during, lost_and_doubled, race, uninterrupted
from test_kills import kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("chaos.tsv"))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    bench = Bench.build(folder / "bench")
    whole, before, plans = {}, folder / "empty", []
    before.mkdir()
    for stage in STAGES:
        whole[stage] = (before, Path(shutil.copytree(before, folder / stage)))
        seconds, passed = uninterrupted(bench, whole[stage][1], stage)
        count = arguments.kills // len(STAGES)
        plans += [(stage, kill) for kill in kills(stage, seconds, passed, count, arguments.seed)]
        before = whole[stage][1]
    random.Random(arguments.seed).shuffle(plans)
    totals = {"kills": 0, "hit": 0, "lost": 0, "doubled": 0, "different": 0, "rounds": 0}
    with arguments.log.open("w", encoding="utf-8") as log:
        print("what", "stage", "when", "hit", "lost", "doubled", "same", sep="\t", file=log)
        for stage, kill in plans:
            run = Path(shutil.copytree(whole[stage][0], folder / "run"))
            hit = kill_during(bench, run, stage, kill)
            finish(bench, run, stage)
            report(log, totals, "kill", stage, str(kill), hit, run, whole[stage][1])
            totals["kills"] += 1
            totals["hit"] += hit
        for number in range(arguments.rounds):
            run, shared = folder / "run", number % 2 == 1
            for stage in ("invert", "sample", "train"):
                codes = race(bench, run, stage, 8, shared=shared)
                assert set(codes) <= ({0} if shared else {0, 6}) and 0 in codes, codes
            when = f"8 processes, {'shared' if shared else 'one holds it'}"
            report(log, totals, "race", "train", when, True, run, whole["train"][1])
            totals["rounds"] += 1
    print(*(f"{name}: {value}" for name, value in totals.items()), sep=", ")
    shutil.rmtree(folder)


def report(
    log, totals: dict[str, int], what: str, stage: str, when: str, hit: bool, run: Path, whole: Path
) -> None:  # fmt: skip
    """Compare, log one line, and delete the run."""
    lost, doubled = lost_and_doubled(run, whole)
    try:
        assert_same(run, whole)
        same = True
    except AssertionError:
        same = False
        shutil.copytree(run, run.parent / f"different-{time.time():.0f}")
    print(what, stage, when, int(hit), lost, doubled, int(same), sep="\t", file=log, flush=True)
    totals["lost"] += lost
    totals["doubled"] += doubled
    totals["different"] += not same
    shutil.rmtree(run)


if __name__ == "__main__":
    main()
