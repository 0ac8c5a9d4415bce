"""The tables of today's results, in docs/results.md and, whether it helps, in README.md, from the pages of sweeps.

Command:  python benchmarks/results_table.py
          python benchmarks/results_table.py sweeps/xsdd/table3.json table3_xsdd   (takes the page of a sweep in first)
Reads:    docs/results/today/<name>.csv, whose accuracies it averages, the claims of <name>.md beside it, with their
          errors from <name>.json where there is one; docs/results/paper.toml, which claim of the paper is asked where;
          <name>.notes.txt, where there is one: what people say of the page, after a first line "# ..." for its heading.
Writes:   what stands between the marks in both files (tests/test_published.py compares it with the pages),
          docs/results/claims.png, and the notes into their pages, after what `dinv sweep` wrote.
Method:   All claims of all pages of today are judged together (`diffusion_inversion.sweep.claims`: Holm over both
          statements of each, 5 %). Of a page without JSON the interval is all there is: its half over the quantile of
          the replicates is taken for the error by replicates. At 5 % that is the interval itself; at the lower levels
          of many claims it is wider than with the error by test images apart, so nothing is said too early.
          What could have been seen: the difference that is found alone in four of five experiments with this error,
          (t(1 - .025 / differences, n - 1) + t(1 - .2 / differences, n - 1)) times it; of several the largest.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from scipy.stats import t

from diffusion_inversion.engine.toml import read_toml
from diffusion_inversion.errors import DataError
from diffusion_inversion.sweep.claims import UNCLEAR, ClaimRecord, Difference, Judged, judge_together, read_claims

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = RESULTS / "today"
README, PAGE, PICTURE = ROOT / "README.md", ROOT / "docs" / "results.md", RESULTS / "claims.png"
START, END = "<!-- today -->\n", "<!-- end of today -->"
PAPER_START, PAPER_END = "<!-- paper -->\n", "<!-- end of paper -->"
ARMS = ("real", "synthetic", "real+synthetic")
HEAD = ("experiment", "settings", *ARMS, "n")
JUDGED_HEAD = ("difference, alone at 95 %", "alone", "all together", "could see")
PAPER_HEAD = ("the paper says", "where", "asked here", *JUDGED_HEAD)
CLAIM_HEAD = ("experiment", "claimed beforehand", "of", *JUDGED_HEAD)
CLAIMS = "## Claims\n\n"
NUMBERS = re.compile(r"([+-][\d.e-]+) \[([+-][\d.e-]+), ([+-][\d.e-]+)\]")


@dataclass(frozen=True)
class Answer:
    """A claim of a page: its differences in words, of what they are, and what is said of it alone and with all."""

    by: str
    of: str
    judged: Judged
    opposite: bool = False  # whether it is of the opposite of what the page claims


def pages_of(names: str = "*") -> list[Path]:
    """The pages of such names."""
    return sorted(PAGES.glob(f"{names}.md"))


def rows_of(page: Path) -> list[dict[str, str]]:
    """The accuracies of a page's CSV, of the measure that it judges by: balanced where its claims say so."""
    with page.with_suffix(".csv").open(newline="") as lines:
        found = list(csv.DictReader(lines))
    balanced = re.search(r"^Test balanced accuracy in %", page.read_text(), re.MULTILINE)
    measure = "balanced_accuracy" if balanced else "accuracy"
    return [row for row in found if row["measure"] == measure]


def cells(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, list[float]]]:
    """Settings in words => arm => one value a replicate; an arm that a setting makes no difference to is in all."""
    keys = [key for key in rows[0] if "." in key or key == "case"]
    settings = {_said(row, keys): row for row in rows if all(row[key] for key in keys)} or {"": dict.fromkeys(keys, "")}
    found: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in settings}
    for name, arms in found.items():
        for row in rows:
            if all(row[key] in ("", settings[name][key]) for key in keys):
                arms.setdefault(row["arm"], {}).setdefault(row["replicate"], []).append(float(row["value"]))
    return {
        name: {arm: [statistics.fmean(seeds) for seeds in by.values()] for arm, by in arms.items()}
        for name, arms in found.items()
    }


def _said(row: Mapping[str, str], keys: Sequence[str]) -> str:
    return ", ".join(f"{key.rpartition('.')[2].replace('_', ' ')} {row[key]}" for key in keys if row[key])


def title(page: Path) -> str:
    return page.read_text().partition("\n")[0].lstrip("# ")


