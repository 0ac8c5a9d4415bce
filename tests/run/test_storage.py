"""Images in Parquet files: the same bits as in a file each, whatever is done with them, and whatever kills it."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from harness import (
    SAMPLE,
    TRAIN,
    Bench,
    assert_same,
    content,
    finish,
    kill_during,
    race,
    uninterrupted,
    units,
)
from PIL import Image
from test_kills import kills
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.config.commands import ExportSettings
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.engine import memory
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, DataError
from diffusion_inversion.measure.variant_groups import recorded_sources
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.export.stage import export
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample import packed
from diffusion_inversion.sample.columns import COLUMNS
from diffusion_inversion.sample.packed import batches_of
from diffusion_inversion.sample.sampling import storage_of
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.train.store import ClassifierStore

KILLS = 14


@pytest.fixture(scope="module")
def vectors(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("vectors") / "run"
    finish(bench, run, "invert")
    return run


@pytest.fixture(scope="module")
def both(bench: Bench, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run up to its report, its images as PNG files and in Parquet files; not to be changed."""
    folder = tmp_path_factory.mktemp("both")
    runs = folder / "png", folder / "parquet"
    for run, stage in zip(runs, ("sample", "packed"), strict=True):
        shutil.copytree(vectors, run)
        for one in (stage, "train", "report"):
            finish(bench, run, one)
    return runs


@pytest.fixture
def run(both: tuple[Path, Path], tmp_path: Path) -> Path:
    """A run with Parquet files, to be changed."""
    return Path(shutil.copytree(both[1], tmp_path / "run"))


def store_of(run: Path) -> SyntheticStore:
    return SyntheticStore(run, ("cat", "dog"))


def pngs(run: Path) -> dict[str, bytes]:
    """The bytes of every image by name, read without the package where they are in Parquet files."""
    folder = run / "synthetic"
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*.png")}
    for path in folder.glob("unit-*.parquet"):
        for cell in pq.read_table(path)["image"].to_pylist():
            assert cell["path"] not in found, "an image lies in two files"
            found[cell["path"]] = cell["bytes"]
    return found


def test_an_image_has_the_bytes_and_columns_that_it_has_as_a_file(both: tuple[Path, Path]) -> None:
    png, parquet = both
    assert len(pngs(png)) == 24 and pngs(parquet) == pngs(png)
    assert len(list((parquet / "synthetic").iterdir())) == 24 // 6 + 1  # with the manifest
    one, other = (store_of(run).table().sort_by("file_name").to_pylist() for run in both)
    assert one == other
    assert {hashlib.sha256(data).hexdigest() for data in pngs(png).values()} == {row["sha256"] for row in other}
    assert store_of(png).sources() == store_of(parquet).sources()


def test_what_is_trained_on_them_is_the_same(both: tuple[Path, Path]) -> None:
    same = [store_of(run).read() for run in both]
    assert same[0].ids == same[1].ids and same[0].digest == same[1].digest
    assert torch.equal(same[0].images, same[1].images)
    trained = [units(run) for run in both]
    for name, unit in trained[0].items():
        if name.startswith("classifiers/"):
            assert trained[1][name] == unit


