"""Workers that are started, watched, started again and stopped; the run is that of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from harness import Bench, assert_same
from workers import UNITS, done, invert_command, wait_until

from diffusion_inversion.engine.executors import local, watch
from diffusion_inversion.engine.executors.local import Local, dealt_cores, dealt_devices
from diffusion_inversion.engine.executors.slurm import Task
from diffusion_inversion.engine.executors.worker import Command, Worker
from diffusion_inversion.errors import ConfigMismatchError, PartialError, UsageError

HOLDS = """
import sys, time
from pathlib import Path
from diffusion_inversion.engine.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


class Scripted:
    """An executor whose workers end as a script says: of each worker the exit codes of its starts, None: never."""

    def __init__(self, *scripts: Sequence[int | None]) -> None:
        self.left = [list(script) for script in scripts]
        self.stopped: list[bool] = []

    def start(self, numbers: Sequence[int]) -> list[Worker]:
        return [_Fated(self, self.left[number].pop(0)) for number in numbers]


class _Fated:
    def __init__(self, executor: Scripted, code: int | None) -> None:
        self.executor, self.code = executor, code

    def poll(self) -> int | None:
        return self.code

    def stop(self, at_once: bool = False) -> None:
        self.executor.stopped.append(at_once)
        if len(self.executor.stopped) > 1 or not at_once:
            self.code = -15


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command((), tmp_path, tmp_path)


def test_the_dead_are_started_again_as_often_as_is_allowed(command: Command, capsys: pytest.CaptureFixture) -> None:
    executor = Scripted([-9, 1, 130, 0], [-9, -9, -9, -9])
    ended = watch.watch(executor, command, 2, 3)
    assert ended.first == 0 and executor.left == [[], []]
    said = capsys.readouterr().err
    assert "worker 0 was ended by signal 9; started again (1 of 3)" in said
    assert "worker 0 ended with exit code 130; started again (3 of 3)" in said
    with pytest.raises(PartialError, match=r"worker 0 was ended by signal 9 and was the last; .*worker-0.log"):
        watch.watch(Scripted([-9, -9]), command, 1, 1)


def test_the_refused_are_not_started_again_and_the_others_go_on(command: Command) -> None:
    ended = watch.watch(Scripted([7], [-9, 0], [None]), command, 2, 3)
    assert (ended.first, ended.failed) == (1, {0: 7})
    command.log(0).write_text("--- worker 0\nnote: x\nerror: run: other settings:\n  steps: was 1, now 2\n")
    with pytest.raises(ConfigMismatchError, match=r"^run: other settings:\n  steps: was 1, now 2\n\(so said worker 0"):
        watch.watch(Scripted([5], [5]), command, 2, 3)


def test_nobody_waits_for_ever_once_all_is_done(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.3)
    executor = Scripted([0], [None])
    assert watch.watch(executor, command, 2, 3).first == 0
    assert executor.stopped == [False]
    assert watch.watch(Scripted([0], [-9]), command, 2, 3).first == 0  # nobody is started for what is done


def test_a_machine_that_does_not_see_the_locks_does_nothing(bench: Bench, tmp_path: Path) -> None:
    command = invert_command(bench, tmp_path / "run", tmp_path / "logs")
    (command.logs / ".lock").touch()
    assert Task(command, 0)() == 7  # nobody watches, as where a lock does not reach
    assert not (tmp_path / "run").exists()
    assert "error: " in command.log(0).read_text() and "is not seen on" in command.log(0).read_text()
    held = [sys.executable, "-c", HOLDS, str(command.logs)]
    holder = subprocess.Popen(held, env={**os.environ, **dict(command.environment)}, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert command.is_watched(1)
    finally:
        holder.kill()
    assert command.is_watched(0)  # it was started before: a task that is queued again goes on without its watch


@pytest.mark.slow
def test_two_workers_one_of_them_killed_give_the_bits_of_one(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = invert_command(bench, run, tmp_path / "logs")
    killed = []

    class KillsOne(Local):
        """Kills worker 1 by SIGKILL, which nothing can catch, while the first units are done."""

        def start(self, numbers: Sequence[int]) -> list[Worker]:
            started = super().start(numbers)
            if not killed:
                wait_until(lambda: done(run))
                started[1].stop(at_once=True)
                killed.append(done(run))
            return started

    ended = watch.watch(KillsOne(command), command, 2, 3)
    assert killed and killed[0] < UNITS, killed
    assert ended.restarts == {1: 1} and ended.failed == {}
    assert invert_command(bench, run, tmp_path / "again").start(0).wait() == 0  # sweeps what the killed one left
    assert_same(run, whole)


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_with_what_they_have(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = invert_command(bench, run, tmp_path / "logs", steps=400)
    line = [sys.executable, "-m", "diffusion_inversion", *words.arguments[:-1], "--workers", "2"]
    environment = {**os.environ, **dict(words.environment)}
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, as its heirs do
    launcher = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    wait_until(lambda: done(run))
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 130 and "--workers 2" in said.splitlines()[-1], said
    assert 0 < done(run) < UNITS
    with (run / ".lock").open("rb") as lock:  # nobody is left
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.slow
def test_a_worker_does_not_outlive_who_watches_it(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = invert_command(bench, run, tmp_path / "logs", steps=400)
    line = [sys.executable, "-m", "diffusion_inversion", *words.arguments[:-1], "--workers", "1"]
    launcher = subprocess.Popen(line, env={**os.environ, **dict(words.environment)}, stderr=subprocess.DEVNULL)
    wait_until(lambda: done(run))
    launcher.kill()
    launcher.wait()
    with (run / ".lock").open("rb") as lock:
        import fcntl

        def nobody() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            return True

        wait_until(nobody, 40)
    assert 0 < done(run) < UNITS


def test_cores_and_gpus_are_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "usable_cores", lambda: 7.5)
    assert [dealt_cores(n) for n in (1, 2, 3, 20)] == [7, 3, 2, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-x,6,7")
    assert dealt_devices(2, 2) == ("4,GPU-x", "6,7") and dealt_devices(3, 1) == ("4", "GPU-x", "6")
    assert dealt_devices(2, 0) == ("", "")
    with pytest.raises(UsageError, match="--workers 5 --gpus-per-worker 1: 5 GPUs are wanted, 4 are seen"):
        dealt_devices(5, 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(UsageError, match=f"{torch.cuda.device_count()} are seen"):
        dealt_devices(torch.cuda.device_count() + 1, 1)
