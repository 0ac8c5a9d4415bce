"""Judge the claims of published sweeps again, all pages together, where their predictions are gone.

Command:  python benchmarks/judge_claims.py docs/results/first-mini/*.csv
Reads:    <name>.csv, with the accuracy of every seed, and the claims of <name>.toml beside it: the experiment as it was
          when the page was made, whatever experiments/<name>.toml has become since.
Writes:   the section "Claims" of <name>.md beside it; of docs/results/first-mini.md the last cell of the table's row
          that links to that page, and what stands between the marks. The column "first published" is kept as it is.
Method:   `diffusion_inversion.sweep.claims`. The error by the choice of test images needs predictions. Its bound: of n
          images an accuracy p has variance p(1 - p) / n, the mean over seeds at most the mean of these, and the
          difference of two arms at most their sum, if images that are easy for one arm are no harder than others for
          the other. Metrics are not judged: their errors took variants of one source as independent images.
Cost:     5 seconds.
"""

from __future__ import annotations

import csv
import re
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_inversion.sweep.claims import UNCLEAR, ClaimRecord, Difference, Judged, differences_text, judge_together
from diffusion_inversion.sweep.plan import Side, SweepPlan, read_plan
from diffusion_inversion.sweep.table import shown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "first-mini.md"
COMMAND = "python benchmarks/judge_claims.py docs/results/first-mini/*.csv"
START, END = "<!-- claims -->", "<!-- end of claims -->"
TEST_IMAGES = 10_000  # of CIFAR-10, where the file takes no fewer
NOT_JUDGED = "not judged (intervals not by source)"
HEAD = ("claim", "of", "differences", "first published", "alone", "with all claims", "false discovery rate")


@dataclass(frozen=True)
class Entry:
    """A claim of a page; `judged` is None for metrics."""

    page: str
    says: str
    of: str
    differences: str
    published: str
    judged: Judged | None

    @property
    def outcomes(self) -> tuple[str, str, str]:
        if self.judged is None:
            return NOT_JUDGED, NOT_JUDGED, NOT_JUDGED
        return self.judged.alone, self.judged.together, self.judged.discovery


def values(rows: Sequence[Mapping[str, str]], keys: Sequence[str], side: Side, measure: str) -> list[float]:
    """What the CSV has of one side of a claim: an accuracy for each seed, or a metric."""
    at = {key: shown(value) for key, value in side.at.items()}
    fitting = [
        row
        for row in rows
        if row["measure"] == measure
        and row["arm"] == side.arm
        and all(row[key] in (value, "") for key, value in at.items())
    ]
    if len({tuple(row[key] for key in keys) for row in fitting}) != 1:
        raise SystemExit(f"{measure} of {side.arm} at {at}: not one result of the file")
    return [float(row["value"]) for row in fitting]


def difference(more: Sequence[float], less: Sequence[float], images: int) -> Difference:
    """Of two accuracies, paired over seeds, with the bound for the test images."""
    paired = [a - b for a, b in zip(more, less, strict=True)]
    bound = sum(statistics.fmean(p * (1 - p) for p in side) for side in (more, less)) / images
    error = statistics.stdev(paired) / len(paired) ** 0.5
    return Difference(
        value=statistics.fmean(paired), units=len(paired), unit_error=error, image_error=bound**0.5, images=images
    )


def claims(plan: SweepPlan, rows: Sequence[Mapping[str, str]]) -> list[ClaimRecord]:
    keys = [key for key in rows[0] if "." in key or key == "case"]
    images = int(plan.data.get("test_limit") or TEST_IMAGES)
    found = []
    for claim in plan.claims:
        errors = []
        for pair in claim.pairs:
            more, less = (values(rows, keys, side, claim.of) for side in (pair.greater, pair.less))
            if claim.of == "accuracy":
                errors.append(difference(more, less, images))
            else:
                value = more[0] - less[0]
                errors.append(Difference(value=value, units=1, unit_error=None, image_error=None, images=None))
        found.append(ClaimRecord(says=claim.says, of=claim.of, errors=tuple(errors)))
    return found


