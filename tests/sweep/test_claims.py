"""Claims of several sweeps together: p-values against scipy's, procedures against statsmodels' values, files."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.sweep.claims import (
    UNCLEAR,
    ClaimRecord,
    Difference,
    benjamini_hochberg,
    differences_text,
    holm,
    judge_together,
    read_claims,
    statements,
    tails,
)
from diffusion_inversion.sweep.outcome import judge

ROOT = Path(__file__).resolve().parents[2]


def difference(
    value: float, unit: float = 0.01, image: float = 0.01, units: int = 5, images: float = 1000
) -> Difference:
    return Difference(value=value, units=units, unit_error=unit, image_error=image, images=images)


def claim(*values: float, **errors: Any) -> ClaimRecord:
    return ClaimRecord(says="more", of="accuracy", errors=tuple(difference(value, **errors) for value in values))


def test_p_values_are_students_where_one_error_is_all_there_is() -> None:
    assert float(tails(2.0, 1.0, 0.0, 3, 100)) == pytest.approx(2 * stats.t.sf(2, 2), rel=1e-4)
    assert float(tails(-5.0, 0.0, 1.0, 3, 1000)) == pytest.approx(2 * stats.t.sf(5, 999), rel=1e-4)
    assert float(tails(3.0, 0.0, 1.0, 2, float("inf"))) == pytest.approx(2 * stats.norm.sf(3), rel=1e-4)
    assert float(tails(0.0, 1.0, 1.0, 3, 100)) == pytest.approx(1)
    assert float(tails(1e6, 0.0, 1.0, 3, 100)) == pytest.approx(1e-12), "no smaller ones are told apart"


@pytest.mark.parametrize("units", [3, 5])
def test_a_p_value_is_the_level_at_which_the_interval_ends_at_0(units: int) -> None:
    for value in (0.02, 0.05, 0.2):
        found = difference(value, units=units)
        p = float(tails(value, 0.01**2, 0.01**2, units, 1000))
        assert found.half(1 - p) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("values", [(0.05, 0.06), (0.05, 0.01), (-0.05, 0.06), (-0.07,), (0.036,), (0.033,)])
def test_alone_says_what_the_page_of_the_sweep_says(values: tuple[float, ...]) -> None:
    """`outcome.judge` reads intervals, this the p-values: one claim has one outcome."""
    one = claim(*values)
    bounds = []
    for found in one.errors:
        half = found.half(1 - 0.05 / len(values))
        assert half is not None
        bounds.append((found.value, found.value - half, found.value + half))
    (judged,) = judge_together([("page", one)])
    assert judged.alone == judge(bounds) == judged.together == judged.discovery


def test_the_two_statements_of_a_claim() -> None:
    holds, fails = statements(claim(0.05, 0.2))
    assert holds == pytest.approx(2 * float(tails(0.05, 1e-4, 1e-4, 5, 1000)) / 2, rel=1e-4), "the weakest difference"
    assert fails == 1
    holds, fails = statements(claim(-0.05, 0.2))
    assert holds == 1 and fails == pytest.approx(2 * float(tails(0.05, 1e-4, 1e-4, 5, 1000)) / 2, rel=1e-4)


def test_two_seeds_and_unknown_errors_say_nothing() -> None:
    unknown = Difference(value=9.0, units=1, unit_error=None, image_error=None, images=None)
    assert statements(ClaimRecord(says="", of="kid", errors=(unknown,))) == (1, 1)
    assert statements(claim(0.5, units=2)) == (1, 1)
    assert statements(ClaimRecord(says="", of="kid", errors=(difference(0.5, units=2),)))[0] < 0.05, "images count"
    # of two differences the known one can still refute
    both = ClaimRecord(says="", of="kid", errors=(unknown, difference(-0.9)))
    assert statements(both)[0] == 1 and statements(both)[1] < 0.01


def test_holm_and_benjamini_hochberg_are_the_textbooks() -> None:
    """Benjamini & Hochberg 1995, section 3.2: 15 p-values, of which Bonferroni and Holm reject 3, theirs 4."""
    p = np.array([
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528,
        0.7590, 1.0,
    ])  # fmt: skip
    for order in (np.arange(15), np.random.default_rng(0).permutation(15)):
        assert set(p[order][holm(p[order], 0.05)]) == set(p[:3])
        assert set(p[order][benjamini_hochberg(p[order], 0.05)]) == set(p[:4])
    assert benjamini_hochberg(p, 0.05).tolist() == (stats.false_discovery_control(p) <= 0.05).tolist()
    assert not holm(np.array([0.04, 0.04]), 0.05).any() and holm(np.array([0.02, 0.04]), 0.05).all()
    assert holm(np.stack([p, np.ones(15)]), 0.05).sum(axis=1).tolist() == [3, 0], "row by row"


def test_many_claims_need_more_than_one() -> None:
    strong, noise = claim(0.05), claim(0.001)
    assert judge_together([("a", strong)])[0].together == "holds"
    judged = judge_together([("a", strong)] + [("b", noise)] * 46)
    assert (judged[0].alone, judged[0].together) == ("holds", UNCLEAR)
    assert {one.together for one in judged} == {UNCLEAR}
    assert judge_together([("a", claim(0.5))] + [("b", noise)] * 46)[0].together == "holds"
    assert judge_together([("a", claim(-0.5))] + [("b", noise)] * 46)[0].discovery == "does not hold"
    with pytest.raises(UsageError, match="confidence"):
        judge_together([("a", strong)], confidence=95)


def test_any_false_statement_among_many_is_as_rare_as_promised() -> None:
    bench = runpy.run_path(str(ROOT / "benchmarks" / "claim_errors.py"))
    bench["draw"].__globals__["DRAWS"] = 2000
    for seeds, ratio, common in ((3, 16.0, 0.0), (5, 16.0, 0.0), (5, 1 / 16, 0.5)):
        p, true = bench["draw"](seeds, ratio, common, 0.0, np.random.default_rng(0))
        alone, together, discovery = bench["rates"](p, true)
        assert alone[0] > 40, "47 claims at 5 % each"
        assert together[0] < 5 + 1.5 and discovery[0] < 5 + 1.5  # 3 standard errors of the simulation
    p, true = bench["draw"](5, 1.0, 0.0, 15.0, np.random.default_rng(0))
    assert bench["rates"](p, true)[1][2] > 60, "and yet true ones are found"


def test_the_published_claims_are_what_the_command_writes(tmp_path: Path) -> None:
    published = ROOT / "docs" / "results"
    results = Path(shutil.copytree(published / "first-mini", tmp_path / "first-mini"))
    page = Path(shutil.copy(published / "first-mini.md", tmp_path / "first-mini.md"))
    bench = runpy.run_path(str(ROOT / "benchmarks" / "judge_claims.py"))
    bench["main"].__globals__["RESULTS"] = page
    bench["main"](sorted(results.glob("*.csv")))
    assert page.read_text() == (published / "first-mini.md").read_text()
    for file in results.glob("*.md"):
        assert file.read_text() == (published / "first-mini" / file.name).read_text(), file.name


def test_the_bound_on_what_test_images_add() -> None:
    bench = runpy.run_path(str(ROOT / "benchmarks" / "judge_claims.py"))
    found = bench["difference"]([0.5, 0.6], [0.4, 0.3], 1000)
    assert (found.value, found.units, found.images) == (pytest.approx(0.2), 2, 1000)
    assert found.unit_error == pytest.approx(0.1)  # of 0.1 and 0.3
    variance = ((0.25 + 0.24) / 2 + (0.24 + 0.21) / 2) / 1000
    assert found.image_error == pytest.approx(variance**0.5)


def write(path: Path, *claims: ClaimRecord, **more: Any) -> Path:
    record = {"plan": {}, "claims": [one.model_dump() | {"outcome": "", "differences": []} for one in claims]}
    path.write_text(json.dumps(record | more))
    return path


def test_the_command_reads_folders_and_files_and_each_once(tmp_path: Path) -> None:
    first = write(tmp_path / "first.json", claim(0.5), claim(0.001))
    write(tmp_path / "second.json", claim(-0.5))
    (tmp_path / "other.json").write_text("{}")
    assert [name for name, _ in read_claims([first, tmp_path])] == ["first", "first", "second"]
    done = CliRunner().invoke(app, ["claims", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [one["together"] for one in found["claims"]] == ["holds", UNCLEAR, "does not hold"]
    text = CliRunner().invoke(app, ["claims", str(tmp_path)]).stdout
    assert "3 claims" in text and "alone: does not hold" in text and "Holm over 6 statements" in text
    for path, message in ((tmp_path / "nowhere", "not there"), (tmp_path / "other.json", "not the JSON of a sweep")):
        refused = CliRunner().invoke(app, ["claims", str(path)])
        assert refused.exit_code != 0 and message in refused.stderr


def test_a_file_of_an_older_version_says_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"plan": {}, "claims": [{"says": "x", "of": "accuracy", "differences": [[1, 0, 2]]}]}))
    with pytest.raises(DataError, match="dinv sweep"):
        read_claims([old])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="no sweep"):
        read_claims([empty])


def test_intervals_are_shown_cut_to_what_can_be() -> None:
    assert differences_text(claim(0.99), 0.95).endswith(", +100] points")
    wide = ClaimRecord(says="", of="fid_lite0", errors=(difference(0.99, image=3.0),))
    assert "-4.9" in differences_text(wide, 0.95) and "points" not in differences_text(wide, 0.95)
