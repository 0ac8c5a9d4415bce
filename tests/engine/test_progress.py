"""Progress on a terminal and elsewhere, and what the lock file says of the work."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import time
from pathlib import Path

import pytest
from fresh import python

from diffusion_inversion.engine import lock, progress
from diffusion_inversion.engine.lock import run_lock

WORK = """
    from diffusion_inversion.engine.progress import track
    with track("invert [a]", 200) as advance:
        for _ in range(20):
            advance(10)
"""


def test_without_a_terminal_progress_is_plain_lines_on_stderr() -> None:
    output, errors = python(WORK, stdout=subprocess.PIPE, stderr=subprocess.PIPE).communicate(timeout=30)
    assert output == ""
    assert errors.startswith("invert [a]: 200/200 images, ")
    assert errors.endswith("images/s, done after 0 s\n")
    assert errors.count("\n") == 1 and "\x1b" not in errors


def test_on_a_terminal_progress_is_a_bar_on_stderr() -> None:
    controller, terminal = pty.openpty()
    process = python(WORK, stdout=subprocess.PIPE, stderr=terminal)
    output, _ = process.communicate(timeout=30)
    os.close(terminal)
    shown = os.read(controller, 1 << 16).decode()
    os.close(controller)
    assert output == ""
    assert "\x1b[" in shown and "invert [a]" in shown and "200/200" in shown


def test_plain_lines_come_at_the_interval_and_estimate_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr(progress, "_OFTEN", 0.0)
    with progress.track("sample", 3, "variants") as advance:
        for _ in range(3):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" variants")[0] for line in lines] == ["sample: 1/3", "sample: 2/3", "sample: 3/3"]
    assert all(re.search(r" left, ends at \d\d:\d\d$", line) for line in lines[:2]) and "done after" in lines[2]


def test_pace_is_of_the_last_minute_and_names_images_and_the_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    pace = progress.Pace(1000, "steps", 128)
    for _ in range(200):  # a step a second, then two
        clock[0] += 1.0
        pace.add(1 if clock[0] <= 1100 else 2)
    assert pace.done == 300 and pace.rate == 2.0
    assert pace.speed(pace.rate) == "2.0 steps/s, 256 images/s"
    assert pace.left.startswith("about 5:50 left, ends at ")  # 700 steps
    assert progress.Pace(5, "images", None).left == "time left not known"
    now = time.mktime((2026, 5, 4, 23, 50, 0, 0, 0, -1))  # a Monday
    assert progress.time_of_day(now + 300, now) == "23:55"
    assert progress.time_of_day(now + 900, now) == "Tue 00:05"
    assert progress.time_of_day(now + 10 * 86400, now) == "14 May 23:50"


def test_an_error_shows_where_the_work_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), progress.track("train", 100, "steps") as advance:
        advance(40)
        raise RuntimeError
    line = capsys.readouterr().err
    assert line.startswith("train: 40/100 steps") and "stopped after" in line
    with progress.track("nothing", 0):
        pass
    progress.already("nothing", 0, 5, "vectors")
    assert capsys.readouterr().err == ""
    progress.already("invert", 3, 5, "vectors")
    assert capsys.readouterr().err == "invert: 3 of 5 vectors were there\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1:00"), (187, "3:07"), (7387, "2:03:07")])
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_what_is_said_of_the_work_is_read_without_a_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert lock.record_of(folder) == {} and lock.holders(folder) == []
    with run_lock(folder), run_lock(tmp_path / "inner"):
        lock.say({"step": "x" * 100})
        lock.say({"step": "second"})
        assert lock.record_of(folder)["step"] == "second" and "ended" not in lock.record_of(folder)
        assert lock.holders(folder) == [os.getpid()] and "step" not in lock.record_of(tmp_path / "inner")
        with progress.track("train", 10, "steps", 128) as advance:
            advance(4)
        assert lock.record_of(folder)["doing"] | {"at": 0} == {
            "what": "train", "done": 4, "total": 10, "unit": "steps", "rate": 0.0, "images_per_second": 0.0, "at": 0,
        }  # fmt: skip
    assert lock.record_of(folder)["ended"] > 0 and lock.holders(folder) == []
    with pytest.raises(RuntimeError), run_lock(folder):
        assert "step" not in lock.record_of(folder), "what the one before said is gone"
        raise RuntimeError("no luck with https://me:secret-word@host/x\nmore")
    assert lock.record_of(folder)["error"] == "no luck with https://[redacted]@host/x"
    (folder / ".lock").write_text('{"pid": 1, "host": "elsewhere"}rest of a longer one}')
    assert lock.record_of(folder) == {"pid": 1, "host": "elsewhere"} and lock.holders(folder) is None
