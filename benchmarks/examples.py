"""Fill the figures of examples/ and docs/examples.md from the runs of the examples' own commands.

    python benchmarks/examples.py runs/          # runs/defects, runs/cells, runs/aerial

What stands between `<!-- figures -->` and `<!-- end of figures -->` is written anew from run.json; a run that is not
finished leaves "not measured". The pictures are those of `benchmarks/docs_pictures.py run`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ("defects", "cells", "aerial")
ARMS = ("real", "synthetic", "real+synthetic")
MARKS = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
HEAD = "| | training images | in % | real | synthetic | both | synthetic - real | both - real | verdict |"


def scores(record: dict[str, Any], arm: str) -> str:
    """`77.1 ± 1.4` of an arm, in the verdict's measure."""
    found = record["arms"][arm]
    found = found["balanced_accuracy"] if record["verdict"]["measure"] == "balanced accuracy" else found
    return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}"


def difference(record: dict[str, Any], arm: str) -> str:
    """`-0.6 [-3.8, +2.6]` of an arm to `real`, in points."""
    one = next(one for one in record["verdict"]["comparisons"] if one["arm"] == arm)
    return f"{100 * one['difference']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"


def row(name: str, record: dict[str, Any] | None) -> str:
    """A line of the table of docs/examples.md."""
    if record is None:
        return f"| {name} |{' not measured |' * (HEAD.count('|') - 2)}"
    verdict = record["verdict"]
    cells = (
        name, record["data"]["n_train"], verdict["measure"], *(scores(record, arm) for arm in ARMS),
        *(difference(record, arm) for arm in ARMS[1:]), verdict["headline"],
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def section(record: dict[str, Any] | None) -> str:
    """What came out of one run, for its README."""
    if record is None:
        return "Not measured.\n"
    verdict, copies = record["verdict"], record["copies"]["copies"]
    lines = [
        f"| | {' | '.join(ARMS)} |\n|---|---|---|---|",
        f"| {verdict['measure']}, % | {' | '.join(scores(record, arm) for arm in ARMS)} |",
        f"| difference to real, points [97.5 %] | - | {' | '.join(difference(record, arm) for arm in ARMS[1:])} |",
        f"\nMean ± std over n=3 seeds, one subset of {record['data']['n_train']} images, one draw,",
        f"{record['data']['n_test']} test images. Verdict: **{verdict['headline']}** ({verdict['sentence']}).",
        f"The audit names {copies['count']} of {copies['n']} synthetic images, nearer to a training image than chance.",
    ]
    if loss := verdict.get("coarseness"):
        lines.append(f"Said before the work: {loss['sentence']}")
    return "\n".join(lines) + "\n"


def fill(page: Path, text: str) -> None:
    """Write text between the marks of a page."""
    whole = page.read_text(encoding="utf-8")
    page.write_text(MARKS.sub(lambda found: found[1] + text + found[2], whole), encoding="utf-8")


def main() -> None:
    folder = Path(sys.argv[1])
    paths = {name: folder / name / "run.json" for name in EXAMPLES}
    records = {name: json.loads(path.read_text()) if path.exists() else None for name, path in paths.items()}
    for name, record in records.items():
        fill(ROOT / "examples" / name / "README.md", section(record))
    rule = "|---" * (HEAD.count("|") - 1) + "|"
    table = "\n".join([HEAD, rule, *(row(name, record) for name, record in records.items())])
    fill(ROOT / "docs" / "examples.md", f"{table}\n")


if __name__ == "__main__":
    main()
