"""What README.md and the pages of docs/results say is what the CSV files of the sweeps hold."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from diffusion_inversion.engine.toml import read_toml
from diffusion_inversion.errors import DataError
from diffusion_inversion.sweep import read_plan
from diffusion_inversion.sweep.claims import ClaimRecord, differences_text, judge_together

ROOT = Path(__file__).resolve().parent.parent
TABLE: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py"))
JUDGE: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "judge_claims.py"))
PAGES: list[Path] = TABLE["pages_of"]()
of_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The names of benchmarks/results_table.py while what it writes are copies below `tmp_path`."""
    names = TABLE["main"].__globals__
    kept = {name: names[name] for name in ("README", "PAGE", "PICTURE", "PAGES")}
    try:
        for name in ("README", "PAGE"):
            names[name] = Path(shutil.copy(kept[name], tmp_path / name))
        names["PICTURE"] = tmp_path / "claims.png"
        names["PAGES"] = shutil.copytree(kept["PAGES"], tmp_path / "today", ignore=shutil.ignore_patterns("*.png"))
        yield names
    finally:
        names.update(kept)


def test_the_tables_are_those_of_the_files(copied: dict[str, Any]) -> None:
    TABLE["main"]([])
    assert copied["README"].read_text() == (ROOT / "README.md").read_text()
    assert copied["PAGE"].read_text() == (ROOT / "docs/results.md").read_text()
    assert len(PAGES) > 20
    for page in PAGES:
        assert (copied["PAGES"] / page.name).read_bytes() == page.read_bytes(), page.name
    assert copied["PICTURE"].stat().st_size > 0


@of_page
def test_what_people_say_of_a_page_is_in_its_notes(page: Path) -> None:
    """So that it is kept when the sweep is taken in again; the mark of a sweep's page is one command in one line."""
    text, notes = page.read_text(), page.with_suffix(".notes.txt")
    made = TABLE["made"](text)
    assert text == (TABLE["with_notes"](made, page) if notes.is_file() else made)
    assert re.search(r"\n\n`dinv sweep experiments/\S+\.toml [^`\n]*`\n\nGenerator: [^\n]*\n\nTest ", made)
    assert TABLE["as_published"](made) == made


SWEPT = """# Figure 0: a question

About.

`dinv sweep exp/experiments/figure1.toml --join --data a.parquet --out sweeps/join --workers 12`

Generator: mini.

![Figure 0: a question](zero-images.png)

## Claims

| claim | of | differences | outcome |
| --- | --- | --- | --- |
| It helps | accuracy | +1 [+0.5, +1.5] points | holds |
"""


def swept(folder: Path, text: str = SWEPT) -> Path:
    """What `dinv sweep` leaves."""
    folder.mkdir()
    (folder / "zero.md").write_text(text)
    (folder / "zero.csv").write_text("arm\n")
    (folder / "zero-images.png").write_bytes(b"PNG")
    (folder / "zero.json").write_text(json.dumps({"plan": {"grid": {}}, "claims": [{"says": "It helps"}]}))
    return folder / "zero.json"


def test_prose_is_kept_when_a_sweep_is_taken_in_again(tmp_path: Path, copied: dict[str, Any]) -> None:
    sweep, page = swept(tmp_path / "sweeps"), copied["PAGES"] / "figure0.md"
    TABLE["take_in"](sweep, "figure0")
    command = "`dinv sweep experiments/figure1.toml --data a.parquet --out sweeps/join`"
    alone = page.read_text()
    assert alone == re.sub("`dinv.*`", command, SWEPT).replace("zero", "figure0")
    assert (copied["PAGES"] / "figure0-images.png").read_bytes() == b"PNG"
    assert json.loads((copied["PAGES"] / "figure0.json").read_text()) == {
        "plan": {"name": "figure0"}, "claims": [{"says": "It helps"}],
    }  # fmt: skip

    notes = copied["PAGES"] / "figure0.notes.txt"
    notes.write_text("# Figure 0: a question, 100 images\n\nIt does.\n\n| a | b |\n| --- | --- |\n\nHere.\n")
    for _ in range(2):
        TABLE["take_in"](sweep, "figure0")
        first, _, rest = page.read_text().partition("\n")
        assert first == "# Figure 0: a question, 100 images"
        assert rest == alone.partition("\n")[2] + "\nIt does.\n\n| a | b |\n| --- | --- |\n\nHere.\n"
        assert copied["with_notes"](page.read_text(), page) == page.read_text()
    assert copied["title"](page) == "Figure 0: a question, 100 images"
    assert page in copied["pages_of"]() and notes not in copied["pages_of"]()

    notes.write_text("Other words.\n")  # no heading: the experiment's own
    TABLE["take_in"](sweep, "figure0")
    assert page.read_text() == alone + "\nOther words.\n"
    notes.unlink()
    with pytest.raises(DataError, match=r"figure0\.md: .* Move it to figure0\.notes\.txt first"):
        TABLE["take_in"](sweep, "figure0")
    assert page.read_text() == alone + "\nOther words.\n"


