"""Claims of a shared run: lost while the owner lives, clocks that are wrong, a disk that is full, others who join."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Bench, assert_same, finish, forkserver, invert
from toy import MINI_SCHEDULER, build_checkpoint
from workers import UNITS, committed

from diffusion_inversion.engine import faults, store
from diffusion_inversion.engine.lock import CLAIMS, TakenOverError, claim, run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import DinvError
from diffusion_inversion.invert import inversion
from diffusion_inversion.invert.embeddings import EmbeddingStore
from diffusion_inversion.run.status import status


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(bench, run, "invert")
    return run


def _worker(bench: Bench, run: Path, log: Path, prepare: Callable[..., None] | None, *given: Any) -> None:
    sys.stderr = log.open("w")
    bench.generator()
    if prepare is not None:
        prepare(bench, run, *given)
    try:
        with run_lock(run, shared=True):
            invert(bench, run)
    except DinvError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def started(bench: Bench, run: Path, log: Path, prepare: Callable[..., None] | None = None, *given: Any) -> Any:
    """A process that joins the run, after `prepare(bench, run, *given)` in it."""
    process = forkserver().Process(target=_worker, args=(bench, run, log, prepare, *given))
    process.start()
    return process


def _lose_the_claim(bench: Bench, run: Path, point: str, lost: Any) -> None:
    """Compute other bits, as another card would; lose the first claim at `point`, and go on when all is done."""
    with torch.no_grad():
        for parameter in bench.generator().unet.parameters():
            parameter.mul_(1.01)

    def on_point(name: str) -> None:
        if name == point and store._guards and not lost.is_set():
            shutil.rmtree(run / CLAIMS)
            lost.set()
            while len(set(committed(run))) < UNITS:
                time.sleep(0.02)

    faults.on_point = on_point


@pytest.mark.slow
@pytest.mark.parametrize("point", ["written", "synced", "renamed"])
def test_a_claim_is_taken_over_while_its_owner_lives(bench: Bench, whole: Path, tmp_path: Path, point: str) -> None:
    run, lost = tmp_path / "run", forkserver().Event()
    owner = started(bench, run, tmp_path / "owner", _lose_the_claim, point, lost)
    assert lost.wait(60)
    other = started(bench, run, tmp_path / "other")
    other.join(120)
    owner.join(120)
    assert (owner.exitcode, other.exitcode) == (0, 0), (tmp_path / "owner").read_text()
    said = (tmp_path / "owner").read_text()
    assert said.count("warning: ") == 1 and "this claim was lost" in said and "Nothing more of it is written" in said
    assert sorted(committed(run)) == sorted(set(committed(run)))
    finish(bench, run, "invert")
    assert_same(run, whole)


def test_a_claim_is_refused_once_its_file_is_gone_or_another(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "manifest.jsonl")
    for harm in (Path.unlink, lambda path: path.rename(path.with_name("aside")) and path.touch()):
        with claim(tmp_path, "unit") as mine:
            assert mine
            store.commit_bytes(tmp_path / "file", b"before")
            harm(tmp_path / CLAIMS / "unit")
            with pytest.raises(TakenOverError, match=r"\.claims/unit: this claim was lost"):
                store.commit_bytes(tmp_path / "file", b"after")
            with pytest.raises(TakenOverError):
                store.commit_many({tmp_path / "file": b"after"})
            with pytest.raises(TakenOverError):
                manifest.append({"event": "commit"})
        assert (tmp_path / "file").read_bytes() == b"before" and manifest.records() == []
        store.commit_bytes(tmp_path / "file", b"free again")


def _wrong_clock(bench: Bench, run: Path, seconds: float) -> None:
    right = time.time
    time.time = lambda: right() + seconds


def test_clocks_that_differ_by_hours_change_nothing(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    skews = (-3600, 3600, 7200)
    workers = [started(bench, run, tmp_path / f"{skew}", _wrong_clock, skew) for skew in skews]
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(committed(run)) == sorted(set(committed(run)))
    assert any("stopped" in line for line in status(run).lines())
    finish(bench, run, "invert")
    assert_same(run, whole)


def _small_disk(bench: Bench, run: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))


def test_a_disk_that_is_full_on_one_machine_ends_that_worker_alone(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(bench, run, "invert")  # so that both find the run begun
    manifest = EmbeddingStore(run).manifest
    for unit in list(manifest.units())[1:]:
        manifest.append({"event": "drop", "unit": unit})
    full = started(bench, run, tmp_path / "full", _small_disk)
    full.join(120)
    said = (tmp_path / "full").read_text()
    assert full.exitcode == 7 and said.count("error: ") == 1, said
    other = started(bench, run, tmp_path / "other")
    other.join(120)
    assert other.exitcode == 0
    finish(bench, run, "invert")
    assert_same(run, whole)


def _other_version(bench: Bench, run: Path) -> None:
    inversion.SCHEMA += 1


def _at_work(bench: Bench, run: Path, begun: Any, go_on: Any) -> None:
    def on_point(name: str) -> None:
        if name == "recorded" and store._guards and not begun.is_set():
            begun.set()
            go_on.wait(120)

    faults.on_point = on_point


def test_others_with_other_weights_or_of_another_version_are_refused(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run, begun, go_on = tmp_path / "run", forkserver().Event(), forkserver().Event()
    working = started(bench, run, tmp_path / "working", _at_work, begun, go_on)
    assert begun.wait(60)
    torch.manual_seed(5)
    weights = replace(bench, checkpoint=build_checkpoint(tmp_path / "toy", MINI_SCHEDULER, scaling_factor=0.2))
    other = started(weights, run, tmp_path / "weights")
    newer = started(bench, run, tmp_path / "newer", _other_version)
    for process in (other, newer):
        process.join(120)
    assert (other.exitcode, newer.exitcode) == (5, 5)
    assert "generator.hash: was " in (tmp_path / "weights").read_text()
    assert f"schema: was {inversion.SCHEMA}, now {inversion.SCHEMA + 1}" in (tmp_path / "newer").read_text()
    go_on.set()
    working.join(120)
    assert working.exitcode == 0
    finish(bench, run, "invert")
    assert_same(run, whole)