def published(page: str) -> dict[str, str]:
    """The outcome that the page first had for each claim."""
    lines = [line for line in page.partition("## Claims")[2].splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    place = rows[0].index("first published" if "first published" in rows[0] else "outcome")
    return {row[0]: row[place] for row in rows[2:]}


def section(entries: Sequence[Entry], judged: int) -> str:
    rows = [HEAD, ["---"] * len(HEAD), *([e.says, e.of, e.differences, e.published, *e.outcomes] for e in entries)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    text = (
        f"`{COMMAND}`, from the accuracies in the CSV files: in brackets what holds for the claim alone at 95 %, each "
        "error with its own quantile, that of the test images the largest that their number allows, since predictions "
        f"were not kept. With all claims: the {judged} of all pages together, at 95 % (Holm). False discovery rate: "
        "5 % of the statements made (Benjamini-Hochberg)."
    )
    if any(entry.judged is None for entry in entries):
        text += (
            " Metrics are not judged: their intervals, those of the table above too, took the variants of one source "
            "for independent images and the real images for others than the sources; the images are gone."
        )
    text = "\n".join(textwrap.wrap(text, 128, break_long_words=False))
    return f"## Claims\n\n{text}\n\n{table}\n"


def cell(entries: Sequence[Entry]) -> str:
    """What the page of all says of a page's claims: those of which something can be said, and how many others."""
    others = Counter(entry.outcomes[0] for entry in entries if entry.outcomes[0] in (UNCLEAR, NOT_JUDGED))
    parts = [
        f"{entry.says}: {entry.differences}, alone {entry.outcomes[0]}, with all claims {entry.outcomes[1]}"
        for entry in entries
        if entry.outcomes[0] not in others
    ]
    parts += [f"{count} of {len(entries)} {outcome}" for outcome, count in others.items()]
    return "; ".join(parts).replace("|", "\\|")


def summary(entries: Sequence[Entry]) -> str:
    """What changed, for the first lines of docs/results/first-mini.md."""
    judged = [entry.judged.claim.errors for entry in entries if entry.judged is not None]
    halves = [found.half(1 - 0.05 / len(errors)) for errors in judged for found in errors]
    widths = [200 * half for half in halves if half is not None]
    texts = [
        f"**All {len(entries)} claims of the pages below were judged again** (`{COMMAND}`), by intervals that hold "
        f"what they say with few seeds, and all pages together. {counted(entries)}",
        f"Alone, the intervals are {min(widths):.1f} to {max(widths):.1f} points wide, the median "
        f"{statistics.median(widths):.1f}: three seeds of one subset and one draw, and the largest error that the "
        "choice of test images can add, since the predictions, from which it could be measured, were not kept. Where "
        "classifiers err on the same images, as they do, it is less: alone some of these claims need not be too noisy. "
        "With all claims: the chance of a false statement is at most 5 % (Holm). False discovery rate: "
        "at most 5 % of the statements made are false on average (Benjamini-Hochberg). Metrics are not judged: their "
        "intervals took the variants of a source for independent images and the real images for others than the "
        "sources ([metric-intervals.md](metric-intervals.md)); the images are gone. What was first said, and "
        "what can be said now:",
    ]
    lines = [line for text in texts for line in (*textwrap.wrap(text, 128, break_long_words=False), "")]
    lines += ["| page | claim | first published | alone | with all claims | false discovery rate |", "|---" * 6 + "|"]
    lines += [
        f"| [{e.page}](first-mini/{e.page}.md) | {e.says} | {e.published} | " + " | ".join(e.outcomes) + " |"
        for e in entries
        if {e.published, *e.outcomes} - {UNCLEAR, NOT_JUDGED}
    ]
    return "\n".join(lines)


def counted(entries: Sequence[Entry]) -> str:
    parts = []
    for name, outcomes in (
        ("First published", [e.published for e in entries]),
        ("Alone", [e.outcomes[0] for e in entries]),
        ("With all claims", [e.outcomes[1] for e in entries]),
        ("False discovery rate", [e.outcomes[2] for e in entries]),
    ):
        count = Counter(outcomes)
        said = ("holds", "does not hold", UNCLEAR, NOT_JUDGED)
        parts.append(f"{name}: " + ", ".join(f"{count[outcome]} {outcome}" for outcome in said if count[outcome]) + ".")
    return " ".join(parts)


def main(files: Sequence[Path]) -> None:
    found: list[tuple[str, ClaimRecord]] = []
    for file in files:
        plan = read_plan(file.with_suffix(".toml"), data="cifar10")
        with file.open(encoding="utf-8", newline="") as opened:
            found += [(file.stem, claim) for claim in claims(plan, list(csv.DictReader(opened)))]
    judged = iter(judge_together([one for one in found if one[1].of == "accuracy"]))
    pages = {file.stem: file.with_suffix(".md").read_text(encoding="utf-8") for file in files}
    before = {name: published(text) for name, text in pages.items()}
    entries = [
        Entry(
            name, claim.says, claim.of, differences_text(claim, 0.95), before[name][claim.says],
            next(judged) if claim.of == "accuracy" else None,
        )
        for name, claim in found
    ]  # fmt: skip
    count = sum(entry.judged is not None for entry in entries)
    head, _, rest = RESULTS.read_text(encoding="utf-8").partition(START)
    rest = rest.partition(END)[2]
    for file in files:
        mine = [entry for entry in entries if entry.page == file.stem]
        top = pages[file.stem].partition("## Claims")[0]
        file.with_suffix(".md").write_text(top + section(mine, count), encoding="utf-8")
        row = re.compile(rf"^(\| \[[^]]*\]\(first-mini/{file.stem}\.md\).* \|) .* \|$", re.MULTILINE)
        text = cell(mine).replace("\\", r"\\")
        rest, changed = row.subn(rf"\1 {text} |", rest)
        if changed != 1:
            raise SystemExit(f"{RESULTS}: {changed} rows link to first-mini/{file.stem}.md; one is needed")
    RESULTS.write_text(f"{head}{START}\n{summary(entries)}\n{END}{rest}", encoding="utf-8")
    print(counted(entries))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
