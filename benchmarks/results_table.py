"""The tables of today's results, in README.md and docs/results.md, from the pages of sweeps.

Command:  python benchmarks/results_table.py
          python benchmarks/results_table.py sweeps/xsdd table3_xsdd     (takes the page of a sweep in first)
Reads:    docs/results/today/<name>.csv, whose accuracies it averages, the claims of <name>.md beside it, with their
          errors from <name>.json where there is one; docs/results/paper.toml, which claim of the paper is asked where.
Writes:   what stands between the marks in both files; tests/test_published.py compares it with the files.
Method:   All claims of all pages of today are judged together (`diffusion_inversion.sweep.claims`: Holm over both
          statements of each, 5 %). Of a page without JSON the interval is all there is: its half over the quantile of
          the replicates is taken for the error by replicates. At 5 % that is the interval itself; at the lower levels
          of many claims it is wider than with the error by test images apart, so nothing is said too early.
          What could have been seen: the difference that an experiment with this error finds in four of five cases
          alone at 5 %, (t(.975, n - 1) + t(.8, n - 1)) times the error; of several differences the largest.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t

from diffusion_inversion.engine.toml import read_toml
from diffusion_inversion.sweep.claims import ClaimRecord, Difference, Judged, judge_together, read_claims

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = RESULTS / "today"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
START, END = "<!-- today -->\n", "<!-- end of today -->"
PAPER_START, PAPER_END = "<!-- paper -->\n", "<!-- end of paper -->"
ARMS = ("real", "synthetic", "real+synthetic")
HEAD = ("experiment", "settings", *ARMS, "n")
PAPER_HEAD = (
    "the paper says",
    "there",
    "asked here",
    "difference, alone at 95 %",
    "alone",
    "all together",
    "could see",
)
CLAIM_HEAD = ("experiment", "claimed beforehand", "difference, alone at 95 %", "alone", "all together", "could see")
NUMBERS = re.compile(r"([+-][\d.e-]+) \[([+-][\d.e-]+), ([+-][\d.e-]+)\]")


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


def title(page: Path) -> str:
    return page.read_text().partition("\n")[0].lstrip("# ")


def estimate(values: Sequence[float]) -> str:
    """In %, with the standard deviation."""
    return f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def table(folder: str) -> str:
    """Accuracies as Markdown, with links that hold below `folder`."""
    found = [HEAD, ["---"] * len(HEAD)]
    for page in sorted(PAGES.glob("*.md")):
        rows = rows_of(page)
        measure = rows[0]["measure"]
        for place, (name, arms) in enumerate(cells(rows).items()):
            shown = [estimate(arms[arm]) if arm in arms else "" for arm in ARMS]
            link = f"[{title(page)}]({folder}/{page.name})" if place == 0 else ""
            settings = f"{name}; balanced accuracy" if measure != "accuracy" else name
            found.append([link, settings, *shown, str(len(next(iter(arms.values()))))])
    return _markdown(found)


def claims_of(page: Path) -> Iterator[tuple[str, str, str, ClaimRecord]]:
    """The claims of a page: what is said, its differences in words, what became of it alone, and its errors."""
    text = page.read_text()
    kept = page.with_suffix(".json")
    errors = {record.says: record for _, record in read_claims([kept])} if kept.is_file() else {}
    replicates = int(re.findall(r"n=(\d+) replicates", text)[0])
    lines = [line.strip("| ").split(" | ") for line in text.partition("## Claims")[2].splitlines() if line[:2] == "| "]
    for says, of, by, outcome in (line for line in lines if len(line) == 4 and NUMBERS.search(line[2])):
        yield says, by, outcome, errors.get(says) or _from_intervals(says, of, by, replicates)


def _from_intervals(says: str, of: str, by: str, replicates: int) -> ClaimRecord:
    """The errors that intervals of accuracies in points can come from, all of it by replicates."""
    found = [[float(number) / 100 for number in numbers] for numbers in NUMBERS.findall(by)]
    parts = dict(units=replicates, image_error=0.0, images=None)
    one = Difference(value=0.0, unit_error=1.0, **parts).half(1 - 0.05 / len(found))
    assert one is not None and of.startswith(("accuracy", "balanced accuracy"))
    errors = [Difference(value=value, unit_error=(high - low) / 2 / one, **parts) for value, low, high in found]
    return ClaimRecord(says=says, of=of.replace(" ", "_") if of.endswith("accuracy") else "accuracy", errors=errors)


def judged() -> dict[tuple[str, str], tuple[str, Judged]]:
    """(page, what is said) => its differences in words, and the claim judged with all others."""
    found = {(page.stem, says): (by, of) for page in sorted(PAGES.glob("*.md")) for says, by, _, of in claims_of(page)}
    together = judge_together([(page, claim) for (page, _), (_, claim) in found.items()])
    return {key: (by, one) for (key, (by, _)), one in zip(found.items(), together, strict=True)}


def could_see(claim: ClaimRecord) -> str:
    """The difference that would be found with a chance of 80 %, alone."""
    least = []
    for found in claim.errors:
        error = ((found.unit_error or 0.0) ** 2 + (found.image_error or 0.0) ** 2) ** 0.5
        least.append(100 * error * float(t.ppf(0.975, found.units - 1) + t.ppf(0.8, found.units - 1)))
    return f"{max(least):.1f}"


def paper_table() -> str:
    """Each claim of the paper, and what today's sweeps say of it."""
    found, answers = [PAPER_HEAD, ["---"] * len(PAPER_HEAD)], judged()
    for claim in read_toml(RESULTS / "paper.toml")["claim"]:
        head = [f"{claim['says']} ({claim['paper']})", claim["of"]]
        rows = [
            [f"[{says}, {_short(page)}](results/today/{page}.md)", *_answer(*answers[page, says])]
            for page, asked in claim.get("asked", {}).items()
            for says in asked
            if (page, says) in answers
        ]
        if not rows:
            rows = [[_not_asked(claim), "", "", "", ""]]
        found += [[*(head if place == 0 else ["", ""]), *row] for place, row in enumerate(rows)]
    return _markdown(found)


