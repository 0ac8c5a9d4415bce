"""The number of threads follows what other processes leave free, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import python, run

from diffusion_inversion.engine import threads
from diffusion_inversion.engine.memory import memory
from diffusion_inversion.engine.threads import Follower, Look, fair, look, quota


@pytest.mark.parametrize(
    ("busy", "own", "cores", "expected"),
    [
        (0.0, 0.0, 2, 2),  # idle
        (20.0, 20.0, 2, 2),  # all of it is our own work
        (10.0, 0.0, 2, 1),  # a neighbour on one of two cores
        (20.0, 10.0, 2, 1),  # we on one, a neighbour on the other
        (20.0, 0.0, 2, 1),  # never none
        (30.0, 10.0, 8, 6),
        (26.0, 10.0, 8, 6),  # 1.6 cores are taken: 6.4 are free
        (0.0, 0.0, 2.5, 3),  # a container's quota
        (0.0, 0.0, 0.5, 1),
        (9.0, 10.0, 4, 4),  # ticks are counted at different times
    ],
)
def test_the_cores_that_others_leave(busy: float, own: float, cores: float, expected: int) -> None:
    assert fair(Look(100.0, 50.0, 7.0), Look(110.0, 50.0 + busy, 7.0 + own), cores) == expected


def test_a_look_counts_the_usable_cores_and_not_the_time_they_idle(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text(
        f"cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 {tick} {7 * tick} {2 * tick} {90 * tick} {8 * tick} 0 {tick} 0 0 0\n"
        f"cpu1 {50 * tick} 0 0 0 0 0 0 0 0 0\ncpu2 {3 * tick} 0 0 0 0 0 0 {tick} 0 0\nintr 5\n"
    )
    found = look(stat, {0, 2})
    assert found is not None and found.busy == pytest.approx((1 + 7 + 2 + 1) + (3 + 1))  # neither idle nor waiting
    assert look(tmp_path / "none", {0}) is None


def test_a_containers_quota(tmp_path: Path) -> None:
    assert quota(tmp_path) == float("inf")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert quota(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert quota(tmp_path) == 2.5


@pytest.mark.parametrize(("fixed", "asks"), [("1", "share_cores(); "), ("", "")])
def test_threads_stay_as_they_were_set(fixed: str, asks: str) -> None:
    """By the environment in a command; by the user of a library that nobody asked to follow."""
    code = f"""
import torch; from diffusion_inversion.engine.threads import follow, share_cores
torch.set_num_threads(7)
{asks}follow(); print(torch.get_num_threads())"""
    names = dict.fromkeys(threads.FIXED_BY) | ({"OMP_NUM_THREADS": fixed} if fixed else {})
    assert python(code, env=names).strip() == "7"


def test_a_number_of_threads_that_is_given_stays_and_fits() -> None:
    code = """
import os, torch; from diffusion_inversion.engine.threads import follow, share_cores
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
share_cores(1); follow(); print(torch.get_num_threads())
share_cores(2)"""
    done = run(code)
    assert done.stdout.strip() == "1" and done.returncode
    assert "--threads 2: this process may use 1 core. Give at most 1, or leave it out." in done.stderr


def test_the_number_of_threads_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.FIXED_BY:
        monkeypatch.delenv(name, raising=False)
    cores = len(os.sched_getaffinity(0))
    looks = iter([Look(0.0, 0.0, 0.0), Look(10.0, 12.0, 5.0)])
    said = threads.explain(lambda: next(looks))
    assert said.startswith(f"{fair(Look(0, 0, 0), Look(10, 12, 5), threads.usable_cores())} on {cores} core")
    assert "other processes use 0.7 of them" in said
    assert "does not say" in threads.explain(lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.explain().startswith(f"3 on {cores} core") and "OMP_NUM_THREADS says so" in threads.explain()


def test_a_system_that_ties_no_process_to_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    # As macOS, where commands and `dinv doctor` ended with an AttributeError.
    monkeypatch.delattr(os, "sched_getaffinity")
    for name in threads.FIXED_BY:
        monkeypatch.delenv(name, raising=False)
    assert threads.own_cores() == os.cpu_count() and threads.usable_cores() >= 1
    assert threads.look() is None and "the system does not say" in threads.explain()


def test_threads_follow_a_neighbour() -> None:
    """Looks that say that others take all cores but one, then none."""
    start = time.monotonic()
    looks = iter([Look(start, 0.0, 0.0), Look(start + 10, 30.0, 10.0), Look(start + 20, 60.0, 40.0)])
    follower = Follower(look=lambda: next(looks), cores=lambda: 3.0, period=-100.0, first=0.0)
    before = torch.get_num_threads()
    try:
        follower()
        assert torch.get_num_threads() == 1
        follower()
        assert torch.get_num_threads() == 3
        follower.period = 1e9
        follower()  # it is not time to look again: there is no fourth look
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="this system does not say what its cores do")
def test_what_this_process_does_is_its_own(tmp_path: Path) -> None:
    """Half a busy second of one thread is counted as ours, so that it does not make us yield."""
    code = (
        "import time; from diffusion_inversion.engine.threads import look\n"
        "a = look(); end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
        "b = look(); print(b.own - a.own, b.busy - a.busy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    own, busy = map(float, done.stdout.split())
    assert 0.4 < own <= 0.7 and busy > 0.5 * own


def test_neighbours_on_other_cores_do_not_use_up_a_quota() -> None:
    assert fair(Look(0, 0, 0), Look(10, 100, 0), 64, most=8.0) == 8
    assert fair(Look(0, 0, 0), Look(10, 600, 0), 64, most=8.0) == 4


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_memory_is_what_it_may_use(tmp_path: Path, version: int) -> None:
    total, available = memory(tmp_path)
    folder = tmp_path / "memory" if version == 1 else tmp_path
    folder.mkdir(exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    for name, value in zip(names, (1 << 20, 3 << 18), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {1 << 18}\n")
    assert memory(tmp_path) == (1 << 20, 1 << 19), "pages of files are let go"
    (folder / names[0]).write_text("max\n" if version == 2 else f"{1 << 62}\n")
    now = memory(tmp_path)
    assert now[0] == total and now[1] == pytest.approx(available, rel=0.2)


INTERRUPTED = """
import os, signal
from diffusion_inversion.engine import signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs behind it
signals.install()
try:
    with signals.finishing():
        with signals.finishing():
            pass
        os.kill(os.getpid(), signal.SIGINT)  # still inside: it waits
        with signals.finishing():
            print("inner")
        print("outer")
    print("after")
except KeyboardInterrupt:
    print("stopped")
"""


def test_units_in_units_end_with_the_outermost() -> None:
    assert python(INTERRUPTED).split() == ["inner", "outer", "stopped"]