def estimate(values: Sequence[float]) -> str:
    """In %, with the standard deviation."""
    return f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def table(folder: str, pages: str = "*") -> str:
    """Accuracies of the pages of such names as Markdown, with links that hold below `folder`."""
    found = [HEAD, ["---"] * len(HEAD)]
    for page in pages_of(pages):
        rows = rows_of(page)
        measure = rows[0]["measure"]
        for place, (name, arms) in enumerate(cells(rows).items()):
            shown = [estimate(arms[arm]) if arm in arms else "" for arm in ARMS]
            link = f"[{title(page)}]({folder}/{page.name})" if place == 0 else ""
            settings = f"{name}; balanced accuracy" if measure != "accuracy" else name
            found.append([link, settings, *shown, str(len(next(iter(arms.values()))))])
    return _markdown(found)


def claims_of(page: Path) -> Iterator[tuple[str, str, str, str, ClaimRecord]]:
    """The claims of a page: what is said, of what, its differences in words, its outcome alone, and its errors."""
    text = page.read_text()
    kept = page.with_suffix(".json")
    errors = {record.says: record for _, record in read_claims([kept])} if kept.is_file() else {}
    replicates = int(re.findall(r"n=(\d+) replicates", text)[0])
    lines = [line.strip("| ").split(" | ") for line in text.partition("## Claims")[2].splitlines() if line[:2] == "| "]
    for says, of, by, outcome in (line for line in lines if len(line) == 4 and NUMBERS.search(line[2])):
        yield says, of, by, outcome, errors.get(says) or _from_intervals(says, of, by, replicates)


def _from_intervals(says: str, of: str, by: str, replicates: int) -> ClaimRecord:
    """The errors that intervals of accuracies in points can come from, all of it by replicates."""
    found = [[float(number) / 100 for number in numbers] for numbers in NUMBERS.findall(by)]
    parts = dict(units=replicates, image_error=0.0, images=None)
    one = Difference(value=0.0, unit_error=1.0, **parts).half(1 - 0.05 / len(found))
    assert one is not None and of.startswith(("accuracy", "balanced accuracy"))
    errors = [Difference(value=value, unit_error=(high - low) / 2 / one, **parts) for value, low, high in found]
    return ClaimRecord(says=says, of=of.replace(" ", "_") if of.endswith("accuracy") else "accuracy", errors=errors)


@cache
def judged() -> dict[tuple[str, str], Answer]:
    """(page, what is said) => the claim, judged with all others."""
    found = {(page.stem, says): (by, of, claim) for page in pages_of() for says, of, by, _, claim in claims_of(page)}
    together = judge_together([(page, claim) for (page, _), (*_, claim) in found.items()])
    return {key: Answer(by, of, one) for (key, (by, of, _)), one in zip(found.items(), together, strict=True)}


def asked_of(claim: Mapping[str, Any]) -> dict[tuple[str, str], Answer]:
    """What today's pages say of a claim of the paper; where the paper says the opposite of theirs, of that."""
    found = {}
    for name, opposite in (("asked", False), ("against", True)):
        for page, asked in claim.get(name, {}).items():
            for key in ((page, says) for says in asked):
                if key in judged():
                    found[key] = _opposite(judged()[key]) if opposite else judged()[key]
    return found


def _opposite(answer: Answer) -> Answer:
    """The answer to the opposite statement: its differences stay those of the page."""
    other = {"holds": "does not hold", "does not hold": "holds"}
    one = answer.judged
    turned = replace(one, alone=other.get(one.alone, one.alone), together=other.get(one.together, one.together))
    return replace(answer, judged=turned, opposite=True)


def summary() -> str:
    """How many claims there are, and what became of them."""
    claims = read_toml(RESULTS / "paper.toml")["claim"]
    asked = sum(bool(asked_of(claim)) for claim in claims)
    elsewhere = sum("measured" in claim for claim in claims)
    answers = [answer for claim in claims for answer in asked_of(claim).values()]
    alone, together = (Counter(getattr(answer.judged, name) for answer in answers) for name in ("alone", "together"))
    factors = {n: _factor(n, 2 * len(judged())) for n in (10, 5, 3)}
    left = len(claims) - asked - elsewhere
    rest = f"; {left} {'is' if left == 1 else 'are'} not measured" if left else ""
    text = (
        f"Of the paper's {len(claims)} claims {asked} are asked here, by {len(answers)} comparisons; {elsewhere}, "
        f"of cost and of few-shot learners, are measured elsewhere{rest}. Each alone: {_counted(alone)}. Judged with "
        f"all {len(judged())} of both tables: {_counted(together)}. To hold with all, a difference "
        f"has to be up to {factors[5]:.1f} times as far from 0 as its interval reaches to either side with five "
        f"replicates ({factors[10]:.1f} times with ten, {factors[3]:.1f} "
        'with three): "too noisy to say" there says first of all that replicates are few.'
    )
    return "\n".join(textwrap.wrap(text, 128, break_long_words=False)) + "\n\n"