def _short(page: str) -> str:
    return {"helps_confirmed": "asked again", "helps_default": "200 of CIFAR-10"}.get(page, page.rpartition("_")[2])


def _answer(by: str, one: Judged) -> list[str]:
    return [by, one.alone, one.together, could_see(one.claim)]


def _not_asked(claim: Mapping[str, Any]) -> str:
    where = [f"[{name}](results/{name}.md)" for name in claim.get("elsewhere", [])]
    if where:
        return f"measured: {', '.join(where)}"
    first = [f"[by the first `mini`](results/first-mini/{name}.md)" for name in claim.get("first", [])]
    return ", ".join([f"not measured: `experiments/{claim['experiment']}`", *first])


def other_claims() -> str:
    """The claims of today's pages that the paper does not make."""
    found = [CLAIM_HEAD, ["---"] * len(CLAIM_HEAD)]
    papers = {
        (page, says)
        for claim in read_toml(RESULTS / "paper.toml")["claim"]
        for page, asked in claim.get("asked", {}).items()
        for says in asked
    }
    for (page, says), answer in judged().items():
        if (page, says) not in papers:
            found.append([f"[{_short(page)}](results/today/{page}.md)", says, *_answer(*answer)])
    return _markdown(found)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def between(text: str, start: str, end: str, inside: str) -> str:
    """`text` with something else between its two marks."""
    before, _, rest = text.partition(start)
    return before + start + inside + end + rest.partition(end)[2]


def take_in(sweep: Path, name: str) -> None:
    """Copy the page of a sweep's folder, its figure and accuracies, and of its JSON the claims with their errors."""
    [source] = [file for file in sweep.glob("*.json") if file.with_suffix(".md").is_file()]
    shutil.copyfile(source.with_suffix(".csv"), PAGES / f"{name}.csv")
    shutil.copyfile(source.with_suffix(".png"), PAGES / f"{name}.png")
    text = source.with_suffix(".md").read_text().replace(f"({source.stem}.png)", f"({name}.png)")
    (PAGES / f"{name}.md").write_text(text)
    claims = {"plan": {"name": name}, "claims": json.loads(source.read_text())["claims"]}
    (PAGES / f"{name}.json").write_text(json.dumps(claims, indent=1) + "\n")


def main(arguments: Sequence[str]) -> None:
    if arguments:
        take_in(Path(arguments[0]), arguments[1])
    README.write_text(between(README.read_text(), START, END, table("docs/results/today")))
    text = between(PAGE.read_text(), START, END, table("results/today"))
    PAGE.write_text(
        between(text, PAPER_START, PAPER_END, paper_table() + "\nAnd what it does not:\n\n" + other_claims())
    )


if __name__ == "__main__":
    main(sys.argv[1:])
