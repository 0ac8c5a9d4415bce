"""Sweeps judge as the verdict does: by balanced accuracy where test classes are uneven; with `real (own size)`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Bench, write_images
from sweeps import sweep, write_sweep
from toy import toy_images

from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.stages import invert_stage, sample_stage, train_stage
from diffusion_inversion.sweep import read_plan
from diffusion_inversion.sweep.plan import cells
from diffusion_inversion.train.evaluation import OWN_SIZE

GRID = """
[grid]
"sample.noise_strength" = [0.1, 0.5]
"""
CLAIM = """
[figure]
x = "sample.noise_strength"
[[claims]]
says = "Synthetic images win"
[[claims.pairs]]
greater = { arm = "synthetic", at = { "sample.noise_strength" = 0.1 } }
less = { arm = "real (own size)" }
"""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training images of 32 px, which the toy draws at 16, and 9 test images: 7 of one class, 2 of the other."""
    folder, images = tmp_path_factory.mktemp("uneven"), toy_images(28, size=32)
    write_images(folder / "train", images, range(12))
    test = images.subset([*range(12, 26, 2), 13, 15])
    assert test.labels.bincount().tolist() == [7, 2]
    write_images(folder / "test", test, range(9))
    return folder


def test_a_claim_is_the_verdict_of_the_same_run(bench: Bench, uneven: Path, tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path / "judged.toml", bench, GRID + CLAIM, data=uneven, train_steps=3, seeds=(0, 1, 2),
        arms=("real", "synthetic"), own_size=True,
    )  # fmt: skip
    done = sweep(file, tmp_path / "out")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "judged.json").read_text())
    rows = {(row["arm"], row["at"].get("sample.noise_strength")): row for row in record["rows"]}
    assert set(rows) == {("real", None), (OWN_SIZE, None), ("synthetic", 0.1), ("synthetic", 0.5)}
    assert {row["measure"] for row in rows.values()} == {"balanced accuracy"}
    assert (rows[OWN_SIZE, None]["side"], rows["real", None]["side"]) == (32, None)
    assert rows[OWN_SIZE, None]["synthetic_images"] == 0

    cell = cells(read_plan(file))[0]
    run = tmp_path / "run"
    splits = open_splits(run, cell.data)
    invert_stage(run, splits, bench.generator(), cell.invert)
    sample_stage(run, bench.generator(), cell.sample)
    results = train_stage(run, splits, cell.train, "cpu")
    for arm, key in (("real", None), (OWN_SIZE, None), ("synthetic", 0.1)):
        assert tuple(rows[arm, key]["accuracies"]) == results.accuracies()[arm]
        balanced = rows[arm, key]["balanced_accuracies"]
        assert rows[arm, key]["mean"] == pytest.approx(sum(balanced) / 3)
    (compared,) = results.verdict().comparisons
    assert (compared.arm, compared.baseline) == ("synthetic", OWN_SIZE) and compared.interval is not None
    (claim,) = record["claims"]
    assert claim["measure"] == "balanced accuracy" and claim["of"] == "accuracy"
    assert claim["differences"] == [pytest.approx([compared.difference, *compared.interval])]

    text, page = ((tmp_path / "out" / f"judged.{kind}").read_text() for kind in ("md", "html"))
    assert "Test balanced accuracy in %, mean" in text and "(n=3, 32 px)" in text
    assert "| Synthetic images win | balanced accuracy |" in text
    assert "Test balanced accuracy in %" in page and "real (own size)" in page
    classifiers = list((tmp_path / "out" / "results" / "classifiers").iterdir())
    assert len(classifiers) == 3 * 4, "that arm is done once for both strengths"


def test_there_is_no_such_arm_where_no_image_is_shrunk_and_even_classes_keep_accuracy(
    bench: Bench, tmp_path: Path
) -> None:
    file = write_sweep(
        tmp_path / "plain.toml", bench, GRID, train_steps=3, seeds=(0, 1, 2), arms=("real",), own_size=True
    )
    done = sweep(file, tmp_path / "out")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "plain.json").read_text())
    assert [(row["arm"], row["measure"]) for row in record["rows"]] == [("real", "accuracy")]
    assert "Test accuracy in %, mean" in (tmp_path / "out" / "plain.md").read_text()
