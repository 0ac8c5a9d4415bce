"""LECF as cells of a sweep: thresholds share what is drawn, and every arm has as many images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sweeps import sweep
from toy import build_checkpoint
from toy_clip import build_clip, write_coloured

from diffusion_inversion.errors import UsageError
from diffusion_inversion.run.lecf.frames import FRAMES
from diffusion_inversion.sweep import read_plan
from diffusion_inversion.sweep.elsewhere import _load, depends_on
from diffusion_inversion.sweep.plan import cells
from diffusion_inversion.sweep.ways import Lecf

ROOT = Path(__file__).parents[2]
FILE = """
title = "Thresholds"
generator = "{toy}"
[data]
data = "{data}"
root = "{root}"
[train]
architecture = "resnet20"
steps = 1
batch_size = 4
seeds = [0]
arms = ["real", "synthetic"]
[metrics]
k = 2
[lecf]
clip = "{clip}"
sentences = 4
variants = 2
inference_steps = 1
[grid]
"lecf.thresholds" = [0.0, 0.9]
"lecf.per_class" = [5, 3]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    toy, clip = build_checkpoint(tmp_path / "toy"), build_clip(tmp_path / "clip", steps=20)
    path, data = tmp_path / "thresholds.toml", write_coloured(tmp_path / "data", 30, seed=0)
    path.write_text(FILE.format(toy=toy, data=data, root=tmp_path / "root", clip=clip))
    return path


def test_thresholds_and_numbers_are_cells_that_share_what_is_drawn(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sweep(file, out)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "thresholds.json").read_text())
    assert "; LECF by CLIP clip, files " in record["generator"], "the CLIP is named in all that is shown"
    drawn = [row for row in record["rows"] if row["arm"] == "synthetic"]
    found = {(row["at"]["lecf.thresholds"], row["at"]["lecf.per_class"]): row["synthetic_images"] for row in drawn}
    assert found == {(0.0, 5): 15, (0.9, 5): 15, (0.0, 3): 9, (0.9, 3): 9}
    assert len(record["rows"]) == len(drawn) + 1, "the arm real is trained once"
    assert len(list(out.rglob("drawn"))) == 1 and len(list(out.rglob("drawn/**/*.png"))) == 3 * 4 * 2
    before = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    assert sweep(file, out).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}


def test_the_embedded_clip_is_meant_whatever_folder_lies_beside(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for --clip of `dinv lecf`: the folder would be ./mini-clip."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini-clip").mkdir()
    text = file.read_text()
    for given, found in (("mini-clip", "mini-clip"), ("./mini-clip", str(tmp_path / "mini-clip"))):
        file.write_text(text.replace(str(tmp_path / "clip"), given))
        meant = cells(read_plan(file))[0].way
        assert isinstance(meant, Lecf) and meant.filtering.clip == found


def test_what_cannot_be_is_said_before_anything_is_computed(file: Path, tmp_path: Path) -> None:
    text = file.read_text()
    for old, new, message in (
        ("[0.0, 0.9]", "[[0.0, 0.9]]", "lecf.thresholds: one number a cell"),
        ("[grid]", '[retrieve]\npool = "p"\n[grid]', "made in one way"),
        ("[0.0, 0.9]", "[1.5]", "numbers in 0..1"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(UsageError, match=message):
            cells(read_plan(file))
    file.write_text(text.replace('arms = ["real", "synthetic"]', 'arms = ["real+synthetic"]\nmixing = "curriculum"'))
    refused = sweep(file, tmp_path / "out")
    assert refused.exit_code == 2 and "mixing=curriculum: no real image is the source" in refused.output
    words = tmp_path / "clip" / "words.json"
    words.write_text(json.dumps(["red", "green"]))
    _load.cache_clear()  # as another process would see it
    file.write_text(text)
    refused = sweep(file, tmp_path / "out")
    assert refused.exit_code == 2 and "was never taught the words blue" in refused.output
    assert not list((tmp_path / "out").rglob("*.png"))


def test_the_experiment_draws_as_many_images_as_it_keeps() -> None:
    plan = read_plan(ROOT / "experiments" / "figure7b.toml", data="digits")
    of_lecf = [cell.way for cell in cells(plan) if isinstance(cell.way, Lecf)]
    assert of_lecf and all((one.filtering.per_class or 0) <= len(FRAMES) * one.drawing.variants for one in of_lecf)


def test_too_few_sentences_are_said_before_other_cases_are_computed(file: Path, tmp_path: Path) -> None:
    head = file.read_text().partition("[lecf]")[0]
    cases = (
        '[[cases]]\nname = "ours"\nset = {}\n[[cases]]\nname = "lecf"\n'
        'set = { "lecf.clip" = "%s", "lecf.thresholds" = 0.5, "lecf.variants" = 2, %s }\n'
    )
    for options, message in (
        ('"lecf.sentences" = 4, "lecf.per_class" = 9', "4 sentences x 2 variants are drawn, 9 images are to be kept"),
        ('"lecf.sentences" = 61', "--sentences 61: there are 60 frames"),
    ):
        file.write_text(head + cases % (tmp_path / "clip", options))
        refused = sweep(file, tmp_path / "out")
        assert refused.exit_code == 2 and message in refused.output
        assert not (tmp_path / "out" / "vectors").exists(), "of the other case nothing was learned"


def test_what_is_in_a_clip_is_part_of_a_cells_name(file: Path, tmp_path: Path) -> None:
    """Weights that are replaced where they lay would else go on with images that others filtered."""
    [cell, *_] = cells(read_plan(file))
    before = depends_on(cell, "cpu")
    shutil.rmtree(tmp_path / "clip")
    build_clip(tmp_path / "clip", steps=0)
    _load.cache_clear()  # as another process would see it
    assert depends_on(cell, "cpu") != before
