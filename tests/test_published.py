"""What README.md and the pages of docs/results say is what the CSV files of the sweeps hold."""

from __future__ import annotations

import csv
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest

from diffusion_inversion.engine.toml import read_toml
from diffusion_inversion.sweep import read_plan

ROOT = Path(__file__).resolve().parent.parent
TABLE: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py"))


@pytest.mark.parametrize("file", sorted(TABLE["WHERE"]), ids=lambda file: file.name)
def test_the_table_is_that_of_the_files(file: Path) -> None:
    folder, claims = TABLE["WHERE"][file]
    assert TABLE["START"] + TABLE["table"](folder, claims) + TABLE["END"] in file.read_text()


def test_the_first_numbers_by_hand() -> None:
    with (ROOT / "docs/results/today/helps_default.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["measure"] == "accuracy" and row["arm"] == "synthetic"]
    values = [100 * float(row["value"]) for row in rows]
    shown = f"| {statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} |"
    [line] = [line for line in (ROOT / "README.md").read_text().splitlines() if "helps_default.md" in line]
    assert shown in line and len(values) == 5


@pytest.mark.parametrize("file", sorted((ROOT / "docs/results").glob("*.csv")), ids=lambda file: file.name)
def test_every_claim_of_a_page_comes_from_its_file(file: Path) -> None:
    # The experiment of this name may have other settings by now: the page's own are kept beside it.
    judge: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "judge_claims.py"))
    with file.open(newline="") as rows:
        found = judge["claims"](read_plan(file.with_suffix(".toml"), data="cifar10"), list(csv.DictReader(rows)))
    page = file.with_suffix(".md").read_text()
    assert found
    for claim in found:
        assert f"| {claim.says} | {claim.of} | {judge['differences_text'](claim, 0.95)} |" in page


def test_what_is_reproduced_in_small_is_of_cifar10() -> None:
    # It is run with a training and a test file of CIFAR-10, 20 images at least.
    elsewhere = runpy.run_path(str(ROOT / "benchmarks" / "reproduce.py"))["ELSEWHERE"]
    files = {file.stem: read_toml(file) for file in (ROOT / "experiments").glob("*.toml")}
    for name, content in files.items():
        if "title" in content and name not in elsewhere:
            keys = {*content.get("data", {}), *content.get("grid", {})}
            assert keys.isdisjoint({"per_class", "data.per_class", "holdout", "size"}), name
    assert {*elsewhere} <= {*files}