def test_notes_of_a_page_without_claims_have_no_place(tmp_path: Path, copied: dict[str, Any]) -> None:
    sweep = swept(tmp_path / "sweeps", SWEPT.partition("## Claims")[0])
    TABLE["take_in"](sweep, "figure0")
    (copied["PAGES"] / "figure0.notes.txt").write_text("It does.\n")
    with pytest.raises(DataError, match=r"figure0\.notes\.txt: figure0\.md has no claims"):
        TABLE["take_in"](sweep, "figure0")


def test_every_claim_of_the_paper_names_what_is_there() -> None:
    claims = read_toml(ROOT / "docs/results/paper.toml")["claim"]
    assert len(claims) == 17
    for claim in claims:
        where = [ROOT / "docs/results/first-mini" / f"{name}.md" for name in claim.get("first", [])]
        assert all(file.is_file() for file in where)
        if "measured" in claim:
            page = (ROOT / "docs/results" / f"{claim['page']}.md").read_text()
            assert all(number in page for number in re.findall(r"[\d.]+", claim["measured"]))
        else:
            assert (ROOT / "experiments" / claim["experiment"]).is_file()
        for page, asked in [*claim.get("asked", {}).items(), *claim.get("against", {}).items()]:
            made = ROOT / "docs/results/today" / f"{page}.md"
            assert not made.is_file() or {*asked} <= {says for says, *_ in TABLE["claims_of"](made)}


@of_page
def test_the_errors_of_a_claim_make_its_published_interval(page: Path) -> None:
    found = [*TABLE["claims_of"](page)]
    for says, _, by, outcome, record in found:
        numbers, again = (TABLE["NUMBERS"].findall(text) for text in (by, differences_text(record, 0.95)))
        for shown, computed in zip(numbers, again, strict=True):
            # Numbers of three digits: the largest says how exactly the error is known.
            given = [float(number) for number in shown]
            assert [float(number) for number in computed] == pytest.approx(given, abs=0.01 * max(map(abs, given)))
        [judged] = judge_together([(page.stem, record)])
        assert says and judged.alone == outcome


MEASURES = {
    "accuracy": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "accuracy of the worst class": "worst_class_accuracy",
}


def rows_of(page: Path, measure: str) -> list[dict[str, str]]:
    with page.with_suffix(".csv").open(newline="") as lines:
        return [row for row in csv.DictReader(lines) if row["measure"] == measure]


def per_replicate(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Replicate => the mean over its classifier seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["replicate"], []).append(float(row["value"]))
    return {replicate: statistics.fmean(values) for replicate, values in found.items()}


def side_of(rows: Sequence[Mapping[str, str]], side: Any) -> dict[str, float]:
    """What a file has of one side of a claim; a setting that makes no difference to a row is empty there."""
    at = {key: str(value) for key, value in side.at.items()}
    fitting = [row for row in rows if row["arm"] == side.arm and all(row[k] in (v, "") for k, v in at.items())]
    assert len({tuple(row[key] for key in rows[0] if "." in key or key == "case") for row in fitting}) == 1, side
    return per_replicate(fitting)


@of_page
def test_the_accuracy_claims_of_a_page_are_differences_of_its_file(page: Path) -> None:
    """Their values, and where they are kept their errors by replicates, from each replicate's accuracies again."""
    [experiment] = re.findall(r"^`dinv sweep (experiments/\S+\.toml)", page.read_text(), re.MULTILINE)
    plan = read_plan(ROOT / experiment, data="cifar10")
    asked, checked = {claim.says: claim for claim in plan.claims}, 0
    for says, of, by, _, record in TABLE["claims_of"](page):
        if of not in MEASURES:
            continue
        rows = rows_of(page, MEASURES[of])
        values = [value for value, _, _ in TABLE["NUMBERS"].findall(by)]
        for pair, shown, error in zip(asked[says].pairs, values, record.errors, strict=True):
            more, less = side_of(rows, pair.greater), side_of(rows, pair.less)
            assert more.keys() == less.keys() and len(more) == error.units
            apart = [more[replicate] - less[replicate] for replicate in more]
            assert f"{100 * statistics.fmean(apart):+.3g}" == shown, says
            if page.with_suffix(".json").is_file():  # else the error is made of the interval
                assert error.value == pytest.approx(statistics.fmean(apart), abs=1e-12)
                assert error.unit_error == pytest.approx(statistics.stdev(apart) / len(apart) ** 0.5)
            checked += 1
    assert checked >= 1


