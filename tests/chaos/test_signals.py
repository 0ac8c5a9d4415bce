"""The first signal lets the batch end, the second does not; both leave a run that goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Bench, command_child, content, forkserver

from diffusion_inversion.engine import signals
from diffusion_inversion.invert.embeddings import EmbeddingStore, read_embeddings

STEPS = 40  # of stage 1: a batch takes half a second or more


def invert_command(bench: Bench, run: Path, steps: int = STEPS) -> list[str]:
    return ["invert", str(bench.data), "--out", str(run), "--generator", str(bench.checkpoint), "--dtype", "float32",
            "--init", "random", "--steps", str(steps), "--invert-batch-size", "4"]  # fmt: skip


def start(arguments: list[str], log: Path, **changes: float) -> Any:
    process = forkserver().Process(target=command_child, args=(arguments, str(log), changes))
    process.start()
    return process


def wait_for_batches(run: Path, count: int, process: Any) -> None:
    store = EmbeddingStore(run)
    while len(store.manifest.units()) < count:
        assert process.is_alive(), "the command ended before it could be stopped"
        time.sleep(0.02)
    time.sleep(0.1)  # into the next batch


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    process = start(invert_command(bench, run), run.parent / "log")
    process.join(300)
    assert process.exitcode == 0, (run.parent / "log").read_text()
    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_finishes_the_batch(bench: Bench, whole: Path, tmp_path: Path, number: int) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(invert_command(bench, run), log)
    wait_for_batches(run, 1, process)
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode == 130, log.read_text()
    assert len(EmbeddingStore(run).manifest.units()) == 2, "the batch in hand was committed, no other was begun"
    assert "stopping: the batch in hand is finished first" in log.read_text()
    again = " ".join(["dinv", *invert_command(bench, run)])
    assert f"Go on with: {again}" in log.read_text()
    process = start(again.split()[1:], log)
    process.join(120)
    assert process.exitcode == 0
    assert content(run) == content(whole)


def test_the_second_signal_stops_at_once(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(invert_command(bench, run), log)
    wait_for_batches(run, 1, process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == 130, log.read_text()
    assert len(EmbeddingStore(run).manifest.units()) == 1
    process = start(invert_command(bench, run), log)
    process.join(120)
    assert process.exitcode == 0
    assert content(run) == content(whole)


def test_a_batch_that_is_too_long_saves_its_state_and_goes_on_from_it(
    bench: Bench, whole: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(invert_command(bench, run), log, grace=0.0)
    wait_for_batches(run, 1, process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    assert process.exitcode == 130, log.read_text()
    assert len(EmbeddingStore(run).manifest.units()) == 1
    (state,) = (run / "embeddings").glob("state-*.safetensors")
    before = state.stat().st_mtime_ns
    process = start(invert_command(bench, run), log)
    process.join(120)
    assert process.exitcode == 0 and before
    assert not state.exists()
    assert content(run) == content(whole)
    assert read_embeddings(run).digest == read_embeddings(whole).digest


def test_a_signal_that_the_parent_ignored_stays_ignored() -> None:
    """What nohup does: the terminal is closed and the run goes on."""
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signals.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    assert sys.exc_info() == (None, None, None)