def _counted(outcomes: Mapping[str, int]) -> str:
    said = ("holds", "does not hold", UNCLEAR)
    return ", ".join(f"{outcomes[one]} {one}" for one in said if outcomes.get(one))


def _factor(replicates: int, statements: int) -> float:
    """The most that Holm asks for, in half-widths of an interval at 95 %."""
    return float(t.ppf(1 - 0.05 / statements, replicates - 1) / t.ppf(0.975, replicates - 1))


def could_see(claim: ClaimRecord) -> str:
    """The difference that would be found with a chance of 80 %, alone; of accuracies in points."""
    least = []
    for found in claim.errors:
        error = ((found.unit_error or 0.0) ** 2 + (found.image_error or 0.0) ** 2) ** 0.5
        level = 1 - 0.025 / len(claim.errors)  # the intervals of its differences hold together
        power = 1 - 0.2 / len(claim.errors)  # each must be found, whatever they have to do with one another
        least.append(error * float(t.ppf(level, found.units - 1) + t.ppf(power, found.units - 1)))
    return f"{100 * max(least):.1f}" if claim.of.endswith("accuracy") else f"{max(least):.3g}"


def paper_table() -> str:
    """Each claim of the paper, and what today's sweeps say of it."""
    found = [PAPER_HEAD, ["---"] * len(PAPER_HEAD)]
    for claim in read_toml(RESULTS / "paper.toml")["claim"]:
        head = [f"{claim['says']} ({claim['paper']})", claim["of"]]
        rows = [
            [
                f"{'NOT: ' if answer.opposite else ''}[{says}, {_short(page)}](results/today/{page}.md)",
                *_cells(answer, claim.get("pairs", ())),
            ]
            for (page, says), answer in asked_of(claim).items()
        ]
        rows = rows or [[_elsewhere(claim), "", "", "", ""]]
        found += [[*(head if place == 0 else ["", ""]), *row] for place, row in enumerate(rows)]
    return _markdown(found)


def _short(page: str) -> str:
    """Where it was asked: the end of the title."""
    return re.split("[?,:] ", title(PAGES / f"{page}.md"))[-1]


def _cells(answer: Answer, pairs: Sequence[str]) -> list[str]:
    by = answer.by
    if pairs:
        by = "; ".join(f"{pair}: {one}" for pair, one in zip(pairs, by.split("; "), strict=True))
    return [by, answer.judged.alone, answer.judged.together, could_see(answer.judged.claim)]


def _elsewhere(claim: Mapping[str, Any]) -> str:
    if "measured" in claim:
        return f"[{claim['measured']}](results/{claim['page']}.md)"
    first = [f"[by the first `mini`](results/first-mini/{name}.md)" for name in claim.get("first", [])]
    return ", ".join([f"not measured: `experiments/{claim['experiment']}`", *first])


def other_claims() -> str:
    """The claims of today's pages that the paper does not make."""
    found = [CLAIM_HEAD, ["---"] * len(CLAIM_HEAD)]
    papers = {key for claim in read_toml(RESULTS / "paper.toml")["claim"] for key in asked_of(claim)}
    for (page, says), answer in judged().items():
        if (page, says) not in papers:
            found.append([f"[{_short(page)}](results/today/{page}.md)", says, answer.of, *_cells(answer, ())])
    return _markdown(found)