@pytest.mark.parametrize("place", [0, 1])
def test_pixels_that_memory_has_no_room_for_lie_in_a_file(
    both: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    whole = store_of(both[place]).read().images
    monkeypatch.setattr(memory, "memory", lambda: (10**9, whole.numel() * 2 - 1))
    array = memory.large_array(tuple(whole.shape))
    assert isinstance(array, np.memmap)
    assert torch.equal(store_of(both[place]).read().images, whole)
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    assert torch.equal(store_of(both[place]).read().images, whole)
    monkeypatch.setattr(memory, "memory", lambda: (10**9, whole.numel() * 2))
    assert not isinstance(memory.large_array(tuple(whole.shape)), np.memmap)


def test_datasets_opens_the_files_without_us(both: tuple[Path, Path], tmp_path: Path) -> None:
    import datasets

    files = str(both[1] / "synthetic" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert isinstance(rows.features["image"], datasets.Image) and rows.features["label"].names == ["cat", "dog"]
    assert {*COLUMNS, "sha256"} <= {*rows.column_names}
    whole = pngs(both[0])
    for row in rows:
        assert row["image"].tobytes() == Image.open(io.BytesIO(whole[row["file_name"]])).tobytes()
        assert row["class_name"] == rows.features["label"].int2str(row["label"])


def test_the_folder_is_data_whose_sources_are_known(both: tuple[Path, Path]) -> None:
    found, named = (load_images(run / "synthetic") for run in both[::-1])
    assert sorted(zip(found.hashes, found.labels.tolist(), strict=True)) == sorted(
        zip(named.hashes, named.labels.tolist(), strict=True)
    )
    assert found.class_names == named.class_names

    def by_source(images: LabelledImages, run: Path) -> list[tuple[str, str]]:
        sources = recorded_sources(run / "synthetic")
        return sorted((digest, sources[name]) for name, digest in zip(images.ids, images.hashes, strict=True))

    assert by_source(found, both[1]) == by_source(named, both[0])


@pytest.fixture(scope="module")
def whole(bench: Bench, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, dict[str, int]]:
    run = Path(shutil.copytree(vectors, tmp_path_factory.mktemp("whole") / "run"))
    seconds, passed = uninterrupted(bench, run, "packed")
    return run, seconds, passed


@pytest.mark.slow
def test_a_killed_stage_ends_as_if_it_had_not_been(
    bench: Bench, vectors: Path, whole: tuple[Path, float, dict[str, int]], tmp_path: Path
) -> None:
    after, seconds, passed = whole
    killed = 0
    for number, kill in enumerate(kills("packed", seconds, passed, KILLS, seed=0)):
        run = Path(shutil.copytree(vectors, tmp_path / str(number)))
        killed += kill_during(bench, run, "packed", kill)
        finish(bench, run, "packed")
        assert_same(run, after)
    assert killed >= KILLS * 2 // 3


def test_two_processes_share_the_units(
    bench: Bench, vectors: Path, whole: tuple[Path, float, dict[str, int]], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(vectors, tmp_path / "run"))
    assert race(bench, run, "packed", 2, shared=True) == [0, 0]
    assert pngs(run) == pngs(whole[0])


def damaged_image(run: Path, stream: random.Random) -> tuple[Path, str]:
    """Flip a bit of the image data of one row; return the file and the image's name."""
    path = stream.choice(sorted((run / "synthetic").glob("unit-*.parquet")))
    cell = stream.choice(pq.read_table(path)["image"].to_pylist())
    data = bytearray(path.read_bytes())
    assert data.count(cell["bytes"]) == 1
    data[data.index(cell["bytes"]) + stream.randrange(len(cell["bytes"]))] ^= 1 << stream.randrange(8)
    path.write_bytes(data)
    return path, cell["path"]


@pytest.mark.parametrize("seed", range(3))
def test_verify_names_the_image_of_a_flipped_bit_and_repair_draws_its_unit_again(
    run: Path, both: tuple[Path, Path], seed: int
) -> None:
    path, name = damaged_image(run, random.Random(seed))
    (finding,) = verify(run).findings
    assert (finding.file, finding.kind) == (path.relative_to(run).as_posix(), "damaged")
    assert finding.images == (name,)
    said = CliRunner().invoke(app, ["verify", str(run)])
    assert said.exit_code == 4 and name in said.output
    with pytest.raises(DataError, match="repair"):
        store_of(run).read()
    others = {one: one.stat().st_mtime_ns for one in (run / "synthetic").glob("*.parquet") if one != path}
    with run_lock(run):
        discard(run, verify(run))
        assert resume(run) == []
    assert content(run) == content(both[1]) and units(run) == units(both[1])
    assert others == {one: one.stat().st_mtime_ns for one in others}


def test_any_flipped_bit_or_cut_of_a_file_is_found(run: Path) -> None:
    stream = random.Random(7)
    for _ in range(60):
        path = stream.choice(sorted((run / "synthetic").glob("*.parquet")))
        data = bytearray(before := path.read_bytes())
        if stream.random() < 0.7:
            data[stream.randrange(len(data))] ^= 1 << stream.randrange(8)
        else:
            del data[stream.randrange(len(data)) :]
        path.write_bytes(data)
        assert [one.file for one in verify(run).findings] == [path.relative_to(run).as_posix()]
        path.write_bytes(before)
    assert verify(run).findings == ()


def test_forget_rewrites_only_the_files_that_hold_the_source(bench: Bench, vectors: Path, tmp_path: Path) -> None:
    settings = SAMPLE.model_copy(update={"guidance_scales": (1.0,)})  # no mean goes into an image
    runs = tmp_path / "png", tmp_path / "parquet"
    for run, storage in zip(runs, ("png", "parquet"), strict=True):
        shutil.copytree(vectors, run)
        asked = settings.model_copy(update={"storage": storage})
        with run_lock(run):
            pipeline.sample_stage(run, bench.generator(), asked, sources=open_splits(run).train)
    parquet = runs[1]
    before, every = {path: path.read_bytes() for path in parquet.glob("synthetic/*.parquet")}, pngs(parquet)
    source = open_splits(parquet).train.ids[0]
    rows = store_of(parquet).table("file_name", "source_id", "partner_id").to_pylist()
    gone = {row["file_name"] for row in rows if source in (row["source_id"], row["partner_id"])}
    held = {path for path in before if gone & {*pq.read_table(path)["file_name"].to_pylist()}}
    assert 0 < len(held) < len(before) and 0 < len(gone) < len(rows)
    done = [forget(run, [source]) for run in runs]
    assert done[0] == done[1] and done[1].synthetic == len(gone)
    assert pngs(parquet) == pngs(runs[0]) == {name: data for name, data in every.items() if name not in gone}
    for path, data in before.items():
        assert not path.exists() if path in held else path.read_bytes() == data
    assert not any(source.encode() in path.read_bytes() for path in parquet.rglob("*") if path.is_file())
    assert verify(parquet).findings == ()


def test_more_variants_are_added_and_another_storage_is_refused_by_name(
    run: Path, both: tuple[Path, Path], bench: Bench
) -> None:
    def sample(run: Path, **changes: object) -> None:
        with run_lock(run):
            settings = SAMPLE.model_copy(update=changes)
            pipeline.sample_stage(run, bench.generator(), settings, sources=open_splits(run).train)

    first = {path.name: path.read_bytes() for path in (run / "synthetic").glob("*.parquet")}
    sample(run, variants=3)  # auto: as it was begun
    there = {path.name: path.read_bytes() for path in (run / "synthetic").glob("*.parquet")}
    assert first.items() < there.items() and len(pngs(run)) == 36
    assert verify(run).findings == ()
    before = content(run)
    with pytest.raises(ConfigMismatchError, match=r"storage: was parquet, now png; .* Leave --storage out"):
        sample(run, variants=3, storage="png")
    with pytest.raises(ConfigMismatchError, match=r"storage: was png, now parquet; .* Leave --storage out"):
        sample(both[0], storage="parquet")
    assert content(run) == before
    sample(run, variants=3, storage="parquet")
    assert content(run) == before


def test_auto_packs_what_is_many(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for count, storage, kept in ((99_999, "auto", "png"), (100_000, "auto", "parquet"), (10**6, "png", "png")):
        assert storage_of(store, SampleSettings(storage=storage), count) == kept
    assert SampleSettings().described() == SampleSettings(storage="png").described()
    assert SampleSettings(storage="parquet").described()["storage"] == "parquet"


def test_a_unit_takes_no_more_than_32_mb_unless_a_batch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BATCHES", 10)
    assert [batches_of(100, side) for side in (8, 64, 128, 256, 512)] == [10, 10, 6, 1, 1]


@pytest.mark.parametrize("to", ["imagefolder", "webdataset", "parquet"])
def test_exports_hold_the_same_images(both: tuple[Path, Path], tmp_path: Path, to: str) -> None:
    outs = [tmp_path / run.name for run in both]
    for run, out in zip(both, outs, strict=True):
        assert export(run, ExportSettings(to=to, out=out, source_ids="plain")).count == 24
    if to == "imagefolder":
        names = sorted(path.relative_to(outs[0]).as_posix() for path in outs[0].rglob("*.png"))
        assert len(names) == 24
        assert all((outs[0] / name).read_bytes() == (outs[1] / name).read_bytes() for name in names)
    data = [out / "data" / "train-00000-of-00001.parquet" if to == "parquet" else out for out in outs]
    one, other = (load_images(place) for place in data)
    assert sorted(zip(one.hashes, one.labels.tolist(), strict=True)) == sorted(
        zip(other.hashes, other.labels.tolist(), strict=True)
    )


def test_a_missing_file_is_named_with_its_remedy(run: Path) -> None:
    victim = next((run / "synthetic").glob("unit-*.parquet"))
    victim.unlink()
    with pytest.raises(DataError, match=f"{victim.name}: listed in the manifest but missing. .*dinv repair"):
        store_of(run).read()
    (finding,) = verify(run).findings
    assert finding.kind == "missing" and finding.images == ()


@pytest.mark.parametrize("name", ["../../cat/x.png", "/cat/x.png", "../x.png", "cat\\x/y.png", "cat/x/../../y.png"])
def test_names_that_lead_out_of_a_folder_are_refused(run: Path, name: str) -> None:
    """A run folder may come from somebody else, with records that fit its files."""
    store = store_of(run)
    records = store.manifest.records()
    unit = next(record for record in records if record["event"] == "commit")
    (file,) = unit["files"]
    table = pq.read_table(run / "synthetic" / file)
    names = [name, *table["file_name"].to_pylist()[1:]]
    pq.write_table(
        table.set_column(table.column_names.index("file_name"), "file_name", [names]), run / "synthetic" / file
    )
    unit["files"][file] = hashlib.sha256((run / "synthetic" / file).read_bytes()).hexdigest()
    Manifest(store.manifest.path).rewrite(records)
    with pytest.raises(DataError, match="changed since it was written"):
        store_of(run).read()


def test_training_goes_on_from_packed_images(run: Path, bench: Bench) -> None:
    more = TRAIN.model_copy(update={"seeds": (0, 1, 2)})
    before = ClassifierStore(run).manifest.units()
    found = pipeline.train_stage(run, open_splits(run), more, "cpu")
    assert {(one.arm, one.seed) for one in found.runs} == {(arm, seed) for arm in TRAIN.arms for seed in more.seeds}
    after = ClassifierStore(run).manifest.units()
    assert after.items() >= before.items()
    assert {after[unit]["seed"] for unit in after.keys() - before.keys()} == {2}
