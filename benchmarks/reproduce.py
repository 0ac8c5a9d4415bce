"""All published tables again, in small: do they come out in their shapes, and what was said to hold, in its direction?

    python benchmarks/reproduce.py cifar10-train.parquet cifar10-test.parquet [--out FOLDER] [--only NAME ...]

Runs every experiment file on CIFAR-10 with a tenth of the images, of the steps of stage 1 and of the classifier's,
fewer variants and 500 test images, one replicate of three seeds. Compared with the committed CSV of a page: the keys
that vary, the arms, and how many rows there are. A claim that its page says holds must not come out as "does not hold";
most are too noisy to say at this size, and the table says in which direction they lie. Ends with 1 where either fails.
A killed call goes on. Left out: files whose data sets, pools, CLIPs or GANs are others, and choices that test on
training images. Cost: planned for an hour of two cores; not measured.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.toml import read_toml
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.sweep import SweepPlan, read_plan, run_sweep
from diffusion_inversion.sweep.outcome import SweepResult
from diffusion_inversion.sweep.plan import Claim, Pair, Side

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "results"
ELSEWHERE = (
    "helps_specialised", "helps_specialised_sgd", "helps_elpv", "table3", "table3_aerial", "figure5", "figure7b",
    "figure7b_numbers", "balance_xsdd", "balance_cifar10", "defaults", "defaults_guidance", "defaults_interpolation",
    "defaults_specialised", "tuned", "tuned_specialised", "tuned_confirmed",
)  # fmt: skip
TENTHS = ("data.limit", "invert.steps", "invert.keep_steps", "sample.kept_steps", "train.steps")
TEST_IMAGES, LEAST_IMAGES, LEAST_STEPS = 500, 20, 50


def smaller(key: str, value: Any) -> Any:
    """A setting at a tenth of the size, others as they are; different values stay different."""
    if isinstance(value, (list, tuple)):
        return [smaller(key, one) for one in value]
    if key == "sample.variants":
        return round(sqrt(value))
    return round(value / 10) if key in TENTHS else value


def small(plan: SweepPlan) -> SweepPlan:
    """The plan at a tenth of the size, with the same cells and claims."""
    tables = {
        name: {key: smaller(f"{name}.{key}", value) for key, value in getattr(plan, name).items()}
        for name in ("data", "invert", "sample", "train")
    }
    tables["data"]["test_limit"] = TEST_IMAGES
    tables["train"] |= {"seeds": [0, 1, 2]}
    if "data.limit" not in plan.grid:
        tables["data"]["limit"] = max(tables["data"].get("limit", 0), LEAST_IMAGES)
    if "train.steps" not in plan.grid:
        tables["train"]["steps"] = max(tables["train"]["steps"], LEAST_STEPS)
    tables["invert"].setdefault("steps", 5)
    tables["sample"].setdefault("variants", 3)

    def side(one: Side) -> Side:
        return one.model_copy(update={"at": {key: smaller(key, value) for key, value in one.at.items()}})

    def claim(one: Claim) -> Claim:
        pairs = tuple(Pair(greater=side(pair.greater), less=side(pair.less)) for pair in one.pairs)
        return one.model_copy(update={"pairs": pairs})

    grid = {key: tuple(smaller(key, value) for value in values) for key, values in plan.grid.items()}
    cases = tuple(
        case.model_copy(update={"set": {key: smaller(key, value) for key, value in case.set.items()}})
        for case in plan.cases
    )
    return plan.model_copy(
        update={**tables, "grid": grid, "cases": cases, "claims": tuple(map(claim, plan.claims)), "replicates": 1}
    )


def published(name: str) -> tuple[set[str], set[str], int, set[str]] | None:
    """Of a page: keys that vary, arms, number of rows, claims that hold; None where there is none."""
    file = PAGES / "today" / f"{name}.csv"
    if not file.exists():
        return None
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["measure"] == "accuracy"]
    keys = {key for key in rows[0] if "." in key or key == "case"}
    cells = {(row["arm"], *(row[key] for key in sorted(keys))) for row in rows}
    table = [line.split(" | ") for line in file.with_suffix(".md").read_text().splitlines() if line.startswith("| ")]
    # A page of several columns of outcomes has "alone" fifth, one of a single column has it last.
    holds = {
        cell[0].removeprefix("| ")
        for cell in table
        if len(cell) > 3 and cell[4 if len(cell) > 5 else 3].startswith("holds")
    }
    return keys, {row["arm"] for row in rows}, len(cells), holds


def compared(found: SweepResult) -> list[str]:
    """What differs from the page, one line each."""
    page = published(found.plan.name)
    if page is None:
        return []
    keys, arms, rows, holds = page
    now = {key for row in found.rows for key in row.at}
    wrong = [f"varies {sorted(now)}, published {sorted(keys)}"] if now != keys else []
    if (seen := {row.arm for row in found.rows}) != arms:
        wrong.append(f"arms {sorted(seen)}, published {sorted(arms)}")
    if len(found.rows) != rows:
        wrong.append(f"{len(found.rows)} rows, published {rows}")
    return wrong + [
        f"does not hold here, published as holds: {one.claim.says}"
        for one in found.claims
        if one.outcome == "does not hold" and one.claim.says in holds
    ]


def line(found: SweepResult, wrong: list[str]) -> Mapping[str, object]:
    """A row of the table."""
    page = published(found.plan.name)
    said = [one for one in found.claims if page is not None and one.claim.says in page[3]]
    same = sum(all(value > 0 for value, *_ in one.differences) for one in said)
    return {
        "page": found.plan.name,
        "rows": len(found.rows),
        "shape": "no page yet" if page is None else "as published" if not wrong else "; ".join(wrong),
        "claims that hold there": len(said),
        "same direction here": same,
    }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("train")
    asked.add_argument("test")
    asked.add_argument("--out", type=Path, default=Path("sweeps/reproduced"))
    asked.add_argument("--only", nargs="*", default=[], help="names of experiment files")
    given = asked.parse_args()
    failed, table = False, []
    generator = Generator.load("mini")
    for file in sorted((ROOT / "experiments").glob("*.toml")):
        if "title" not in read_toml(file) or file.stem in ELSEWHERE:  # presets have none
            continue
        if given.only and file.stem not in given.only:
            continue
        plan = small(read_plan(file, given.train, given.test))
        given.out.mkdir(parents=True, exist_ok=True)
        with run_lock(given.out):
            found = run_sweep(plan, given.out, generator, command=f"python benchmarks/reproduce.py --only {plan.name}")
        wrong = compared(found)
        failed |= bool(wrong)
        table.append(line(found, wrong))
        print(*table[-1].values(), sep=" | ", flush=True)
    print("\n| " + " | ".join(table[0]) + " |\n" + "|---" * len(table[0]) + "|")
    for row in table:
        print("| " + " | ".join(map(str, row.values())) + " |")
    sys.exit(failed)


if __name__ == "__main__":
    main()
