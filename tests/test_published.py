"""What README.md and docs/results.md say of today's results is what the CSV files of the sweeps hold."""

from __future__ import annotations

import csv
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest

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
