"""What another terminal sees of a run: while it works, when it was killed, after an error, and at its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import dinv
from harness import HERE, INVERT, SAMPLE, TRAIN, Bench
from sweeps import sweep, write_sweep

from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.engine import lock
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import DataError
from diffusion_inversion.run.stages import run_all
from diffusion_inversion.run.status import Part, status

# Holds a run that it has half done, and says so.
AT_WORK = """
import sys, time
from pathlib import Path
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.progress import track
with run_lock(Path(sys.argv[1])), track("sample", 20) as advance:
    advance(5)
    time.sleep(1.1)
    advance(5)
    print("half", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def finished(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two replicates of 6 images."""
    run = tmp_path_factory.mktemp("runs") / "run"
    data = DataSettings(data=str(bench.data), limit=6)
    with run_lock(run):
        run_all(
            run, data, bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN, command="dinv run", replicates=2
        )
    return run


def test_a_finished_run_with_replicates(finished: Path) -> None:
    found = status(finished)
    assert found.state == "finished" and found.ends is None and found.processes == []
    expected = [Part("vectors", 12, 12), Part("images", 24, 24), Part("classifiers", 12, 12)]
    assert found.parts == expected
    before = (finished / ".lock").read_bytes()
    done = dinv("status", finished, "--watch", 1, "--json")
    record = json.loads(done.stdout)
    assert done.exit_code == 0 and record["state"] == "finished" and record["error"] is None
    assert record["disk_bytes"] == sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    assert (finished / ".lock").read_bytes() == before
    (finished / ".lock").write_bytes(b"")  # as of a command that was given since, or of an earlier version
    assert status(finished).parts == expected and status(finished).state == "finished"
    (finished / ".lock").write_bytes(before)


def test_a_run_that_was_broken_off_is_not_finished_by_its_old_report(finished: Path) -> None:
    before = (finished / ".lock").read_bytes()
    kept = json.loads(before)
    assert kept["totals"] == {} and "error" not in kept
    broken = kept | {"totals": {"vectors": 12, "images": 24, "classifiers": 12}, "error": "interrupted"}
    (finished / ".lock").write_text(json.dumps(broken))
    assert status(finished).state == "stopped"
    (finished / ".lock").write_text(json.dumps(kept | {"error": "an audit of it, say, could not begin"}))
    assert status(finished).state == "finished"
    (finished / ".lock").write_bytes(before)


def test_a_process_at_work_and_one_that_was_killed(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*HERE, *sys.path])}
    worker = subprocess.Popen(
        [sys.executable, "-c", AT_WORK, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment,
    )  # fmt: skip
    try:
        assert worker.stdout is not None and worker.stdout.readline() == "half\n"
        found = status(tmp_path)
        assert found.state == "working" and found.processes == [worker.pid]
        assert found.said["doing"]["done"] == 10 and 5 < found.said["doing"]["images_per_second"] < 10
        assert found.ends is not None and found.ends > found.said["doing"]["at"]
        text = dinv("status", tmp_path).stdout
        assert f"working (process {worker.pid}" in text and "sample 10/20 images" in text and "ends at" in text
        with pytest.raises(lock.LockedError), run_lock(tmp_path):
            pass  # it still has its lock
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    found = status(tmp_path)
    assert found.state == "killed" and found.ends is None
    text = "\n".join(found.lines())
    assert f"process {worker.pid}" in text and "killed" in text and "was at       sample 10/20 images" in text


def test_an_error_is_kept_until_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(DataError), run_lock(tmp_path):
        raise DataError("no image can be read\nlist of them")
    found = status(tmp_path)
    assert found.state == "stopped" and found.said["error"] == "no image can be read"
    assert "last error   no image can be read" in "\n".join(found.lines())
    with run_lock(tmp_path):
        lock.say({"step": "3 of 9: vectors", "totals": {"jobs": 9}})  # as a sweep does
        assert status(tmp_path).parts == [Part("jobs", 0, 9)] and status(tmp_path).said.get("error") is None
        assert "  step         3 of 9: vectors" in list(status(tmp_path).lines())


def test_what_cannot_be_known_is_not_guessed(tmp_path: Path) -> None:
    done = dinv("status", tmp_path)
    assert done.exit_code == 2 and "nobody has worked here" in done.stderr
    (tmp_path / ".lock").write_text(json.dumps({"pid": os.getpid(), "host": "another", "since": 0.0}))
    found = status(tmp_path)
    assert found.state == "not known" and "not this machine" in next(iter(found.lines()))


def test_a_finished_sweep_and_one_that_has_more_to_do(bench: Bench, tmp_path: Path) -> None:
    """Two files in one folder, each with jobs of its own; what stopped with an error is not finished."""
    out = tmp_path / "out"
    for name, limits in (("a", "[4, 6]"), ("b", "[4]")):
        grid = f'[grid]\n"data.test_limit" = {limits}\n'
        done = sweep(write_sweep(tmp_path / f"{name}.toml", bench, grid, variants=1, arms=("real",)), out)
        assert done.exit_code == 0, done.output
        found = status(out)
        assert found.state == "finished", "\n".join(found.lines())
        (part,) = found.parts
        assert part.name == "jobs" and part.done == part.total and part.total
    assert part.total < len(list((out / "results").rglob("*.json"))), "those of the last file alone"
    kept = json.loads((out / ".lock").read_text())
    assert kept["ended"] and "error" not in kept
    (out / ".lock").write_text(json.dumps(kept | {"error": "no room"}))
    assert status(out).state == "stopped"
    (out / ".lock").write_text(json.dumps(kept | {"jobs": part.done - 1}))
    assert status(out).state == "stopped", "a job is left"
    (out / ".lock").write_bytes(b"")
    assert status(out).state == "finished"
    (out / "a.html").unlink()
    (out / "b.html").unlink()
    assert status(out).state == "stopped", "no page"
