"""Images that are found in a pool as cells of a sweep, beside those that are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from coloured_images import write_data, write_pool
from harness import Bench
from sweeps import sweep

from diffusion_inversion.errors import UsageError
from diffusion_inversion.sweep import read_plan
from diffusion_inversion.sweep.elsewhere import _open, depends_on
from diffusion_inversion.sweep.plan import cells

FILE = """
title = "Drawn and found"
generator = "{toy}"
[data]
data = "{data}"
root = "{root}"
[invert]
steps = 1
init = "random"
eval_draws = 1
[sample]
variants = 1
inference_steps = 1
[train]
architecture = "resnet20"
steps = 1
batch_size = 4
seeds = [0]
arms = ["real", "synthetic"]
[metrics]
k = 2
[[cases]]
name = "drawn"
set = {{}}
[[cases]]
name = "3 nearest"
set = {{ "retrieve.pool" = "{pool}", "retrieve.k" = 3 }}
[[cases]]
name = "8 nearest"
set = {{ "retrieve.pool" = "{pool}", "retrieve.k" = [8] }}
"""


@pytest.fixture
def file(bench: Bench, tmp_path: Path) -> Path:
    data, pool = write_data(tmp_path / "data"), write_pool(tmp_path / "pool")
    path = tmp_path / "found.toml"
    text = FILE.format(toy=bench.checkpoint, data=data, root=tmp_path / "root", pool=pool)
    path.write_text(text)
    return path


def test_found_images_are_cells_beside_drawn_ones(file: Path, tmp_path: Path) -> None:
    done = sweep(file, tmp_path / "out")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "found.json").read_text())
    images = {row["at"].get("case"): row["synthetic_images"] for row in record["rows"] if row["arm"] == "synthetic"}
    assert images["drawn"] == 12 and 5 < images["3 nearest"] < images["8 nearest"] <= 40
    reals = [row for row in record["rows"] if row["arm"] == "real"]
    assert len(reals) == 1, "the arm real is trained once for all three"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").rglob("*.png")}
    assert sweep(file, tmp_path / "out").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").rglob("*.png")}


def test_a_cell_has_one_k_and_a_pool_that_is_large_enough(file: Path, tmp_path: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace("[8]", "[5, 8]"))
    with pytest.raises(UsageError, match=r"retrieve.k=\[5, 8\]: one number a cell"):
        cells(read_plan(file))
    file.write_text(text.replace("[8]", "41"))
    refused = sweep(file, tmp_path / "out")
    assert refused.exit_code == 2 and "--k 41: pool has 40 images" in refused.output
    judged = text.replace('arms = ["real", "synthetic"]', 'arms = ["real+synthetic"]\nmixing = "confidence"')
    file.write_text(judged.replace('[[cases]]\nname = "drawn"\nset = {}\n', ""))
    refused = sweep(file, tmp_path / "out")
    assert refused.exit_code == 2 and "mixing=confidence: images are drawn without a judge" in refused.output
    assert not (tmp_path / "root").exists(), "nothing was computed"


def test_what_a_pool_holds_is_part_of_a_cells_name(file: Path, tmp_path: Path) -> None:
    found = [cell for cell in cells(read_plan(file)) if not cell.learns]
    before = [depends_on(cell, "cpu") for cell in found]
    _open.cache_clear()  # as another process would see it
    assert [depends_on(cell, "cpu") for cell in found] == before
    one = next((tmp_path / "pool").rglob("*.png"))
    one.with_name("another.png").write_bytes(one.read_bytes())
    _open.cache_clear()
    assert all(now != then for now, then in zip((depends_on(cell, "cpu") for cell in found), before, strict=True))
