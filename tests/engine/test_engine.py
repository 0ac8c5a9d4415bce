"""Work that is committed survives; work that is not committed is never read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fresh import python
from safetensors.torch import load_file, save_file

from diffusion_inversion.engine.frozen_settings import freeze_settings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.engine.store import PARTIAL_PREFIX, commit_bytes, commit_file, remove_partials, replaced_folder
from diffusion_inversion.errors import ConfigMismatchError, DataError, DiskError, LockedError, UsageError


@contextmanager
def umask(value: int) -> Iterator[None]:
    old = os.umask(value)
    try:
        yield
    finally:
        os.umask(old)


# --- commit -----------------------------------------------------------------------------------------------------------


def test_commit_bytes_makes_folders_and_returns_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    assert commit_bytes(path, b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert path.read_bytes() == b"abc"
    assert [p.name for p in path.parent.iterdir()] == ["c.bin"]


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    commit_bytes(path, b"old")

    def half(partial: Path) -> None:
        partial.write_bytes(b"ne")
        assert path.read_bytes() == b"old"  # never visible while it is being written
        raise RuntimeError("writer broke")

    with pytest.raises(RuntimeError, match="writer broke"):
        commit_file(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replaced_folder(folder) as made:
        (made / "a").write_text("1")
        (made / "b").write_text("1")
    with pytest.raises(RuntimeError), replaced_folder(folder) as made:
        (made / "a").write_text("2")
        raise RuntimeError
    assert (folder / "a").read_text() == "1" and [*tmp_path.iterdir()] == [folder]
    folder.rename(tmp_path / ".partial-old-model")  # as a kill between the two renames leaves it
    (tmp_path / ".partial-new-model").mkdir()
    remove_partials(tmp_path)  # the lock of the next command does this first
    with replaced_folder(folder) as made:
        assert (folder / "a").read_text() == "1"
        (made / "a").write_text("2")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "2", "b": "1"}
    assert [*tmp_path.iterdir()] == [folder]


def test_a_killed_writer_leaves_the_old_file_and_the_rest_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.bin"
    commit_bytes(path, b"old")
    code = """
        import os, signal, sys
        from pathlib import Path
        from diffusion_inversion.engine.store import commit_file
        def write(partial):
            partial.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        commit_file(Path(sys.argv[1]), write)
    """
    process = python(code, path)
    assert process.wait(30) == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    left = [p.name for p in path.parent.iterdir() if p != path]
    assert len(left) == 1 and left[0].startswith(PARTIAL_PREFIX) and left[0].endswith(".bin")
    remove_partials(tmp_path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_is_the_umasks_even_where_safetensors_writes_0600(tmp_path: Path, mask: int, mode: int) -> None:
    tensors = {"c": torch.arange(6.0).reshape(2, 3)}
    path, plain = tmp_path / "shard.safetensors", tmp_path / "plain.txt"
    with umask(mask):
        digest = commit_file(path, lambda partial: save_file(tensors, partial))
        commit_bytes(plain, b"x")
    assert path.stat().st_mode & 0o777 == mode
    assert plain.stat().st_mode & 0o777 == mode
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(load_file(path)["c"], tensors["c"])


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_disk_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DiskError, match=r"\.lock: cannot be locked \(.*another disk.*dinv doctor"), run_lock(tmp_path):
        pass


def test_a_full_disk_is_a_disk_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    commit_bytes(path, b"old")

    def write(partial: Path) -> None:
        with open("/dev/full", "wb") as full:  # the kernel's own ENOSPC
            full.write(b"x")

    with pytest.raises(DiskError, match=r"x\.bin.*No space left.*free some space") as caught:
        commit_file(path, write)
    assert caught.value.exit_code == 7
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_safetensors_own_error_for_a_refused_write_is_a_disk_error(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        import torch
        from safetensors.torch import save_file
        from diffusion_inversion.engine.manifest import Manifest
        from diffusion_inversion.engine.store import commit_bytes, commit_file
        from diffusion_inversion.errors import DiskError
        folder = Path(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        manifest = Manifest(folder / "manifest.jsonl")
        manifest.append({"event": "x", "n": 1})
        for work in (
            lambda: commit_file(folder / "t.safetensors", lambda p: save_file({"t": torch.zeros(9999)}, p)),
            lambda: commit_bytes(folder / "b.bin", bytes(2000)),
            lambda: manifest.append({"long": "x" * 2000}),
        ):
            try:
                work()
            except DiskError as error:
                print(error)
        manifest.append({"event": "x", "n": 2})
    """
    process = python(code, tmp_path, stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = output.splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == ["t.safetensors", "b.bin", "manifest.jsonl"]
    assert Manifest(tmp_path / "manifest.jsonl").records() == [
        {"event": "x", "n": 1},
        {"event": "x", "n": 2},
    ]  # the torn line between was cut
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_a_file_where_a_folder_is_needed_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(DiskError, match=r"x\.bin.*choose another"):
        commit_bytes(tmp_path / "run" / "x.bin", b"x")


# --- manifest ---------------------------------------------------------------------------------------------------------


def test_manifest_gives_back_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "run" / "manifest.jsonl"
    records = [{"event": "x", "id": "a/1.png", "loss": 0.5}, {"event": "y", "id": "ü\n\udcff.png", "steps": [1, 2]}]
    assert Manifest(path).records() == []
    for record in records:
        Manifest(path).append(record)
    assert Manifest(path).records() == records


@pytest.mark.parametrize("torn", [b'{"n": 3', b'{"n": 3}', b"{", b"\0\0\0\0", b"\0\r\0\n", b"3\n"])
def test_a_torn_last_line_is_ignored_and_cut_by_the_next_append(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "manifest.jsonl"
    first = Manifest(path)
    first.append({"event": "x", "n": 1})
    first.append({"event": "x", "n": 2})
    with path.open("ab") as file:
        file.write(torn)
    assert Manifest(path).records() == [{"event": "x", "n": 1}, {"event": "x", "n": 2}]
    first.append({"event": "x", "n": 4})  # an object that appended before sees the foreign bytes as well
    with path.open("ab") as file:
        file.write(torn)
    Manifest(path).append({"event": "x", "n": 5})
    assert Manifest(path).records() == [
        {"event": "x", "n": 1},
        {"event": "x", "n": 2},
        {"event": "x", "n": 4},
        {"event": "x", "n": 5},
    ]
    assert path.read_bytes().count(b"\n") == 4


def test_every_cut_of_a_manifest_keeps_a_prefix_of_its_records(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    records = [{"event": "x", "n": n, "id": f"class/{n}.png"} for n in range(3)]
    for record in records:
        Manifest(path).append(record)
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        assert Manifest(path).records() == records[: content[:size].count(b"\n")]


def test_damage_before_the_last_line_is_an_error_not_a_shorter_run(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    for n in (1, 2, 3):
        Manifest(path).append({"event": "x", "n": n})
    path.write_bytes(path.read_bytes().replace(b'"n": 2', b'"n": 7'))
    with pytest.raises(DataError, match=r"manifest\.jsonl, line 2"):
        Manifest(path).records()
    with pytest.raises(DataError):
        Manifest(path).append({"event": "x", "n": 4})
    assert path.read_bytes().count(b"\n") == 3


def test_manifest_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Manifest(tmp_path / "manifest.jsonl").append({"loss": float("nan")})
    assert Manifest(tmp_path / "manifest.jsonl").records() == []


def test_a_commit_says_what_a_unit_did_in_the_order_that_its_readers_know(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "manifest.jsonl")
    manifest.commit("first", ("a", "b"), {"one.png": "digest"}, seconds=2.0)
    manifest.commit("second", ["c"])
    assert [json.dumps(record) for record in manifest.records()] == [
        '{"event": "commit", "unit": "first", "ids": ["a", "b"], "count": 2, "files": {"one.png": "digest"}, '
        '"seconds": 2.0}',
        '{"event": "commit", "unit": "second", "ids": ["c"], "count": 1, "files": {}}',
    ]
    assert manifest.jobs() == {"a", "b", "c"}
    manifest.append({"event": "drop", "unit": "first"})
    assert manifest.jobs() == {"c"}


def test_json_in_the_ledger_is_laid_out_as_asked_and_its_copy_is_the_text_itself(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.commit_json("plain.json", {"b": [1], "a": "ü"}, {"why": "a test"})
    ledger.commit_json("laid-out.json", {"b": [1]}, copied=True, indent=1)
    assert ledger.read("plain.json") == b'{"b": [1], "a": "\\u00fc"}\n'
    assert ledger.note("plain.json") == {"why": "a test"}
    assert ledger.read("laid-out.json") == b'{\n "b": [\n  1\n ]\n}\n'
    assert ledger.note("laid-out.json") == {"copy": '{\n "b": [\n  1\n ]\n}\n'}


# --- frozen settings --------------------------------------------------------------------------------------------------


def test_the_same_settings_again_are_accepted(tmp_path: Path) -> None:
    settings = {"steps": 150, "keep": (1, 2), "data": {"name": "digits"}}
    freeze_settings(tmp_path, "invert", settings, begun=False)
    before = (tmp_path / "invert.config.json").read_bytes()
    freeze_settings(tmp_path, "invert", settings)
    assert (tmp_path / "invert.config.json").read_bytes() == before
    assert json.loads(before)["keep"] == [1, 2]
    freeze_settings(tmp_path, "sample", {"steps": 16}, begun=False)  # stages do not share settings


def test_what_differs_is_shown_and_only_that(tmp_path: Path) -> None:
    old = {"steps": 150, "seed": 0, "data": {"name": "digits", "ids": list(range(50))}, "gone": None, "note": "x" * 500}
    new = {
        "steps": 200,
        "seed": 0,
        "data": {"name": "elpv", "ids": [*range(49), 99]},
        "made": [1, 2],
        "note": "x" * 500,
    }
    freeze_settings(tmp_path, "invert", old, begun=False)
    with pytest.raises(ConfigMismatchError) as caught:
        freeze_settings(tmp_path, "invert", new)
    assert caught.value.exit_code == 5
    assert str(caught.value).splitlines()[1:-1] == [
        "  steps: was 150, now 200",
        '  data.name: was "digits", now "elpv"',
        "  data.ids[49]: was 49, now 99",
        "  gone: was null, now absent",
        "  made: was absent, now [1, 2]",
    ]
    assert json.loads((tmp_path / "invert.config.json").read_text()) == old


def test_a_stage_that_lost_its_settings_does_not_take_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigMismatchError, match=r"sample\.config\.json: missing"):
        freeze_settings(tmp_path, "sample", {"steps": 16})


def test_a_diff_of_settings_stays_short(tmp_path: Path) -> None:
    freeze_settings(tmp_path, "invert", {"ids": [f"a/{n}" for n in range(1000)], "text": "a" * 500}, begun=False)
    with pytest.raises(ConfigMismatchError) as caught:
        freeze_settings(tmp_path, "invert", {"ids": [f"b/{n}" for n in range(1000)], "text": "b" * 500})
    lines = str(caught.value).splitlines()
    assert len(lines) == 23 and lines[21] == "  and 981 more"
    with pytest.raises(ConfigMismatchError, match="ids: was 1000 entries, now 3"):
        freeze_settings(tmp_path, "invert", {"ids": [1, 2, 3], "text": "a" * 500})


# --- lock -------------------------------------------------------------------------------------------------------------

HOLD = """
    import sys, time
    from pathlib import Path
    from diffusion_inversion.engine.lock import run_lock
    with run_lock(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


def test_lock_excludes_another_process_names_it_and_is_freed_by_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder = python(HOLD, folder, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(LockedError, match=rf"process {holder.pid} on {os.uname().nodename}") as caught,
            run_lock(folder),
        ):
            pytest.fail("two processes hold the lock")
        assert caught.value.exit_code == 6
        (folder / f"{PARTIAL_PREFIX}x.bin").touch()
    finally:
        holder.kill()
        holder.communicate()
    with run_lock(folder):
        assert not (folder / f"{PARTIAL_PREFIX}x.bin").exists()
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()


def test_the_lock_of_a_folder_clears_no_run_below_that_is_worked_in(tmp_path: Path) -> None:
    """`dinv sweep --out runs` beside a `dinv run --out runs/photos`: what that writes just now is not left over."""
    inner = tmp_path / "runs" / "photos"
    holder = python(HOLD, inner, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        written = inner / "deep" / f"{PARTIAL_PREFIX}x.png"
        for path in (written, left := tmp_path / "runs" / "other" / f"{PARTIAL_PREFIX}y.png"):
            path.parent.mkdir()
            path.touch()
        with run_lock(tmp_path / "runs"):
            assert written.exists() and not left.exists()
    finally:
        holder.kill()
        holder.communicate()
    with run_lock(tmp_path / "runs"):
        assert not written.exists(), "nobody works there any more"


def test_lock_is_free_after_the_block_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stage broke"), run_lock(tmp_path):
        raise RuntimeError("stage broke")
    with run_lock(tmp_path), run_lock(tmp_path):
        pass  # the same process may come in again
    with run_lock(tmp_path):
        pass


def test_a_file_in_the_place_of_the_folder_is_said_at_once(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("mine")
    for there in (file, file / "run", Path("/proc/run")):
        with pytest.raises(UsageError, match=r"cannot be made a folder .*choose another place"), run_lock(there):
            pass
    assert file.read_text() == "mine"