def picture() -> None:
    """docs/results/claims.png: each difference in accuracy of the paper's claims with its interval.

    Green: as the paper has it, red: against it, each alone.
    """
    from matplotlib.figure import Figure

    names, ends, colours = [], [], []
    for claim in read_toml(RESULTS / "paper.toml")["claim"]:
        for (page, says), answer in asked_of(claim).items():
            if not answer.judged.claim.of.endswith("accuracy"):
                continue
            found = NUMBERS.findall(answer.by)
            labels = [f", {pair}" for pair in claim.get("pairs", [])] or [""] * len(found)
            for label, numbers in zip(labels, found, strict=True):
                names.append(f"{'NOT: ' if answer.opposite else ''}{says}{label} ({_short(page)})")
                ends.append([float(number) for number in numbers])
                for_it = ends[-1][2] < 0 if answer.opposite else ends[-1][1] > 0
                against = ends[-1][1] > 0 if answer.opposite else ends[-1][2] < 0
                colours.append("tab:green" if for_it else "tab:red" if against else "tab:gray")
    figure = Figure(figsize=(10, 0.3 * len(names) + 1))
    axes = figure.subplots()
    for place, (colour, (value, low, high)) in enumerate(zip(colours, ends, strict=True)):
        axes.errorbar(
            value, place, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3, markersize=4
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("difference in points, with its interval alone at 95 %")
    figure.savefig(PICTURE, dpi=120, bbox_inches="tight")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def between(text: str, start: str, end: str, inside: str) -> str:
    """`text` with something else between its two marks."""
    before, _, rest = text.partition(start)
    return before + start + inside + end + rest.partition(end)[2]


def take_in(sweep: Path, name: str) -> None:
    """Copy the page beside a sweep's JSON, its figures and results, and of the JSON the claims with their errors.

    Raises DataError where the page that is there has prose that no notes keep.
    """
    page = PAGES / f"{name}.md"
    if page.is_file() and not _notes(page).is_file() and made(page.read_text()) != page.read_text():
        raise DataError(f"{page}: what follows its claims would be lost. Move it to {_notes(page).name} first.")
    shutil.copyfile(sweep.with_suffix(".csv"), PAGES / f"{name}.csv")
    text = as_published(sweep.with_suffix(".md").read_text())
    for figure in re.findall(rf"\(({re.escape(sweep.stem)}[^)]*\.png)\)", text):
        renamed = name + figure.removeprefix(sweep.stem)
        shutil.copyfile(sweep.parent / figure, PAGES / renamed)
        text = text.replace(f"({figure})", f"({renamed})")
    page.write_text(with_notes(text, page))
    claims = {"plan": {"name": name}, "claims": json.loads(sweep.read_text())["claims"]}
    (PAGES / f"{name}.json").write_text(json.dumps(claims, indent=1) + "\n")


def as_published(text: str) -> str:
    """A page whose command names the experiments of this repository, and not by how many processes it was run."""

    def cleared(command: re.Match[str]) -> str:
        found = re.sub(r" \S*/experiments/", " experiments/", command[0])
        return re.sub(r" --(?:join|workers[ =]\d+)(?=[ `])", "", found)

    return re.sub(r"^`dinv sweep .*`$", cleared, text, count=1, flags=re.MULTILINE)


def made(text: str) -> str:
    """Of a page what `dinv sweep` wrote: all, up to the last row of its claims."""
    before, claims, after = text.partition(CLAIMS)
    rows = re.match(r"(?:\|.*\n)*", after)
    assert rows is not None
    return before + claims + rows[0]


def with_notes(text: str, page: Path) -> str:
    """What `dinv sweep` wrote of a page, with the heading and the prose of the notes beside it, where there are any.

    Raises DataError where the page has no claims, after which the prose would stand.
    """
    if not _notes(page).is_file():
        return text
    if CLAIMS not in text:
        raise DataError(f"{_notes(page)}: {page.name} has no claims that they could follow. Take the notes away.")
    text, notes = made(text), _notes(page).read_text()
    if notes.startswith("# "):
        heading, _, notes = notes.partition("\n")
        text = heading + "\n" + text.partition("\n")[2]
    prose = notes.strip("\n")
    return f"{text}\n{prose}\n" if prose else text


def _notes(page: Path) -> Path:
    return page.with_suffix(".notes.txt")


def main(arguments: Sequence[str]) -> None:
    if arguments:
        take_in(Path(arguments[0]), arguments[1])
    for page in pages_of():
        page.write_text(with_notes(page.read_text(), page))
    README.write_text(between(README.read_text(), START, END, table("docs/results/today", "helps_*")))
    text = between(PAGE.read_text(), START, END, table("results/today"))
    picture()
    inside = f"{summary()}{paper_table()}\nClaims of ours, which the paper does not make:\n\n{other_claims()}"
    PAGE.write_text(between(text, PAPER_START, PAPER_END, inside))


if __name__ == "__main__":
    main(sys.argv[1:])
