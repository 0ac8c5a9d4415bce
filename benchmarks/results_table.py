"""The table of today's results, in README.md and docs/results.md, from the pages of sweeps.

Command:  python benchmarks/results_table.py
Reads:    docs/results/today/<name>.csv, whose accuracies it averages, and the claims of <name>.md beside it.
Writes:   what stands between the marks in both files; tests/test_published.py compares it with the CSV files.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "results" / "today"
# Which files have the table: where the pages lie from there, and whether with the claims.
WHERE = {ROOT / "README.md": ("docs/results/today", False), ROOT / "docs" / "results.md": ("results/today", True)}
START, END = "<!-- today -->\n", "<!-- end of today -->"
ARMS = ("real", "synthetic", "real+synthetic")
HEAD = ("experiment", "settings", *ARMS, "n", "what was claimed beforehand, each alone at 95 %")


def rows_of(page: Path) -> list[dict[str, str]]:
    """The accuracies of a page's CSV, of the measure that it judges by: balanced where its claims say so."""
    with page.with_suffix(".csv").open(newline="") as lines:
        found = list(csv.DictReader(lines))
    balanced = any("balanced accuracy" in line for line in page.read_text().splitlines() if line.startswith("| "))
    measure = "balanced_accuracy" if balanced else "accuracy"
    return [row for row in found if row["measure"] == measure]


def cells(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, list[float]]]:
    """Settings in words => arm => one value a replicate; an arm that a setting makes no difference to is in all."""
    keys = [key for key in rows[0] if "." in key or key == "case"]
    names = list(dict.fromkeys(said for row in rows if (said := _said(row, keys, full=True))))
    found: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in names or [""]}
    for name, arms in found.items():
        for row in rows:
            if all(part in name.split(", ") for part in _said(row, keys).split(", ") if part):
                arms.setdefault(row["arm"], {}).setdefault(row["replicate"], []).append(float(row["value"]))
    return {
        name: {arm: [statistics.fmean(seeds) for seeds in by.values()] for arm, by in arms.items()}
        for name, arms in found.items()
    }


def _said(row: Mapping[str, str], keys: Sequence[str], full: bool = False) -> str:
    if full and not all(row[key] for key in keys):
        return ""
    return ", ".join(f"{key.rpartition('.')[2].replace('_', ' ')} {row[key]}" for key in keys if row[key])


def claims_of(page: Path) -> list[str]:
    """The claims of a page: what was said, by how much it is so, and what became of it."""
    lines = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    claims = [cell for cell in lines if len(cell) == 4 and cell[2].startswith(("+", "-")) and "[" in cell[2]]
    return [f"{says}: {by}, {outcome}" for says, _, by, outcome in claims]


def estimate(values: Sequence[float]) -> str:
    """In %, with the standard deviation."""
    return f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def table(folder: str, claims: bool) -> str:
    """Markdown, with links that hold below `folder`, and what became of the claims or without."""
    head = HEAD if claims else HEAD[:-1]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for page in sorted(PAGES.glob("*.md")):
        title = page.read_text().partition("\n")[0].lstrip("# ")
        said = "; ".join(claims_of(page))
        rows = rows_of(page)
        measure = rows[0]["measure"]
        for place, (name, arms) in enumerate(cells(rows).items()):
            shown = [estimate(arms[arm]) if arm in arms else "" for arm in ARMS]
            n = len(next(iter(arms.values())))
            link = f"[{title}]({folder}/{page.name})" if place == 0 else ""
            settings = f"{name}; balanced accuracy" if measure != "accuracy" else name
            row = [link, settings, *shown, str(n), said if place == 0 else ""]
            lines.append("| " + " | ".join(row[: len(head)]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    for file, (folder, claims) in WHERE.items():
        before, _, rest = file.read_text().partition(START)
        file.write_text(before + START + table(folder, claims) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
