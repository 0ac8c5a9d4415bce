"""Verify sees every changed bit, repair brings back the same bits, and forget leaves no trace."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from cuts import stop_once
from harness import STAGES, Bench, content, finish, units, write_images
from toy import toy_images
from vectors_in_files import files_with_vectors

from diffusion_inversion.data.forgotten import read_marks
from diffusion_inversion.engine import faults
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, UsageError
from diffusion_inversion.invert.embeddings import EmbeddingStore, read_embeddings
from diffusion_inversion.run.forget import Forgotten, changed, finish_pending, forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.synthetic import SyntheticStore

FLIPS = 300


def artefacts(run: Path) -> list[Path]:
    return [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]


def damage(path: Path, stream: random.Random) -> str:
    """Flip one bit of a file or cut it short; return what was done."""
    data = bytearray(path.read_bytes())
    if stream.random() < 0.7:
        place = stream.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        done = f"bit {place}"
    else:
        del data[stream.randrange(len(data)) :]
        done = f"cut to {len(data)}"
    path.write_bytes(data)
    return f"{path.name}: {done}"


def test_a_finished_run_has_no_findings(finished: Path) -> None:
    found = verify(finished)
    assert found.findings == ()
    assert found.files == len(artefacts(finished)) - len(list(finished.rglob("manifest.jsonl")))


def test_every_flipped_bit_and_every_cut_is_found(run: Path) -> None:
    stream = random.Random(0)
    files = artefacts(run)
    missed = []
    for _ in range(FLIPS):
        path = stream.choice(files)
        whole = path.read_bytes()
        done = damage(path, stream)
        found = verify(run).findings
        if not found or not any(
            finding.file == path.relative_to(run).as_posix() or finding.kind == "unlisted" for finding in found
        ):
            missed.append(done)
        path.write_bytes(whole)
    assert missed == []
    assert verify(run).findings == ()


def test_every_missing_file_is_found(run: Path) -> None:
    for path in artefacts(run):
        whole = path.read_bytes()
        path.unlink()
        assert verify(run).findings, path
        path.write_bytes(whole)


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_repair_brings_back_the_same_bits(run: Path, finished: Path, seed: int) -> None:
    stream = random.Random(seed)
    done = []
    for path in stream.sample(artefacts(run), 1 + seed):
        if stream.random() < 0.2:
            path.unlink()
            done.append(f"{path.name} deleted")
        else:
            done.append(damage(path, stream))
    with run_lock(run):
        discard(run, verify(run))
        assert resume(run) == [], done
    assert verify(run).findings == (), done
    assert content(run) == content(finished), done
    assert units(run) == units(finished), done


def test_repair_regenerates_only_what_is_damaged(run: Path) -> None:
    pictures = sorted((run / "synthetic").rglob("*.png"))
    untouched = {path: path.stat().st_mtime_ns for path in artefacts(run) if "manifest" not in path.name}
    record = next(r for r in Manifest(run / "synthetic" / "manifest.jsonl").units().values())
    unit = {run / "synthetic" / name for name in record["files"]}
    victim = next(path for path in pictures if path in unit)
    victim.write_bytes(b"gone")
    with run_lock(run):
        discard(run, verify(run))
        resume(run)
    written = {path for path, stamp in untouched.items() if path.stat().st_mtime_ns != stamp}
    assert written <= unit | {run / "run.json", run / "report.html"} and victim in written


def test_verify_says_unfinished_where_nothing_is_lost(run: Path) -> None:
    (run / "embeddings" / ".partial-abc.safetensors").write_bytes(b"x")
    with (run / "synthetic" / "manifest.jsonl").open("ab") as file:
        file.write(b'{"event": "com')
    found = verify(run)
    assert [(f.file, f.kind) for f in found.findings] == [
        ("synthetic/manifest.jsonl", "unfinished"), ("embeddings/.partial-abc.safetensors", "unfinished"),
    ]  # fmt: skip
    assert not found.lost


@pytest.mark.parametrize("name", ["audit.json", "sample.tuning.json"])
def test_a_deletion_that_was_cut_short_is_unfinished_and_is_ended(run: Path, name: str) -> None:
    Ledger(run).commit_json(name, {"accuracy": 1})
    before = len(Ledger(run).manifest.records())
    faults.on_point = stop_once(lambda: len(Ledger(run).manifest.records()) > before)
    try:
        with pytest.raises(KeyboardInterrupt):
            Ledger(run).drop(name)
    finally:
        faults.on_point = None
    found = verify(run)
    assert [(one.file, one.kind) for one in found.findings] == [(name, "unfinished")] and not found.lost
    (run / name).write_bytes(b'{"accuracy": 2}\n')
    assert verify(run).lost, "nobody wrote this"
    (run / name).write_bytes(b'{"accuracy": 1}\n')
    with run_lock(run):
        discard(run, verify(run))
    assert not (run / name).exists() and verify(run).findings == ()


def test_verify_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        verify(tmp_path)


# --- forget -----------------------------------------------------------------------------------------------------------


def test_forget_leaves_no_trace_and_the_rest_goes_on(bench: Bench, run: Path, finished: Path) -> None:
    victim, vector = read_embeddings(run).ids[3], read_embeddings(run).vectors[:, 3]
    assert files_with_vectors(run, vector) != []
    header = EmbeddingStore(run).manifest.last("header")
    assert header is not None
    rows = SyntheticStore(run, tuple(header["class_names"])).table().to_pylist()
    made = [row for row in rows if victim in (row["source_id"], row["partner_id"]) or row["guidance_scale"] != 1]
    assert 2 < len(made) < len(rows)
    done = forget(run, [victim])
    assert done == Forgotten(images=1, vectors=1, synthetic=len(made), classifiers=6, kept_by_average=0)
    stem = Path(victim).stem
    for path in run.rglob("*"):
        assert stem not in path.name, path
        if path.is_file():
            assert victim.encode() not in path.read_bytes(), path
    assert files_with_vectors(run, vector) == []
    assert victim not in read_embeddings(run).ids
    assert verify(run).findings == ()
    for stage in STAGES:  # DATA still holds the image: it stays out
        finish(bench, run, stage)
    assert verify(run).findings == ()
    assert len(open_splits(run).train) == 11
    again = read_embeddings(run)
    before = read_embeddings(finished)
    keep = [row for row, image_id in enumerate(before.ids) if image_id != victim]
    assert again.ids == tuple(before.ids[row] for row in keep)
    assert torch.equal(again.vectors, before.vectors[:, keep])
    assert all(row["partner_id"] != victim for row in SyntheticStore(run, again.class_names).table().to_pylist())


def test_forget_can_keep_what_holds_only_a_mean(run: Path) -> None:
    victim = read_embeddings(run).ids[0]
    header = EmbeddingStore(run).manifest.last("header")
    assert header is not None
    store = SyntheticStore(run, tuple(header["class_names"]))
    rows = store.table().to_pylist()
    direct = [row for row in rows if victim in (row["source_id"], row["partner_id"])]
    guided = [row for row in rows if row["guidance_scale"] != 1]
    done = forget(run, [victim], keep_averages=True)
    assert done.synthetic == len(direct) < len(rows)
    assert done.kept_by_average == len([row for row in guided if row not in direct]) < len(guided)
    left = {row["file_name"]: row for row in store.table().to_pylist()}
    assert left == {row["file_name"]: row for row in rows if row not in direct}
    assert all((run / "synthetic" / name).is_file() for name in left)
    tested = open_splits(run).test.ids[0]
    assert forget(run, [tested], keep_averages=True, dry_run=True).kept_by_average == 0, "it is in no mean"


def test_a_killed_forget_is_not_weakened_by_a_later_one(run: Path) -> None:
    first, second = read_embeddings(run).ids[:2]
    faults.on_point = stop_once(lambda: (run / "forgotten.json").exists() and read_marks(run)["pending"])
    try:
        with pytest.raises(KeyboardInterrupt):
            forget(run, [first])
    finally:
        faults.on_point = None
    store = SyntheticStore(run, read_embeddings(run).class_names)
    assert {row["guidance_scale"] for row in store.table().to_pylist()} == {1.0, 2.0}
    forget(run, [second], keep_averages=True)
    assert {row["guidance_scale"] for row in store.table().to_pylist()} == {1.0}


def test_forgetting_a_test_image_removes_it_from_the_test(bench: Bench, run: Path) -> None:
    victim = open_splits(run).test.ids[0]
    done = forget(run, [victim])
    assert (done.vectors, done.synthetic, done.classifiers) == (0, 0, 6)
    assert victim not in open_splits(run).test.ids


def test_the_same_pixels_under_another_name_stay_out(bench: Bench, tmp_path: Path) -> None:
    data = shutil.copytree(bench.data, tmp_path / "data")
    moved = Bench(bench.checkpoint, Path(data))
    run = tmp_path / "run"
    finish(moved, run, "invert")
    victim = read_embeddings(run).ids[0]
    forget(run, [victim])
    (Path(data) / victim).rename((Path(data) / victim).with_name("renamed.png"))
    finish(moved, run, "invert")
    assert len(read_embeddings(run)) == 11 and not any("renamed" in i for i in read_embeddings(run).ids)


def test_forget_names_what_it_does_not_know(run: Path) -> None:
    known = read_embeddings(run).ids[0]
    with pytest.raises(UsageError, match=rf"no image '{known}x'.*near to it: .*{known}"):
        forget(run, [f"{known}x"])
    assert verify(run).findings == ()


# --- data that grows or changes ---------------------------------------------------------------------------------------


def test_added_images_alone_are_learned_and_drawn(bench: Bench, tmp_path: Path) -> None:
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    grown = Bench(bench.checkpoint, data)
    run = tmp_path / "run"
    for stage in STAGES:
        finish(grown, run, stage)
    before = {path: path.stat().st_mtime_ns for path in artefacts(run) if path.suffix in (".png", ".safetensors")}
    write_images(data / "train", toy_images(24), range(20, 24))
    for stage in STAGES:
        finish(grown, run, stage)
    assert len(read_embeddings(run)) == 16
    assert len(list((run / "synthetic").rglob("*.png"))) == 32
    assert json.loads((run / "run.json").read_text())["data"]["n_train"] == 16
    same = [path for path in before if path.name != "reconstructions.safetensors"]
    assert all(path.stat().st_mtime_ns == before[path] for path in same), "what was there is not done again"
    assert verify(run).findings == ()


def test_changed_and_missing_images_are_named_and_can_be_forgotten(bench: Bench, tmp_path: Path) -> None:
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    other = Bench(bench.checkpoint, data)
    run = tmp_path / "run"
    for stage in ("invert", "sample"):
        finish(other, run, stage)
    gone, repainted = (data / image_id for image_id in read_embeddings(run).ids[:2])
    gone.unlink()
    shutil.copyfile(data / read_embeddings(run).ids[5], repainted)
    with pytest.raises(ConfigMismatchError) as caught:
        finish(other, run, "invert")
    assert f"train: {gone.relative_to(data)}: gone" in str(caught.value)
    assert f"train: {repainted.relative_to(data)}: other pixels" in str(caught.value)
    ids = changed(run)
    assert set(ids) == {str(gone.relative_to(data)), str(repainted.relative_to(data))}
    forget(run, ids, never_again=False)
    assert changed(run) == []
    Ledger(run).commit_json("membership.json", {})
    before = content(run)
    for dry_run in (True, False):
        assert forget(run, [], never_again=False, dry_run=dry_run) == Forgotten(0, 0, 0, 0, 0)
    assert content(run) == before
    finish(other, run, "invert")
    assert len(read_embeddings(run)) == 11


def test_a_killed_forget_is_finished_by_the_next_command(run: Path) -> None:
    class Killed(BaseException):
        pass

    victim = read_embeddings(run).ids[2]
    passes = 0

    def count(name: faults.Point) -> None:
        nonlocal passes
        passes += 1

    rehearsal = shutil.copytree(run, run.parent / "rehearsal")
    faults.on_point = count
    try:
        forget(rehearsal, [victim])
        for stop_at in range(7, passes, 5):  # from the pass after which the wish is on record
            copy = Path(shutil.copytree(run, run.parent / f"killed{stop_at}"))
            left = stop_at

            def stop(name: faults.Point) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed

            faults.on_point = stop
            with pytest.raises(Killed):
                forget(copy, [victim])
            faults.on_point = None
            with run_lock(copy):
                finish_pending(copy)
            assert victim not in read_embeddings(copy).ids
            for path in copy.rglob("*"):
                if path.is_file():
                    assert victim.encode() not in path.read_bytes(), path
            assert verify(copy).findings == ()
    finally:
        faults.on_point = None
    assert passes > 20
    assert Ledger(run).holds("data.json")


def test_a_stage_that_had_not_ended_has_not_after_a_forget(run: Path) -> None:
    """Else stage 2 would draw from the part of the vectors that is there."""
    store = EmbeddingStore(run)
    first, *_ = store.manifest.units().values()
    last = store.manifest.last("complete")
    assert last is not None and store.is_complete()
    others = [record for record in store.manifest.records() if record.get("unit") != first["unit"]]
    store.manifest.rewrite(others)  # one unit is not there yet: DATA grew
    assert not store.is_complete()
    forget(run, [store.images().popitem()[0]])
    assert not EmbeddingStore(run).is_complete()


def test_a_damaged_shard_leaves_the_stage_unfinished(run: Path) -> None:
    store = EmbeddingStore(run)
    unit, *_ = store.manifest.units().values()
    [name] = unit["files"]
    (store.folder / name).write_bytes(b"damaged")
    forget(run, [unit["ids"][0]])
    assert not EmbeddingStore(run).is_complete()
