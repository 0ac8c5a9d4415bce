"""Several processes on one run: one holds it, or all share it; the result is the same."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from harness import Bench, assert_same, finish, race

PROCESSES = 8  # campaign.py makes 50 rounds of each kind


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    for stage in ("invert", "sample", "train"):
        finish(bench, run, stage)
    return run


def test_one_of_eight_works_and_the_others_are_told_who(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    codes = race(bench, run, "invert", PROCESSES, shared=False)
    # One works while the rest are refused; who comes when it has ended finds nothing left to do.
    assert set(codes) <= {0, 6} and 0 in codes and 6 in codes, codes
    finish(bench, run, "sample")
    finish(bench, run, "train")
    assert_same(run, whole)


@pytest.mark.slow
def test_eight_share_every_stage(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage in ("invert", "sample", "train"):
        assert race(bench, run, stage, PROCESSES, shared=True) == [0] * PROCESSES
    assert_same(run, whole)


def test_the_others_take_over_what_a_killed_one_held(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    codes = race(bench, run, "invert", 3, shared=True, kill_one_at=("written", 1))
    assert sorted(codes) == [-9, 0, 0]
    for stage in ("sample", "train"):
        codes = race(bench, run, stage, 3, shared=True, kill_one_at=("renamed", 1))
        assert sorted(codes) == [-9, 0, 0]
    finish(bench, run, "train")  # sweeps what the killed ones left under temporary names
    assert_same(run, whole)


def test_nobody_joins_one_who_works_alone(bench: Bench, tmp_path: Path) -> None:
    from diffusion_inversion.engine.lock import run_lock

    with run_lock(tmp_path):
        assert race(bench, tmp_path, "invert", 1, shared=True) == [6]
    with run_lock(tmp_path, shared=True):
        assert race(bench, tmp_path, "invert", 1, shared=False) == [6]
    assert multiprocessing.active_children() == []
