"""Balanced counts in a sweep: what cells share is drawn once, and the class that is recognised least is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import dinv
from harness import Bench
from image_files import class_folders
from scipy import stats
from sweeps import sweep, write_sweep

from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.sweep.worst import difference, of_worst_class

VARIED = """
[grid]
"sample.balance" = {balances}
[[claims]]
says = "Balance raises the worst class"
of = "worst_class_accuracy"
pairs = [{{ greater = {{ at = {{ "sample.balance" = "class" }} }}, less = {{ arm = "{less}" }} }}]
"""


def swept(bench: Bench, data: Path, folder: Path, *balances: str, less: str = "synthetic") -> Any:
    text = VARIED.format(balances=json.dumps(balances), less=less)
    if less == "synthetic":
        text = text.replace('{ arm = "synthetic" }', '{ at = { "sample.balance" = "none" } }')
    arms = ("synthetic", "real+synthetic")
    file = write_sweep(folder / "balance.toml", bench, text, data=data, seeds=(0, 1, 2), arms=arms)
    done = sweep(file, folder / "out")
    assert done.exit_code == 0, done.output
    return json.loads((folder / "out" / "balance.json").read_text())


@pytest.fixture(scope="module")
def made(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """The data, the folder and the record of a sweep over none and class; 5 and 1 training images."""
    data, folder = tmp_path_factory.mktemp("uneven"), tmp_path_factory.mktemp("sweep")
    class_folders(data / "train", {"cat": 5, "dog": 1})
    class_folders(data / "test", {"cat": 3, "dog": 3})
    return data, folder, swept(bench, data, folder, "none", "class")


def test_what_two_plans_ask_for_is_drawn_once_and_both_have_as_many(made: tuple[Path, Path, Any]) -> None:
    _, folder, record = made
    assert [row["synthetic_images"] for row in record["rows"]] == [12] * 4
    (images,) = (folder / "out" / "images").iterdir()
    drawn = SyntheticStore(images, ("cat", "dog")).table("label", "variant")
    # Of a cat 2 without balance, with it 4 of 5 one; of the dog 2 and 8: 5 + 4 = 1 + 8.
    assert drawn["label"].to_pylist().count(0) == 10 and drawn["label"].to_pylist().count(1) == 8


def test_a_balanced_cell_does_not_depend_on_what_it_shares(
    made: tuple[Path, Path, Any], bench: Bench, tmp_path: Path
) -> None:
    data, folder, record = made
    alone = swept(bench, data, tmp_path, "class", less="real+synthetic")
    both = {row["arm"]: row["accuracies"] for row in record["rows"] if row["at"] == {"sample.balance": "class"}}
    assert {row["arm"]: row["accuracies"] for row in alone["rows"]} == both
    (images,) = (tmp_path / "out" / "images").iterdir()
    kept = sorted(path.relative_to(images) for path in images.rglob("*.png"))
    assert len(kept) == 12
    (shared,) = (folder / "out" / "images").iterdir()
    assert all((images / name).read_bytes() == (shared / name).read_bytes() for name in kept)
    grown = swept(bench, data, tmp_path, "class", "none")
    strip = {"command", "plan"}
    assert {k: v for k, v in grown.items() if k not in strip} == {
        k: (v if k != "rows" else [row for balance in ("class", "none") for row in v if balance in row["at"].values()])
        for k, v in record.items()
        if k not in strip
    }


def test_images_that_are_lost_are_drawn_again(made: tuple[Path, Path, Any], bench: Bench, tmp_path: Path) -> None:
    data, folder, record = made
    shutil.copytree(folder, tmp_path / "copy")
    lost = sorted((tmp_path / "copy").rglob("dog/*v007.png"))
    content = lost[0].read_bytes()
    lost[0].write_bytes(b"damaged")
    dinv("repair", lost[0].parents[2])
    shutil.rmtree(tmp_path / "copy" / "out" / "results" / "classifiers")
    assert swept(bench, data, tmp_path / "copy", "none", "class")["rows"] == record["rows"]
    assert lost[0].read_bytes() == content


def test_the_page_shows_the_worst_class(made: tuple[Path, Path, Any]) -> None:
    _, folder, record = made
    for row in record["rows"]:
        assert len(row["worst_class_accuracies"]) == 3
        assert all(w <= b for w, b in zip(row["worst_class_accuracies"], row["balanced_accuracies"], strict=True))
    assert "worst class, %" in (folder / "out" / "balance.md").read_text()
    assert "<h2>Classes</h2>" in (folder / "out" / "balance.html").read_text()
    assert "worst_class_accuracy" in (folder / "out" / "balance.csv").read_text()
    (claim,) = record["claims"]
    assert claim["measure"] == "accuracy of the worst class"


LABELS = torch.tensor([0] * 100 + [1] * 200)


def rows(*right: tuple[int, int]) -> torch.Tensor:
    """Classifiers that recognise so many images of class 0 and of class 1, the first ones."""
    place = torch.cat([torch.arange(100), torch.arange(200)])
    return torch.stack([place < torch.where(LABELS == 0, zero, one) for zero, one in right])


def test_the_worst_class_may_be_another_in_each_classifier() -> None:
    assert of_worst_class(rows((30, 200), (100, 50)), LABELS) == pytest.approx((0.3, 0.25))
    assert of_worst_class(rows((30, 200)), LABELS + 1) == pytest.approx((0.3,)), (
        "a class without images counts for none"
    )


def test_a_difference_of_one_class_is_paired_and_of_two_is_not() -> None:
    less = rows((30, 200), (40, 200), (30, 200))
    more = rows((50, 200), (60, 200), (40, 200))
    found = difference(of_worst_class(more, LABELS), of_worst_class(less, LABELS), more, less, LABELS)
    assert found.value == pytest.approx((0.2 + 0.2 + 0.1) / 3) and found.units == 3
    assert found.unit_error == pytest.approx(stats.sem([0.2, 0.2, 0.1]))
    apart = (more.double() - less.double()).mean(0)[:100]
    assert found.image_error == pytest.approx(float(apart.var() / 100) ** 0.5) and found.images == pytest.approx(100)
    back = difference(of_worst_class(less, LABELS), of_worst_class(more, LABELS), less, more, LABELS)
    assert back.value == pytest.approx(-found.value)
    other = rows((100, 50), (100, 50), (100, 50))  # class 1 is the worst here
    two = difference(of_worst_class(other, LABELS), of_worst_class(less, LABELS), other, less, LABELS)
    ours, theirs = other.double().mean(0)[100:], less.double().mean(0)[:100]
    assert two.image_error == pytest.approx(float(ours.var() / 200 + theirs.var() / 100) ** 0.5)
