"""What forget takes where vectors began at means over their classes: every vector of a class holds all its images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cuts import stop_once
from harness import INVERT, SAMPLE, Bench, sample

from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.data.forgotten import Marks, hashed, write_marks
from diffusion_inversion.engine import faults
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.invert.embeddings import EmbeddingStore
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.run.forget import finish_pending, forget
from diffusion_inversion.run.images import open_splits, write_record
from diffusion_inversion.sample.synthetic import SyntheticStore


@pytest.fixture
def half(bench: Bench, tmp_path: Path) -> Path:
    """A run whose vectors start at class means, stopped after those of all cats and one dog."""
    run, settings = tmp_path / "half", INVERT.model_copy(update={"init": "class-mean", "batch_size": 7})
    with run_lock(run):
        splits = open_splits(run, DataSettings(data=str(bench.data)))
        faults.on_point = stop_once(lambda: EmbeddingStore(run).images())
        try:
            with pytest.raises(KeyboardInterrupt):
                invert(splits.train, bench.generator(), run, settings)
        finally:
            faults.on_point = None
    assert [image_id.split("/")[1] for image_id in EmbeddingStore(run).images()] == ["cat"] * 6 + ["dog"]
    return run


def held(run: Path, image_id: str) -> list[str]:
    return [path.name for path in run.rglob("*") if path.is_file() and image_id.encode() in path.read_bytes()]


def test_vectors_that_began_with_an_image_go_with_it_though_it_has_none(half: Path) -> None:
    store, victim = EmbeddingStore(half), open_splits(half).train.ids[-1]
    cats = {image_id for image_id in store.images() if "cat" in image_id}
    kept = Path(shutil.copytree(half, half.parent / "kept"))
    assert forget(kept, [victim], keep_averages=True).vectors == 0
    assert len(EmbeddingStore(kept).images()) == 7 and held(kept, victim) == []
    assert victim not in store.images()
    assert forget(half, [victim], dry_run=True).vectors == 1
    assert forget(half, [victim]).vectors == 1
    assert store.images().keys() == cats and held(half, victim) == []


def test_an_image_of_unknown_class_takes_all_vectors_that_began_at_means(half: Path) -> None:
    """As a kill left it that came after data.json was written anew."""
    record, victim = json.loads((half / "data.json").read_text()), open_splits(half).train.ids[-1]
    lists = ("ids", "hashes", "labels")
    write_record(half, {**record, "train": record["train"] | {key: record["train"][key][:-1] for key in lists}})
    write_marks(half, Marks(never_again=[hashed(victim)], pending=[hashed(victim)], keep_averages=False))
    with run_lock(half):
        finish_pending(half)
    assert EmbeddingStore(half).images() == {} and held(half, victim) == []


def test_the_class_of_a_lost_vector_goes_too_where_vectors_began_at_means(bench: Bench, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", INVERT.model_copy(update={"init": "class-mean"})
    with run_lock(run):
        splits = open_splits(run, DataSettings(data=str(bench.data)))
        invert(splits.train, bench.generator(), run, settings)
        sample(bench, run, SAMPLE.model_copy(update={"guidance_scales": (1.0,)}))
    store = EmbeddingStore(run)
    lost = [unit for unit in store.manifest.units().values() if all("cat" in image_id for image_id in unit["ids"])][:2]
    for unit in lost:
        store.manifest.append({"event": "drop", "unit": unit["unit"]})
    done = forget(run, [lost[0]["ids"][0]])
    assert done.vectors == 2 and {label for _, label in store.images().values()} == {1}
    rows = SyntheticStore(run, splits.train.class_names).table().to_pylist()
    assert {row["class_name"] for row in rows} == {"dog"}, "also those of the vector that is lost beside it"