@of_page
def test_the_accuracies_of_a_page_are_those_of_its_file(page: Path) -> None:
    """Each `mean ± std (n=)` of its tables, and each set of classifiers of the file is in one."""
    text = TABLE["made"](page.read_text())
    measure = "balanced_accuracy" if "\nTest balanced accuracy in %" in text else "accuracy"

    def by_setting(of: str) -> dict[tuple[str, str], str]:
        groups: dict[tuple[str, str], list[Mapping[str, str]]] = {}
        for row in rows_of(page, of):
            at = ((key, value) for key, value in row.items() if value and ("." in key or key == "case"))
            name = ", ".join(value if key == "case" else f"{key.rpartition('.')[2]} {value}" for key, value in at)
            groups.setdefault((name or "all", row["arm"]), []).append(row)
        found = {}
        for place, group in groups.items():
            values = [*per_replicate(group).values()]
            mean, spread = 100 * statistics.fmean(values), 100 * statistics.stdev(values)
            found[place] = f"{mean:.1f} ± {spread:.1f} (n={len(values)})"
        return found

    tables = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    seen: dict[str, dict[tuple[str, str], str]] = {}
    columns = {"worst class, %": "worst_class_accuracy", "balanced accuracy, %": "balanced_accuracy"}
    for head, _, *lines in ([line.strip("|")[1:-1].split(" | ") for line in table] for table in tables):
        for row in lines:
            cells = dict(zip(head, row, strict=True))
            for column, cell in cells.items():
                if "(n=" in cell:
                    of = columns.get(column, "accuracy") if "arm" in head else measure
                    arm = cells["arm"] if "arm" in head else column
                    seen.setdefault(of, {})[row[0], arm] = cell
    assert seen[measure] == by_setting(measure)
    for of, found in seen.items():
        assert found == by_setting(of), of


QUOTED = re.compile(r"(?<![\w.])([+-]?[\d.]+) \[([+-]?[\d.]+), ([+-]?[\d.]+)\]")


def is_claimed(quoted: Sequence[str], claimed: Sequence[tuple[float, float, float]]) -> bool:
    """Whether a value with its interval is, rounded, one of a claim, in either direction.

    What pages show has three digits, so what is rounded again may be off by half of its last.
    """
    given = [float(number) for number in quoted]
    off = [0.51 * 10.0 ** -len(number.partition(".")[2]) for number in quoted]
    return any(
        all(abs(a - b) <= most for a, b, most in zip(given, one, off, strict=True))
        for value, low, high in claimed
        for one in ((value, low, high), (-value, -high, -low))
    )


def claimed_intervals() -> list[tuple[float, float, float]]:
    """Of every claim of today's pages: its differences as they show them, in points or of a metric."""
    claims = [by for page in PAGES for _, _, by, *_ in TABLE["claims_of"](page)]
    return [(float(a), float(b), float(c)) for by in claims for a, b, c in TABLE["NUMBERS"].findall(by)]


def test_the_intervals_that_prose_quotes_are_those_of_claims() -> None:
    readme = (ROOT / "README.md").read_text().partition("\n## Results\n")[2].partition("\n## ")[0]
    prose = {"README.md": readme, **{p.name: p.read_text() for p in sorted(TABLE["PAGES"].glob("*.notes.txt"))}}
    claimed = claimed_intervals()
    quoted = [(name, found) for name, text in prose.items() for found in QUOTED.findall(text)]
    assert [(name, found) for name, found in quoted if not is_claimed(found, claimed)] == []
    assert sum(name == "README.md" for name, _ in quoted) >= 10 and len(quoted) >= 16


def test_an_interval_that_no_claim_has_is_seen() -> None:
    claimed = [(1.72, 0.369, 3.07), (-0.26, -0.404, -0.116)]
    assert is_claimed(("1.7", "0.4", "3.1"), claimed) and is_claimed(("-1.72", "-3.07", "-.369"), claimed)
    assert is_claimed((".26", ".12", ".40"), claimed)
    for wrong in (("1.7", "0.4", "3.2"), ("1.8", "0.4", "3.1"), ("1.7", "-0.4", "3.1"), ("1.7", "0.40", "3.1")):
        assert not is_claimed(wrong, claimed)
    assert QUOTED.findall("by 65.4 [58.2, 72.5] and +2.3 [+0.7, +3.9]), .26 [.12, .40]") == [
        ("65.4", "58.2", "72.5"), ("+2.3", "+0.7", "+3.9"), (".26", ".12", ".40"),
    ]  # fmt: skip


