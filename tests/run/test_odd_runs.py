"""Runs in states that only accidents make: damaged while forgetting, half grown, written by others, restarted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cuts import stop_once
from harness import INVERT, STAGES, Bench, content, finish, write_images
from toy import toy_images

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.engine import faults, state
from diffusion_inversion.engine.lock import run_lock, same_jobs
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, DataError, DiskError, UsageError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.forget import changed, finish_pending, forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.verify import discard, verify


def repair(run: Path) -> None:
    with run_lock(run):
        discard(run, verify(run))
        finish_pending(run)
        assert resume(run) == []


def traces(run: Path, image_id: str) -> list[Path]:
    """Files that hold the id, or are named after it."""
    mark = f"{Path(image_id).stem}-"
    files = [path for path in run.rglob("*") if path.is_file()]
    return [path for path in files if image_id.encode() in path.read_bytes() or path.name.startswith(mark)]


# --- forget -----------------------------------------------------------------------------------------------------------


def test_forget_on_a_damaged_shard_deletes_and_the_rest_is_learned_again(bench: Bench, run: Path) -> None:
    victim = read_embeddings(run).ids[3]
    for shard in (run / "embeddings").glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:200])
    forget(run, [victim])
    assert traces(run, victim) == []
    with run_lock(run):
        discard(run, verify(run))  # the other shards
        resume(run)  # and images of vectors that were learned in a smaller batch than before
    for stage in STAGES:
        finish(bench, run, stage)
    assert len(read_embeddings(run)) == 11 and verify(run).findings == ()


def test_forget_asks_for_repair_where_a_manifest_is_damaged_and_changes_nothing(run: Path) -> None:
    victim = read_embeddings(run).ids[3]
    manifest = run / "synthetic" / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes().replace(b'"count": 3', b'"count": 4', 1))
    before = content(run)
    with pytest.raises(DataError, match="dinv repair"):
        forget(run, [victim])
    assert content(run) == before
    repair(run)
    forget(run, [victim])
    assert traces(run, victim) == []


def test_forget_finds_descendants_of_a_vector_that_is_lost(run: Path) -> None:
    victim = read_embeddings(run).ids[3]
    shard = next(iter((run / "embeddings").glob("*.safetensors")))
    for shard in (run / "embeddings").glob("*.safetensors"):
        shard.unlink()
    with run_lock(run):
        discard(run, verify(run))
    done = forget(run, [victim])
    assert done.synthetic > 0 and traces(run, victim) == []


def test_the_same_picture_under_another_name_is_forgotten_too(bench: Bench, tmp_path: Path) -> None:
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    shutil.copyfile(data / "train" / "cat" / "000.png", data / "train" / "cat" / "twin one.png")
    twins, run = Bench(bench.checkpoint, data), tmp_path / "run"
    for stage in STAGES:
        finish(twins, run, stage)
    assert any(
        "train/cat/twin one.png" in p["file"] for p in json.loads((run / "data.json").read_text())["train"]["problems"]
    )
    forget(run, ["train/cat/000.png"])
    for stage in STAGES:
        finish(twins, run, stage)
    assert len(read_embeddings(run)) == 11
    assert traces(run, "train/cat/000.png") == [] and traces(run, "train/cat/twin one.png") == []


def test_an_image_is_not_forgotten_for_its_name_in_the_other_part(bench: Bench, tmp_path: Path) -> None:
    """Of `--test FOLDER` a training image and a test image may both be cat/0.png, of different pictures."""
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            for place, path in enumerate(sorted((data / part / kind).iterdir())):
                path.rename(path.with_name(f"{place}.png"))
    shutil.copyfile(data / "train" / "cat" / "0.png", data / "train" / "cat" / "twin.png")
    (data / "test" / "cat" / "3.png").rename(data / "test" / "cat" / "twin.png")
    run, given = tmp_path / "run", pipeline.DataSettings(data=str(data / "train"), test=str(data / "test"))
    splits = open_splits(run, given)
    with run_lock(run):
        invert(splits.train, bench.generator(), run, INVERT)
    forget(run, ["train:cat/0.png"])
    left = open_splits(run)
    assert {*splits.train.ids} - {*left.train.ids} == {"cat/0.png", "cat/twin.png"}
    assert left.test.ids == splits.test.ids and "cat/twin.png" in left.test.ids
    assert {*read_embeddings(run).ids} == {*left.train.ids}
    forget(run, ["test:cat/2.png"])
    assert {*left.test.ids} - {*open_splits(run).test.ids} == {"cat/2.png"}
    assert "cat/2.png" in read_embeddings(run).ids
    repainted = data / "test" / "dog" / "1.png"
    shutil.copyfile(data / "test" / "dog" / "0.png", repainted)
    assert changed(run) == ["test:dog/1.png"]
    forget(run, ["dog/0.png"])  # whichever was meant
    record = json.loads((run / "data.json").read_text())
    assert all("dog/0.png" not in record[part]["ids"] for part in ("train", "test"))


def test_a_wish_to_be_forgotten_survives_damage(bench: Bench, run: Path) -> None:
    victim = read_embeddings(run).ids[3]
    forget(run, [victim])
    for stage in STAGES:
        finish(bench, run, stage)
    marks = run / "forgotten.json"
    whole = marks.read_bytes()
    for damaged in (whole[:-20], whole.replace(b"a", b"b", 1), None):
        marks.write_bytes(damaged) if damaged is not None else marks.unlink()
        assert [finding.file for finding in verify(run).findings] == ["forgotten.json"] and verify(run).lost
        with pytest.raises(DataError, match=r"forgotten\.json"):
            finish(bench, run, "invert")
        repair(run)
        assert marks.read_bytes() == whole and len(read_embeddings(run)) == 11


def test_the_public_functions_do_not_learn_a_forgotten_image(bench: Bench, run: Path) -> None:
    images = open_splits(run).train
    forget(run, [images.ids[0]])
    with pytest.raises(UsageError, match=f"{images.ids[0]}.*was told to forget"):
        invert(images, bench.generator(), run, INVERT)


# --- data that grew ---------------------------------------------------------------------------------------------------


def test_no_stage_works_on_half_of_what_the_one_before_must_give(bench: Bench, tmp_path: Path) -> None:
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    grown, run = Bench(bench.checkpoint, data), tmp_path / "run"
    for stage in STAGES:
        finish(grown, run, stage)
    write_images(data / "train", toy_images(24), range(20, 24))
    with pytest.raises(UsageError, match=r"have no vector: stage 1 did not finish.*dinv invert"):
        finish(grown, run, "train")
    finish(grown, run, "invert")
    with pytest.raises(UsageError, match=r"added since stage 2.*dinv sample"):
        finish(grown, run, "train")
    finish(grown, run, "sample")
    finish(grown, run, "report")
    assert json.loads((run / "run.json").read_text())["stages"]["sample"]["images"] == 32


# --- states, restart, room, jobs --------------------------------------------------------------------------------------


def test_a_state_is_not_taken_over_by_other_settings(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "EVERY", 0.0)
    images = open_splits(tmp_path / "data", pipeline.DataSettings(data=str(bench.data))).train
    other = INVERT.model_copy(update={"seed": 5, "steps": 6})
    whole = invert(images, bench.generator(), tmp_path / "whole", INVERT)
    run = tmp_path / "run"

    # The seam of faults: a stop at a point where a state is on disk.
    monkeypatch.setattr(faults, "on_point", stop_once(lambda: list(run.rglob("state-*"))))
    with pytest.raises(KeyboardInterrupt):
        invert(images, bench.generator(), run, other)
    monkeypatch.undo()
    assert list(run.rglob("state-*"))
    assert torch.equal(invert(images, bench.generator(), run, INVERT).vectors, whole.vectors)
    assert not list(run.rglob("state-*"))


def test_restart_deletes_nothing_before_the_new_settings_can_be_used(bench: Bench, run: Path) -> None:
    before = content(run)
    for settings, error in (
        (SampleSettings(image_size=9999), UsageError),
        (SampleSettings(kept_steps=(7,)), DataError),
    ):
        with pytest.raises(error):
            pipeline.sample_stage(run, bench.generator(), settings, anew=True)
    with pytest.raises(DiskError, match="nothing was computed"):
        pipeline.sample_stage(run, bench.generator(), SampleSettings(variants=10**9), anew=True)
    with pytest.raises(UsageError):
        pipeline.train_stage(run, open_splits(run), pipeline.TrainSettings(), "cuda:7", anew=True)
    assert content(run) == before


def test_way_is_made_in_all_runs_or_in_none(run: Path, tmp_path: Path) -> None:
    """As for the sets of `dinv retrieve` and `dinv lecf`: the room that one lacks keeps the others."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    before, held = content(run), len(list((run / "synthetic").rglob("*.png")))
    with pytest.raises(DiskError, match=f"{10**12} images of 8 px"):
        pipeline.make_way({run: held, other: held + 10**12}, 8, anew=True)
    assert content(run) == content(other) == before
    pipeline.make_way({run: held, other: held}, 8, anew=False)
    assert content(run) == content(other) == before
    pipeline.make_way({run: held, other: held}, 8, anew=True)
    assert not (run / "synthetic").exists() and not (other / "synthetic").exists()


