"""Machines that see no common folder, each with a run folder of its own, share a run through an object store."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import once  # noqa: F401 (registers the store that the tests use)
import pytest
import torch
from harness import JOBS, Bench, assert_same, content, finish, forkserver, invert, lost_and_doubled, units, write_images
from toy import MINI_SCHEDULER, build_checkpoint, toy_images
from workers import UNITS, committed, run_command, wait_until

from diffusion_inversion.engine import faults, object_store, store
from diffusion_inversion.engine.lock import TakenOverError, run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.engine.object_store import ObjectStore, exchange, lease, shared_through
from diffusion_inversion.engine.units import unit_name
from diffusion_inversion.errors import ConfigMismatchError, DataError, DinvError, DiskError, UsageError
from diffusion_inversion.invert.embeddings import EmbeddingStore
from diffusion_inversion.run.verify import verify

EVERYTHING = ("invert", "sample", "train")


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1 by one process."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(bench, run, "invert")
    return run


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"once://{tmp_path}/store"


def _machine(
    bench: Bench, run: Path, url: str, log: Path, stages: tuple[str, ...], prepare: Callable[..., None], given: Any
) -> None:
    """Do stages; the log ends with how many units this machine did itself."""
    sys.stderr = log.open("w")
    bench.generator()
    object_store.BEAT, object_store.EXPIRY, object_store.POLL = 0.1, 2.0, 0.1
    published, publish = [], ObjectStore.publish

    def counted(self: ObjectStore, folder: str, manifest: Manifest, record: Any) -> None:
        published.append(record["unit"])
        publish(self, folder, manifest, record)

    ObjectStore.publish = counted
    if prepare is not None:
        prepare(bench, run, *given)
    try:
        with run_lock(run, shared=True), shared_through(run, ObjectStore(url)):
            for stage in stages:
                JOBS[stage](bench, run)
    except DinvError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    print(f"published {len(published)}", file=sys.stderr, flush=True)


def started(
    bench: Bench, run: Path, url: str, stages: tuple[str, ...] = ("invert",), prepare: Any = None, *given: Any
) -> Any:
    """A machine at work; its log lies beside its run folder."""
    log = run.with_suffix(".log")
    process = forkserver().Process(target=_machine, args=(bench, run, url, log, stages, prepare, given))
    process.start()
    return process


def said(run: Path) -> str:
    return run.with_suffix(".log").read_text()


def published(*runs: Path) -> list[int]:
    return [int(said(run).rpartition("published ")[2]) for run in runs]


def _together(bench: Bench, run: Path, start: Any, first: Any) -> None:
    """Start together, and publish no second unit before the other has one to publish, however fast this machine is."""
    start.wait(120)
    publish, met = ObjectStore.publish, False

    def after_the_other(self: ObjectStore, folder: str, manifest: Manifest, record: Any) -> None:
        nonlocal met
        if not met:
            met = True
            first.wait(120)
        publish(self, folder, manifest, record)

    ObjectStore.publish = after_the_other


@pytest.mark.slow
@pytest.mark.parametrize("stages", [EVERYTHING, ("replicates",), ("tuned",)], ids=lambda stages: stages[-1])
def test_two_machines_do_every_unit_once_and_both_end_with_the_bits_of_one(
    bench: Bench, url: str, tmp_path: Path, stages: tuple[str, ...]
) -> None:
    reference, runs = tmp_path / "reference", (tmp_path / "a", tmp_path / "b")
    barriers = [forkserver().Barrier(2) for _ in range(2)]
    for stage in stages:
        finish(bench, reference, stage)
    machines = [started(bench, run, url, stages, _together, *barriers) for run in runs]
    for machine in machines:
        machine.join(300)
    assert [machine.exitcode for machine in machines] == [0, 0], [said(run) for run in runs]
    done = [path for path in (tmp_path / "store" / "units").rglob("*") if path.is_file()]
    assert sum(published(*runs)) == len(done) and min(published(*runs)) > 0
    for run in runs:
        assert_same(run, reference)
        assert "warning" not in said(run)
    third = tmp_path / "c"  # comes when all is done
    late = started(bench, third, url, stages)
    late.join(300)
    assert late.exitcode == 0 and published(third) == [0]
    assert_same(third, reference)


def _dies_at(bench: Bench, run: Path, point: str, nth: int) -> None:
    left = nth

    def on_point(name: str) -> None:
        nonlocal left
        if name == point and store._guards:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    faults.on_point = on_point


@pytest.mark.parametrize("point", ["written", "renamed", "recorded"])
def test_a_machine_that_is_killed_loses_its_unit_to_another_and_comes_back(
    bench: Bench, whole: Path, url: str, tmp_path: Path, point: str
) -> None:
    killed, other = tmp_path / "killed", tmp_path / "other"
    victim = started(bench, killed, url, ("invert",), _dies_at, point, 2)
    victim.join(120)
    assert victim.exitcode == -signal.SIGKILL
    rest = started(bench, other, url)
    rest.join(120)
    assert rest.exitcode == 0 and published(other) == [UNITS - 1], said(other)
    again = started(bench, killed, url)
    again.join(120)
    assert again.exitcode == 0 and published(killed) == [0], said(killed)
    for run in (killed, other):
        assert_same(run, whole)


def _stops_at(bench: Bench, run: Path, point: str) -> None:
    """Compute other bits, as another card would, and stand still inside the first unit until somebody wakes it."""
    with torch.no_grad():
        for parameter in bench.generator().unet.parameters():
            parameter.mul_(1.01)
    stood = []

    def on_point(name: str) -> None:
        if name == point and store._guards and not stood:
            stood.append(name)
            os.kill(os.getpid(), signal.SIGSTOP)

    faults.on_point = on_point


@pytest.mark.slow
@pytest.mark.parametrize("point", ["written", "renamed", "recorded"])
def test_a_lease_is_taken_over_while_its_owner_lives(
    bench: Bench, whole: Path, url: str, tmp_path: Path, point: str
) -> None:
    slow, other = tmp_path / "slow", tmp_path / "other"
    owner = started(bench, slow, url, ("invert",), _stops_at, point)
    wait_until(lambda: f"/proc/{owner.pid}/stat" and _is_stopped(owner.pid))
    rest = started(bench, other, url)
    rest.join(120)
    assert rest.exitcode == 0 and published(other) == [UNITS], said(other)
    os.kill(owner.pid, signal.SIGCONT)
    owner.join(120)
    assert owner.exitcode == 0, said(slow)
    assert "this lease was taken over" in said(slow)
    # Where its record was written here when it stood still, what it says of the bits is a line of its own.
    assert said(slow).count("warning: ") == (2 if point == "recorded" else 1), said(slow)
    assert sorted({*committed(slow)}) == sorted(committed(other))
    for run in (slow, other):
        finish(bench, run, "invert")
        assert_same(run, whole)


def _is_stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_others_with_other_weights_or_images_are_refused_and_change_nothing(
    bench: Bench, whole: Path, url: str, tmp_path: Path
) -> None:
    first = started(bench, tmp_path / "first", url)
    first.join(120)
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    torch.manual_seed(5)
    weights = replace(bench, checkpoint=build_checkpoint(tmp_path / "toy", MINI_SCHEDULER, scaling_factor=0.2))
    torch.manual_seed(6)
    write_images(tmp_path / "data" / "train", toy_images(20), range(12))
    write_images(tmp_path / "data" / "test", toy_images(20), range(12, 19))
    images = replace(bench, data=tmp_path / "data")
    runs = tmp_path / "weights", tmp_path / "images"
    machines = [started(weights, runs[0], url), started(images, runs[1], url)]
    for machine in machines:
        machine.join(120)
    assert [machine.exitcode for machine in machines] == [5, 5]
    assert "generator.hash: was " in said(runs[0]) and "test.ids: was " in said(runs[1])
    after = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert after == before


def test_what_was_done_without_a_store_goes_there_and_what_is_damaged_comes_back(
    bench: Bench, whole: Path, url: str, tmp_path: Path
) -> None:
    import shutil

    one, other = Path(shutil.copytree(whole, tmp_path / "one")), tmp_path / "other"
    for run in (one, other):
        with run_lock(run, shared=True), shared_through(run, ObjectStore(url)):
            invert(bench, run)
    assert_same(other, whole)
    manifest = EmbeddingStore(other).manifest
    manifest.append({"event": "drop", "unit": committed(other)[0]})
    made = (tmp_path / "store" / "files").stat().st_mtime_ns
    with run_lock(other, shared=True), shared_through(other, ObjectStore(url)):
        invert(bench, other)
    assert committed(other)[0] == committed(other)[-1] and (tmp_path / "store" / "files").stat().st_mtime_ns == made
    assert_same(other, whole)


@pytest.fixture
def small(tmp_path: Path) -> Manifest:
    """A manifest of one unit, a and b, with a file."""
    home = tmp_path / "run" / "work"
    name = unit_name(["a", "b"])
    files = {"file": store.commit_bytes(home / "file", b"content")}
    manifest = Manifest(home / "manifest.jsonl")
    manifest.append({"event": "commit", "unit": name, "ids": ["a", "b"], "count": 2, "files": files})
    return manifest


def _exchanged(manifest: Manifest, url: str, jobs: list[str]) -> None:
    run = manifest.path.parent.parent
    with shared_through(run, ObjectStore(url)):
        exchange(run, manifest, jobs)


def test_what_a_store_holds_is_checked_before_it_is_used(small: Manifest, url: str, tmp_path: Path) -> None:
    _exchanged(small, url, ["a", "b", "c"])
    other = Manifest(tmp_path / "other" / "work" / "manifest.jsonl")
    with pytest.raises(ConfigMismatchError, match="other images or batches"):
        _exchanged(other, url, ["a", "c"])
    (content,) = (tmp_path / "store" / "files").iterdir()
    content.write_bytes(b"contenT")
    with pytest.raises(DataError, match=rf"store/files/{content.name}: missing or damaged"):
        _exchanged(other, url, ["a", "b"])
    assert other.records() == [] and not (other.path.parent / "file").exists()
    (record,) = (tmp_path / "store" / "units" / "run.work").iterdir()
    text = record.read_bytes()
    for harm in (text.replace(b'"file"', b'"../f"'), text[:-9], b"", b"[]\n"):
        record.write_bytes(harm)
        with pytest.raises(DataError, match=rf"units/run.work/{record.name}: not a record of this unit"):
            _exchanged(other, url, ["a", "b"])
    record.write_bytes(text)
    content.write_bytes(b"content")
    _exchanged(other, url, ["a", "b"])
    assert other.units() == small.units() and (other.path.parent / "file").read_bytes() == b"content"


def test_the_first_of_two_records_counts(
    small: Manifest, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _exchanged(small, url, ["a", "b"])
    other = Manifest(tmp_path / "other" / "work" / "manifest.jsonl")
    files = {"file": store.commit_bytes(other.path.parent / "file", b"others")}
    other.append({**small.records()[0], "files": files, "seconds": 3.0})
    _exchanged(other, url, ["a", "b"])
    assert other.units() == small.units() and (other.path.parent / "file").read_bytes() == b"content"
    assert capsys.readouterr().err.count("done elsewhere first with other bits; those are kept") == 1
    _exchanged(other, url, ["a", "b"])
    same = {**small.records()[0], "seconds": 5.0}  # other seconds are no other bits
    other.append({"event": "drop", "unit": same["unit"]})
    other.append(same)
    before = len(other.records())
    _exchanged(other, url, ["a", "b"])
    assert len(other.records()) == before and capsys.readouterr().err == ""


def test_a_lease_ends_with_its_block_or_with_its_signs_of_life(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(object_store.time, "monotonic", lambda: now[0])
    here, there = ObjectStore(url), ObjectStore(url)
    with shared_through(tmp_path, here):
        with lease(tmp_path / "work", "u") as mine:
            assert mine and there.take("claims/run.work/u") is None
            now[0] += object_store.EXPIRY - 1
            assert there.take("claims/run.work/u") is None
            here.put("claims/run.work/u/1", b"a sign of life")
            now[0] += 2
            assert there.take("claims/run.work/u") is None  # it has changed since
            store.commit_bytes(tmp_path / "work" / "file", b"before")
            now[0] += object_store.EXPIRY
            assert there.take("claims/run.work/u") == "claims/run.work/u/2"
            with pytest.raises(TakenOverError, match=r"claims/run\.work/u: this lease was taken over"):
                store.commit_bytes(tmp_path / "work" / "file", b"after")
        assert (tmp_path / "work" / "file").read_bytes() == b"before"
        with lease(tmp_path / "work", "u") as mine:
            assert not mine
        there.put("claims/run.work/u/2", b"")
        with lease(tmp_path / "work", "u") as mine:
            assert mine and here.read("claims/run.work/u/3")
        assert here.read("claims/run.work/u/3") == b""
    assert there.take("claims/run.work/u") == "claims/run.work/u/4"


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ("file://{}", UsageError, "conditional put"),  # fsspec looks first there, and then writes
        ("careless://{}", UsageError, "conditional put"),
        ("nosuch://{}", UsageError, "cannot be opened"),
        ("unreachable://me:hunter2hunter2@{}", DiskError, "no route to https://"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_in_one_line_without_secrets(
    tmp_path: Path, given: str, kind: type[DinvError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        ObjectStore(given.format(tmp_path / "store"))
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value) and "abcdef0123456789" not in str(caught.value)


@pytest.mark.slow
def test_the_command_shares_a_run_through_s3(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="not installed: pip install '.[s3]'")
    moto = pytest.importorskip("moto.server", reason="not installed: pip install 'moto[server]'")
    import s3fs

    for name, value in (("ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"), ("SECRET_ACCESS_KEY", "not-a-secret-but-long")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        runs, words = (tmp_path / "a", tmp_path / "b", tmp_path / "one"), {}
        for run in runs:
            command = run_command(bench, run, run.with_name(f"{run.name}-logs"))
            store = () if run.name == "one" else ("--store", "s3://bucket/prefix")
            words[run] = replace(command, arguments=(*command.arguments[:-1], *store))
        machines = [words[run].start(0) for run in runs]
        assert [machine.wait() for machine in machines] == [0, 0, 0], [words[run].log(0).read_text() for run in runs]
        one = content(runs[2])
        for run in runs[:2]:
            found = content(run)
            other = {name for name in found.keys() | one.keys() if found.get(name) != one.get(name)}
            assert other <= {"run.json", "report.html"}, other  # which name the command and its folder
            assert units(run) == units(runs[2]) and lost_and_doubled(run, runs[2]) == (0, 0)
            assert not verify(run).findings
            assert "done elsewhere first" not in words[run].log(0).read_text()
        other = replace(words[runs[0]], arguments=(*words[runs[0]].arguments, "--steps", "4"), logs=tmp_path)
        assert other.start(1).wait() == 5 and "settings.steps: was 3, now 4" in other.log(1).read_text()
        nowhere = (*words[runs[0]].arguments[:-1], "s3://nosuch/prefix")
        absent = replace(words[runs[0]], arguments=nowhere, logs=tmp_path)
        assert absent.start(2).wait() == 7
        text = absent.log(2).read_text() + absent.summary(2).read_text()
        assert "s3://nosuch/prefix: cannot be used" in text and "not-a-secret" not in text
    finally:
        server.stop()


def test_a_store_in_memory_creates_once() -> None:
    memory = ObjectStore("memory://prefix")
    assert memory.create("x", b"1") and memory.create("x", b"1") and not memory.create("x", b"2")
    assert memory.read("x") == b"1" and memory.read("y") is None
    assert memory.names("nothing") == [] and memory.create("y/z", b"") and memory.names("y") == ["z"]
