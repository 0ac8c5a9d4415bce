"""What README.md and the pages of docs/results say is what the CSV files of the sweeps hold."""

from __future__ import annotations

import csv
import re
import runpy
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from diffusion_inversion.engine.toml import read_toml
from diffusion_inversion.sweep import read_plan
from diffusion_inversion.sweep.claims import ClaimRecord, differences_text, judge_together

ROOT = Path(__file__).resolve().parent.parent
TABLE: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py"))


def test_the_tables_are_those_of_the_files(tmp_path: Path) -> None:
    names = TABLE["main"].__globals__
    kept = {name: names[name] for name in ("README", "PAGE", "PICTURE")}
    try:
        for name, file in kept.items():
            names[name] = Path(shutil.copy(file, tmp_path / name))
        names["PICTURE"] = tmp_path / "claims.png"
        TABLE["main"]([])
        for name in ("README", "PAGE"):
            assert names[name].read_text() == kept[name].read_text(), name
        assert names["PICTURE"].stat().st_size > 0
    finally:
        names.update(kept)


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
        for page, asked in claim.get("asked", {}).items():
            made = ROOT / "docs/results/today" / f"{page}.md"
            assert not made.is_file() or {*asked} <= {says for says, *_ in TABLE["claims_of"](made)}


@pytest.mark.parametrize("page", sorted((ROOT / "docs/results/today").glob("*.md")), ids=lambda page: page.stem)
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


def test_what_could_be_seen_by_hand() -> None:
    claim = ClaimRecord(
        says="a", of="accuracy", errors=[dict(value=0.0, units=5, unit_error=0.006, image_error=0.008, images=1000)]
    )
    # An error of one point; quantiles of t with 4 degrees of freedom: 2.776 (97.5 %) and 0.941 (80 %).
    assert TABLE["could_see"](claim) == "3.7"
    # Of two differences each is asked for at 97.5 %: 3.495 and 0.941.
    assert TABLE["could_see"](claim.model_copy(update={"errors": claim.errors * 2})) == "4.4"


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
    judge: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "judge_claims.py"))
    with file.open(newline="") as rows:
        found = judge["claims"](read_plan(file.with_suffix(".toml"), data="cifar10"), list(csv.DictReader(rows)))
    page = file.with_suffix(".md").read_text()
    assert found
    for claim in found:
        assert f"| {claim.says} | {claim.of} | {judge['differences_text'](claim, 0.95)} |" in page


def test_what_choosing_on_test_images_adds_is_that_of_its_file() -> None:
    table = runpy.run_path(str(ROOT / "benchmarks" / "few_shot_optimism.py"))["table"]
    results = ROOT / "docs" / "results"
    assert table(results / "few-shot-optimism.csv") in (results / "figure7a.md").read_text()


def test_what_is_reproduced_in_small_is_of_cifar10() -> None:
    # It is run with a training and a test file of CIFAR-10, 20 images at least.
    elsewhere = runpy.run_path(str(ROOT / "benchmarks" / "reproduce.py"))["ELSEWHERE"]
    files = {file.stem: read_toml(file) for file in (ROOT / "experiments").glob("*.toml")}
    for name, content in files.items():
        if "title" in content and name not in elsewhere:
            keys = {*content.get("data", {}), *content.get("grid", {})}
            assert keys.isdisjoint({"per_class", "data.per_class", "holdout", "size"}), name
    assert {*elsewhere} <= {*files}
