"""What sweeps compare: metrics and claims of the same test images and seeds, of the images that it began with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Bench

from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import ConfigMismatchError, UsageError
from diffusion_inversion.sweep.outcome import Row, RowDraw, _check, require_answerable
from diffusion_inversion.sweep.plan import Cell, Claim, SweepPlan, cells, replicates
from diffusion_inversion.sweep.work import CellJobs, Workshop

TRAIN = {"architecture": "resnet20", "steps": 1, "batch_size": 4, "seeds": [0, 1, 2], "arms": ["synthetic"]}


def planned(bench: Bench, data: Path | None = None, **content: Any) -> SweepPlan:
    train = TRAIN | content.pop("train", {})
    asked = {"data": str(data or bench.data)} | content.pop("data", {})
    return SweepPlan.model_validate({"name": "tested", "title": "Tested", "data": asked, "train": train, **content})


def begun(bench: Bench, plan: SweepPlan, out: Path) -> tuple[Workshop, list[list[Cell]], list[list[CellJobs]]]:
    wanted = [replicates(plan, cell) for cell in cells(plan)]
    workshop = Workshop(plan, out, bench.generator(), "cpu")
    return workshop, wanted, [workshop.add(drawn) for drawn in wanted]


@pytest.mark.parametrize(("against", "sets"), [("train", 1), ("test", 2)])
def test_metrics_against_test_images_are_of_these(bench: Bench, tmp_path: Path, against: str, sets: int) -> None:
    plan = planned(bench, metrics={"against": against, "k": 2}, grid={"data.test_limit": [4, 6]})
    _, _, jobs = begun(bench, plan, tmp_path)
    assert len({found.metrics for (found,) in jobs}) == sets


@pytest.mark.parametrize(
    ("data", "sets"), [({}, 1), ({"test_limit": 4}, 2), ({"test": None}, 2), ({"drop_test_duplicates": True}, 2)]
)
def test_test_images_are_autoencoded_once_where_they_are_the_same(
    bench: Bench, tmp_path: Path, data: dict[str, Any], sets: int
) -> None:
    asked = {"data": str(bench.data / "train"), "test": str(bench.data / "test"), **data}
    plan = planned(bench, autoencode={"test": 8, "train": 8}, grid={"data.limit": [4]}, replicates=2)
    workshop, _, jobs = begun(bench, plan.model_copy(update={"data": asked}), tmp_path)
    made = [job.says for name, job in workshop.jobs.items() if name.startswith("autoencoded/")]
    assert made == ["autoencoded: test at 8 px"] * sets  # the arm synthetic sees no autoencoded training image
    assert len({name for one in jobs[0] for names in one.classifiers.values() for name in names}) == 2 * 3


def test_a_cell_that_is_a_run_does_not_take_other_images_either(bench: Bench, tmp_path: Path) -> None:
    data, out = Path(shutil.copytree(bench.data, tmp_path / "data")), tmp_path / "out"
    grid = {"sample.noise_strength": [0.1, 0.2]}
    with run_lock(out):
        workshop, _, _ = begun(bench, planned(bench, data, grid=grid), out)
        (job,) = (one for name, one in workshop.jobs.items() if name.startswith("splits/"))
        Ledger(out).commit(job.file, json.dumps(job.do()).encode())
        as_run = planned(bench, data, grid=grid, run={"copies": "report"})
        begun(bench, as_run, out)
        images = sorted((data / "test").rglob("*.png"))
        images[0].unlink()
        with pytest.raises(ConfigMismatchError, match="the test images are not those"):
            begun(bench, as_run, out)


def claimed(key: str, first: Any, second: Any) -> dict[str, Any]:
    pairs = [{"greater": {"at": {key: first}}, "less": {"at": {key: second}}}]
    return {"grid": {key: [first, second]}, "claims": [{"says": "More", "pairs": pairs}]}


@pytest.mark.parametrize(
    ("key", "values", "apart"),
    [
        ("data.test_limit", (4, 6), "test images"),
        ("train.seeds", ([0, 1, 2], [0, 1, 3]), "classifier seeds"),
        ("data.limit", (8, 10), None),  # other training images alone
        ("data.seed", (0, 1), None),  # of a subset that is all of them
    ],
)
def test_a_claim_about_other_test_images_or_seeds_is_refused_before_the_work(
    bench: Bench, tmp_path: Path, key: str, values: tuple[Any, Any], apart: str | None
) -> None:
    workshop, wanted, jobs = begun(bench, planned(bench, **claimed(key, *values)), tmp_path)
    if apart is None:
        return require_answerable(workshop, wanted, jobs)
    with pytest.raises(UsageError, match=f"claim 'More': the sides of a pair have other {apart}"):
        require_answerable(workshop, wanted, jobs)


def test_test_images_of_the_same_names_are_told_apart(bench: Bench, tmp_path: Path) -> None:
    tests = [Path(shutil.copytree(bench.data / "test", tmp_path / name)) for name in ("one", "two")]
    first, second = sorted((tests[1] / "cat").iterdir())[:2]
    swapped = second.read_bytes(), first.read_bytes()
    first.write_bytes(swapped[0])
    second.write_bytes(swapped[1])
    plan = planned(bench, bench.data / "train", **claimed("data.test", *map(str, tests)))
    workshop, wanted, jobs = begun(bench, plan, tmp_path / "out")
    assert len({workshop.splits(cell.data).test.ids for (cell,) in wanted}) == 1
    with pytest.raises(UsageError, match="other test images"):
        require_answerable(workshop, wanted, jobs)


@pytest.mark.parametrize(("ids", "seeds"), [("abce", (0, 1, 2)), ("abcd", (0, 1, 3)), ("abcd", (0, 1, 2))])
def test_predictions_are_paired_only_over_the_same_images_and_seeds(
    bench: Bench, ids: str, seeds: tuple[int, ...]
) -> None:
    plan = planned(bench, **claimed("sample.noise_strength", 0.1, 0.2))
    rows = []
    for place, (own, by) in enumerate((("abcd", (0, 1, 2)), (ids, seeds))):
        correct, rates = torch.tensor([[True, place == 0, True, True]] * 3), (1 - place / 4,) * 3
        draw = RowDraw(by, rates, rates, rates, correct, tuple(own), torch.tensor([0, 0, 1, 1]), None)
        rows.append(Row({"sample.noise_strength": (0.1, 0.2)[place]}, (place,), "synthetic", (draw,), 10, 10))
    (claim,) = plan.claims
    if (ids, seeds) == ("abcd", (0, 1, 2)):
        assert _check(claim, cells(plan), rows, []).differences[0][0] == pytest.approx(0.25)
        return
    for of in ("accuracy", "worst_class_accuracy"):
        with pytest.raises(UsageError, match="the sides of a pair have other"):
            _check(Claim(says="More", of=of, pairs=claim.pairs), cells(plan), rows, [])
