"""Class folders of synthetic images have the names of the classes, so that both sort alike (DIGITS#836)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from harness import INVERT, SAMPLE, Bench
from image_files import noise, save

from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.data.datasets import load_images, load_splits
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.measure.measuring import measure
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.synthetic import SyntheticStore, read_synthetic

# "defect type 1" goes behind "defect-x" once it is renamed.
NAMES = ("Ünï (new)", "defect type 1", "defect-x", "ok+")


@pytest.fixture
def odd(bench: Bench, tmp_path: Path) -> Path:
    for name in NAMES:
        for row in range(4):
            save(tmp_path / "data" / name / f"{row} a.png", noise(32, 32, 3))
    run = tmp_path / "run"
    pipeline.invert_stage(run, open_splits(run, DataSettings(data=str(tmp_path / "data"))), bench.generator(), INVERT)
    pipeline.sample_stage(run, bench.generator(), SAMPLE)
    return run


def test_synthetic_folders_are_those_of_the_data(odd: Path) -> None:
    from torchvision.datasets import ImageFolder

    real, synthetic = ImageFolder(str(odd.parent / "data")), ImageFolder(str(odd / "synthetic"))
    assert real.class_to_idx == synthetic.class_to_idx
    splits = load_splits(odd / "synthetic", test=odd.parent / "data", size=16, allow_near_duplicates=True)
    assert {*splits.train.class_names} == {*NAMES}
    found = measure(odd.parent / "data", odd / "synthetic", k=3, size=16)
    assert set(found.per_class) == {*NAMES} and not any("one side" in warning for warning in found.warnings)


def test_a_run_of_an_earlier_version_keeps_its_folders(bench: Bench, odd: Path) -> None:
    manifest = odd / "synthetic" / "manifest.jsonl"
    store = Manifest(manifest)
    records = [
        {**record, "files": {name.replace("defect type 1/", "defect_type_1-41f9a4/"): digest
                             for name, digest in record["files"].items()}} if "files" in record else record
        for record in store.records()
    ]  # fmt: skip
    store.rewrite(records)
    (odd / "synthetic" / "defect type 1").rename(odd / "synthetic" / "defect_type_1-41f9a4")
    next((odd / "synthetic" / "defect_type_1-41f9a4").glob("*.png")).unlink()
    discard(odd, verify(odd))
    pipeline.sample_stage(odd, bench.generator(), SAMPLE.model_copy(update={"variants": 3}))
    folders = {path.name for path in (odd / "synthetic").iterdir() if path.is_dir()}
    assert folders == {"Ünï (new)", "defect_type_1-41f9a4", "defect-x", "ok+"}
    assert len(read_synthetic(odd, read_embeddings(odd).class_names)) == 3 * len(read_embeddings(odd))


def test_a_class_that_no_folder_can_be_called_is_still_the_same_class(tmp_path: Path) -> None:
    images = load_images("digits", limit=40)
    images = replace(images, class_names=("T-shirt/top", *images.class_names[1:]))
    store = SyntheticStore(tmp_path, images.class_names)
    rows = [
        dict.fromkeys(("partner_id", "source_version", "partner_version"), "x")
        | {"source_id": i, "variant": 0, "label": k, "guidance_scale": 1.0, "inversion_step": 1, "partner_label": k,
           "label_weight": 1.0, "generator_hash": "0" * 64}
        for i, k in zip(images.ids, images.labels.tolist(), strict=True)
    ]  # fmt: skip
    store.commit(images.images, rows)
    from diffusion_inversion.data.selection import with_classes
    from diffusion_inversion.data.sources import open_data

    drawn, _ = open_data(store.folder, tmp_path)
    numbered = with_classes(drawn, replace(drawn, class_names=images.class_names, labels=(), ids=()))
    assert numbered.class_names == images.class_names
    for image_id, label in zip(numbered.ids, numbered.labels, strict=True):
        assert (label == 0) == image_id.startswith("T-shirt_top-")
