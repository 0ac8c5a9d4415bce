"""Classes that are added to the data of a run, before, between and after those it has (pytorch/vision#714)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness import STAGES, Bench, finish
from image_files import class_folders, noise, save
from safetensors.torch import load_file

from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.errors import UsageError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run.forget import changed, forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample.synthetic import read_synthetic


@pytest.fixture
def grown(bench: Bench, tmp_path: Path) -> tuple[Bench, Path]:
    """A run of its own data, through every stage; then the data gets a class that sorts before all others."""
    data, run = Path(shutil.copytree(bench.data, tmp_path / "data")), tmp_path / "run"
    grown = Bench(bench.checkpoint, data)
    for stage in STAGES:
        finish(grown, run, stage)
    size = open_splits(run).train.size
    for part, count in (("train", 3), ("test", 2)):
        for row in range(count):
            save(data / part / "aardvark" / f"{row}.png", noise(size, size, 3))
    return grown, run


def test_only_the_images_of_a_new_class_run(grown: tuple[Bench, Path]) -> None:
    bench, run = grown
    before = json.loads((run / "data.json").read_text())["class_names"]
    shards = {path.name: load_file(path) for path in (run / "embeddings").glob("*.safetensors")}
    pictures = {path: path.stat().st_mtime_ns for path in (run / "synthetic").rglob("*.png")}
    assert changed(run) == []  # `forget --changed` would delete nothing
    for stage in STAGES:
        finish(bench, run, stage)
    splits = open_splits(run)
    assert splits.train.class_names == splits.test.class_names == (*before, "aardvark")
    for part in (splits.train, splits.test):
        for image_id, label in zip(part.ids, part.labels.tolist(), strict=True):
            assert part.class_names[label] == image_id.split("/")[1]
    assert {path.name for path in (run / "embeddings").glob("*.safetensors")} >= set(shards)
    found = read_embeddings(run)
    assert found.class_names == splits.train.class_names and len(found) == 15
    for image_id, label in zip(found.ids, found.labels.tolist(), strict=True):
        assert found.class_names[label] == image_id.split("/")[1]
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    drawn = read_synthetic(run, found.class_names)
    assert len(drawn) == 30
    assert all(drawn.class_names[k] == name.split("/")[0] for name, k in zip(drawn.ids, drawn.labels, strict=True))
    assert verify(run).findings == ()


def test_a_class_that_is_gone_can_be_forgotten(grown: tuple[Bench, Path]) -> None:
    bench, run = grown
    for stage in STAGES:
        finish(bench, run, stage)
    for part in ("train", "test"):
        shutil.rmtree(bench.data / part / "aardvark")
    gone = changed(run)
    assert len(gone) == 5 and all("aardvark" in image_id for image_id in gone)
    forget(run, gone, never_again=False)
    for stage in STAGES:
        finish(bench, run, stage)
    assert len(read_embeddings(run)) == 12


def test_what_was_chosen_under_a_limit_stays(tmp_path: Path) -> None:
    """A class that comes, or grows, takes what the chosen images leave of the limit, never their place."""
    from diffusion_inversion.data.selection import stratified
    from diffusion_inversion.data.sources import open_data

    data = class_folders(tmp_path / "data", {"b": 12, "c": 12})
    source, _ = open_data(data, tmp_path)
    rows = stratified(source, 10, 0)
    chosen = frozenset(source.ids[row] for row in rows)
    class_folders(data, {"a": 12})
    source, _ = open_data(data, tmp_path)
    with pytest.raises(UsageError, match=r"limit=10: .* leave no room for a; give at least 11"):
        stratified(source, 10, 0, None, chosen)
    ids = {source.ids[row] for row in stratified(source, 14, 0, None, chosen)}
    assert ids >= chosen and sum(i.startswith("a/") for i in ids) == 4


def test_settings_of_another_order_of_classes_are_still_refused(bench: Bench, tmp_path: Path) -> None:
    from harness import INVERT

    from diffusion_inversion.errors import ConfigMismatchError
    from diffusion_inversion.invert.inversion import invert

    images = open_splits(tmp_path / "run", DataSettings(data=str(bench.data))).train
    invert(images, bench.generator(), tmp_path / "run", INVERT)
    with pytest.raises(ConfigMismatchError, match="class_names"):
        invert(images.with_classes_after(images.class_names[::-1]), bench.generator(), tmp_path / "run", INVERT)
