"""Workers as tasks of submitit, with its own local imitation of Slurm: killed, and out of their time in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Bench, assert_same
from workers import UNITS, done, invert_command, wait_until, watchers

from diffusion_inversion.engine.executors import watch
from diffusion_inversion.engine.executors.slurm import Slurm
from diffusion_inversion.errors import UsageError

submitit = pytest.importorskip("submitit", reason="not installed: pip install '.[slurm]'")


def test_a_task_that_is_killed_and_one_that_is_queued_again(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run, when = tmp_path / "run", []
    command = invert_command(bench, run, tmp_path / "logs")

    def harm() -> None:
        wait_until(lambda: done(run))
        os.kill(watchers(command, 0)[-1], signal.SIGUSR2)  # the notice that Slurm gives before the time is up
        when.append(done(run))
        wait_until(lambda: len(watchers(command, 0)) > 1)
        os.kill(watchers(command, 1)[-1], signal.SIGKILL)
        when.append(done(run))

    harming = threading.Thread(target=harm)
    harming.start()
    ended = watch.watch(Slurm(command, 1, 0, cluster="local"), command, 2, 3)
    harming.join()
    assert when[0] < UNITS, when
    assert ended.restarts.get(0, 0) >= 1, ended
    said = command.log(0).read_text()
    assert "stopping: the batch in hand is finished first" in said, said
    requeued = [path.read_text() for path in (command.logs / "submitit").glob("*_log.out")]
    assert any("Requeued job" in text for text in requeued), requeued
    assert invert_command(bench, run, tmp_path / "again").start(0).wait() == 0  # sweeps what the killed one left
    assert_same(run, whole)


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs a Slurm cluster: no sbatch here")
def test_an_array_of_a_real_cluster_is_harmed_and_gives_the_bits_of_one(
    bench: Bench, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = invert_command(bench, run, tmp_path / "logs")
    line = [sys.executable, "-m", "diffusion_inversion", *words.arguments[:-1], "--executor", "slurm", "--workers", "2"]
    environment = {**os.environ, **dict(words.environment)}
    launcher = subprocess.Popen([*line, "--json"], env=environment, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: done(run))
    logs = next((tmp_path / "run-workers").iterdir())
    command = replace(words, logs=logs)
    array = min(path.name for path in (logs / "submitit").glob("*_0_log.out")).partition("_")[0]
    subprocess.run(["scancel", "--signal=USR2", f"{array}_0"], check=True)  # the notice before the time is up
    wait_until(lambda: "Requeued job" in next((logs / "submitit").glob(f"{array}_0_0_log.out")).read_text())
    os.kill(watchers(command, 1)[-1], signal.SIGKILL)
    before = done(run)
    said, _ = launcher.communicate(timeout=500)
    summary = json.loads(said)
    assert launcher.returncode == 0 and summary["images"] == 12 and before < UNITS, (said, before)
    assert summary["workers"]["executor"] == "slurm" and sum(summary["workers"]["restarts"].values()) >= 1, summary
    assert invert_command(bench, run, tmp_path / "again").start(0).wait() == 0
    assert_same(run, whole)


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="Slurm is here")
def test_without_slurm_nothing_is_begun(bench: Bench, tmp_path: Path) -> None:
    command = invert_command(bench, tmp_path / "run", tmp_path / "logs")
    with pytest.raises(UsageError, match="--executor slurm: no sbatch on this machine"):
        Slurm(command, 1, 0)
    assert not (tmp_path / "run").exists()