def test_a_finished_run_needs_no_room(bench: Bench, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SPARE_BYTES", 10**18)
    for stage in STAGES:
        finish(bench, run, stage)
    with pytest.raises(DiskError, match="nothing was computed"):
        pipeline.invert_stage(run / "new", open_splits(run), bench.generator(), InvertSettings())


def test_others_with_another_list_of_jobs_are_refused(tmp_path: Path) -> None:
    with run_lock(tmp_path, shared=True), same_jobs(tmp_path, "synthetic", "a" * 16):
        with same_jobs(tmp_path, "synthetic", "a" * 16), same_jobs(tmp_path, "embeddings", "b" * 16):
            pass
        with (
            pytest.raises(ConfigMismatchError, match="another number of variants"),
            same_jobs(tmp_path, "synthetic", "c" * 16),
        ):
            pytest.fail("two lists at once")
    with same_jobs(tmp_path, "synthetic", "c" * 16):
        pass


# --- runs made or shared by others ------------------------------------------------------------------------------------


def test_repair_writes_and_deletes_nothing_outside_the_run(run: Path) -> None:
    outside = run.parent / "outside.txt"
    outside.write_text("mine")
    for name in (str(outside), "../outside.txt"):
        manifest = Manifest(run / "manifest.jsonl")
        record = {"unit": name, "ids": [name], "count": 1, "files": {name: "0" * 64}}
        manifest.append({"event": "commit", **record, "note": {"copy": "EVIL"}})
        with pytest.raises(DataError):
            repair(run)
        assert outside.read_text() == "mine"
        manifest.rewrite(manifest.records()[:-1])


def test_the_owners_own_files_are_no_business_of_repair(run: Path) -> None:
    own = [run / name for name in ("notes.html", "figures/plot.html", "synthetic/README.md", "embeddings/notes.txt")]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert verify(run).findings == ()
    repair(run)
    assert all(path.read_text() == "mine" for path in own)