def test_the_opposite_of_a_claim_holds_where_it_does_not() -> None:
    (claim,) = (
        one for one in read_toml(ROOT / "docs/results/paper.toml")["claim"] if one["of"].startswith("Figure 7b")
    )
    key = ("figure7b_numbers", "More images of LECF are better (120 a class against 20)")
    of_page, of_paper = TABLE["judged"]()[key].judged, TABLE["asked_of"](claim)[key].judged
    assert (of_page.alone, of_paper.alone) == ("does not hold", "holds")
    assert f"NOT: [{key[1]}" in (ROOT / "docs/results.md").read_text()


def test_what_could_be_seen_by_hand() -> None:
    claim = ClaimRecord(
        says="a", of="accuracy", errors=[dict(value=0.0, units=5, unit_error=0.006, image_error=0.008, images=1000)]
    )
    # An error of one point; quantiles of t with 4 degrees of freedom: 2.776 (97.5 %) and 0.941 (80 %).
    assert TABLE["could_see"](claim) == "3.7"
    # Of two differences each is asked for at 97.5 %, and both are found where each is in 90 %: 3.495 and 1.533.
    assert TABLE["could_see"](claim.model_copy(update={"errors": claim.errors * 2})) == "5.0"


def test_a_setting_whose_words_hold_anothers_is_a_setting_of_its_own() -> None:
    names = ("interpolation .5", "interpolation .5, noise .3")
    rows = [
        {"arm": "synthetic", "replicate": "0", "case": name, "value": str(place)} for place, name in enumerate(names)
    ]
    rows += [{"arm": "real", "replicate": "0", "case": "", "value": "9"}]
    found = TABLE["cells"](rows)
    assert found == {f"case {name}": {"synthetic": [place], "real": [9]} for place, name in enumerate(names)}


def test_the_first_numbers_by_hand() -> None:
    with (ROOT / "docs/results/today/helps_default.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["measure"] == "accuracy" and row["arm"] == "synthetic"]
    values = [100 * float(row["value"]) for row in rows]
    shown = f"| {statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} |"
    [line] = [line for line in (ROOT / "README.md").read_text().splitlines() if "helps_default.md" in line]
    assert shown in line and len(values) == 5


@pytest.mark.parametrize("file", sorted((ROOT / "docs/results/first-mini").glob("*.csv")), ids=lambda file: file.name)
def test_every_claim_of_a_page_comes_from_its_file(file: Path) -> None:
    # The experiment of this name may have other settings by now: the page's own are kept beside it.
    with file.open(newline="") as rows:
        found = JUDGE["claims"](read_plan(file.with_suffix(".toml"), data="cifar10"), list(csv.DictReader(rows)))
    page = file.with_suffix(".md").read_text()
    assert found
    for claim in found:
        assert f"| {claim.says} | {claim.of} | {JUDGE['differences_text'](claim, 0.95)} |" in page


def test_what_choosing_on_test_images_adds_is_that_of_its_file() -> None:
    table = runpy.run_path(str(ROOT / "benchmarks" / "few_shot_optimism.py"))["table"]
    results = ROOT / "docs" / "results"
    assert table(results / "few-shot-optimism.csv") in (results / "figure7a.md").read_text()


def test_every_drawing_of_lecf_names_its_guidance_scale() -> None:
    """Experiments draw with `mini`; the default of `dinv lecf` is Stable Diffusion's."""
    found = 0
    for script in (ROOT / "experiments").glob("*.sh"):
        for line in script.read_text().replace("\\\n", " ").splitlines():
            if re.match(r"\s*dinv lecf ", line):
                found += 1
                assert " --guidance-scales 2 " in line, script.name
    for file in (ROOT / "experiments").glob("*.toml"):
        content = read_toml(file)
        shared = {*content.get("grid", {}), *(f"lecf.{name}" for name in content.get("lecf", {}))}
        for case in content.get("cases", [{"set": {}}]):
            if "lecf.clip" in (named := shared | {*case["set"]}):
                found += 1
                assert "lecf.guidance_scales" in named, f"{file.name}: {case}"
    assert found > 8


def test_what_is_reproduced_in_small_is_of_cifar10() -> None:
    # It is run with a training and a test file of CIFAR-10, 20 images at least.
    elsewhere = runpy.run_path(str(ROOT / "benchmarks" / "reproduce.py"))["ELSEWHERE"]
    files = {file.stem: read_toml(file) for file in (ROOT / "experiments").glob("*.toml")}
    for name, content in files.items():
        if "title" in content and name not in elsewhere:
            keys = {*content.get("data", {}), *content.get("grid", {})}
            assert keys.isdisjoint({"per_class", "data.per_class", "holdout", "size"}), name
    assert {*elsewhere} <= {*files}
