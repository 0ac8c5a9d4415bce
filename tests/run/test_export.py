"""`dinv export`: every format, opened again by the library that it is for, holds what the run has."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from drawn import drawn
from PIL import Image
from typer.testing import CliRunner
from vectors_in_files import files_with_vectors

from diffusion_inversion.cli import app
from diffusion_inversion.config.commands import AuditSettings, ExportSettings, PredictSettings, PushSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.engine import disk
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.errors import DataError, DiskError, UsageError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run.copies import images_digest, settings_of_audit
from diffusion_inversion.run.export.publish import write_publication
from diffusion_inversion.run.export.stage import OF_CLASSIFIERS, OF_IMAGES, Exported, export, new_folder
from diffusion_inversion.run.fidelity.copies import keep_copies_setting
from diffusion_inversion.run.images import read_record
from diffusion_inversion.run.methods import images_made
from diffusion_inversion.run.predict import predict_images
from diffusion_inversion.run.trained import trained
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.train.architectures import build_network


def write(run: Path, to: Any, out: Path, **given: Any) -> Exported:
    """With the names of the run, unless asked for others: test_provenance.py."""
    return export(run, ExportSettings(to=to, out=out, **{"source_ids": "plain", **given}))


@pytest.fixture(scope="module")
def made(finished: Path) -> LabelledImages:
    """The synthetic images as training reads them: ids are names of files, in order."""
    record = read_record(finished)
    assert record is not None
    return images_made(finished, tuple(record["class_names"]))


def source_of(made: LabelledImages, run: Path) -> list[str]:
    table = pq.read_table(run / "synthetic" / "metadata.parquet").to_pylist()
    by_name = {row["file_name"]: row["source_id"] for row in table}
    return [by_name[name] for name in made.ids]


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_parquet_is_a_data_set_whose_labels_have_names(finished: Path, made: LabelledImages, tmp_path: Path) -> None:
    from datasets import ClassLabel, load_dataset

    done = write(finished, "parquet", tmp_path / "out")
    assert (done.count, done.what) == (24, "synthetic images")
    rows = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert isinstance(rows.features["label"], ClassLabel) and tuple(rows.features["label"].names) == made.class_names
    assert rows["label"][:] == made.labels.tolist() and rows["source_id"][:] == source_of(made, finished)
    assert all(torch.equal(pixels(row["image"]), image) for row, image in zip(rows, made.images, strict=True))
    assert {"generator_hash", "guidance_scale", "seed", "variant", "method"} <= set(rows.column_names)
    assert not {"pool_id", "licence", "generator_licence", "clip", "clip_hash", "answers"} & set(rows.column_names)
    file = tmp_path / "out" / "data" / "train-00000-of-00001.parquet"
    again = load_images(file)  # it is DATA too
    assert torch.equal(again.images, made.images) and torch.equal(again.labels, made.labels)
    asked = PredictSettings(images=str(file), out=tmp_path / "p.jsonl", device="cpu")
    assert torch.equal(predict_images(finished, asked).labels, made.labels)


def test_many_images_are_several_parquet_files(
    finished: Path, made: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    monkeypatch.setattr("diffusion_inversion.run.export.parquet._IN_A_FILE", 5_000)
    write(finished, "parquet", tmp_path / "out")
    files = sorted((tmp_path / "out" / "data").iterdir())
    counts = [pq.read_metadata(file).num_rows for file in files]
    assert len(files) > 2 and sum(counts) == 24 and max(counts) - min(counts) <= 1
    rows = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows["label"][:] == made.labels.tolist() and rows["source_id"][:] == source_of(made, finished)


def test_the_runs_own_folder_has_named_labels_too(finished: Path, made: LabelledImages, tmp_path: Path) -> None:
    from datasets import load_dataset

    folder = str(finished / "synthetic")
    rows = load_dataset("imagefolder", data_dir=folder, cache_dir=str(tmp_path / "cache"))["train"]
    assert tuple(rows.features["label"].names) == made.class_names
    assert [made.class_names[label] for label in rows["label"]] == rows["class_name"][:]


def test_imagefolder_is_torchvisions_and_that_of_datasets(finished: Path, made: LabelledImages, tmp_path: Path) -> None:
    from datasets import load_dataset
    from torchvision.datasets import ImageFolder

    write(finished, "imagefolder", tmp_path / "out")
    found = ImageFolder(str(tmp_path / "out"))
    assert tuple(found.classes) == made.class_names and found.targets == made.labels.tolist()
    assert all(torch.equal(pixels(image), ours) for (image, _), ours in zip(found, made.images, strict=True))
    rows = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    by_source = {(row["source_id"], row["variant"]): row for row in rows}
    assert len(by_source) == 24 and tuple(rows.features["label"].names) == made.class_names
    for row in rows:
        assert made.class_names[row["label"]] == row["class_name"]


def test_webdataset_reads_its_tar_files(
    finished: Path, made: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import webdataset

    monkeypatch.setattr("diffusion_inversion.run.export.webdataset._IN_A_SHARD", 10)
    write(finished, "webdataset", tmp_path / "out")
    shards = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    members = []
    for path in shards:
        with tarfile.open(path) as tar:
            members.append(len(tar.getmembers()))
    assert members == [30, 30, 12]
    rows = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "cls", "json"))
    assert [label for _, label, _ in rows] == made.labels.tolist()
    assert [about["source_id"] for _, _, about in rows] == source_of(made, finished)
    assert [about["file_name"] for _, _, about in rows] == list(made.ids)
    assert all(torch.equal(pixels(row[0].convert("RGB")), image) for row, image in zip(rows, made.images, strict=True))
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == list(made.class_names)
    write(finished, "webdataset", tmp_path / "again")
    for path in shards:
        assert Path(path).read_bytes() == (tmp_path / "again" / Path(path).name).read_bytes()


def test_fiftyones_documented_layout(finished: Path, made: LabelledImages, tmp_path: Path) -> None:
    write(finished, "fiftyone", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert set(found) == {"classes", "labels"} and tuple(found["classes"]) == made.class_names
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert [path.stem for path in files] == list(found["labels"])
    assert list(found["labels"].values()) == made.labels.tolist()
    assert all(torch.equal(pixels(Image.open(path)), ours) for path, ours in zip(files, made.images, strict=True))


def test_pycocotools_reads_the_categories(finished: Path, made: LabelledImages, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    write(finished, "coco-classification", tmp_path / "out")
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    names = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    assert sorted(names.values()) == sorted(made.class_names)
    for row, number in enumerate(sorted(coco.getImgIds())):
        (image,), (note,) = coco.loadImgs(number), coco.loadAnns(coco.getAnnIds(imgIds=number))
        assert names[note["category_id"]] == made.class_names[int(made.labels[row])]
        opened = Image.open(tmp_path / "out" / image["file_name"])
        assert opened.size == (image["width"], image["height"]) and torch.equal(pixels(opened), made.images[row])


def test_onnxruntime_gives_the_logits_of_the_classifiers(finished: Path, bench: Any, tmp_path: Path) -> None:
    import onnxruntime

    write(finished, "onnx", tmp_path / "out", arm="real")
    assert files_with_vectors(tmp_path / "out", read_embeddings(finished).at()) == []
    found = trained(finished, "real")
    images = torch.rand(7, 3, 16, 16)
    softmax = []
    for seed, classifier in found.by_seed.items():
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"classifier-seed{seed}.onnx")
        for count in (7, 1):  # the batch is dynamic
            (logits,) = session.run(None, {"images": images[:count].numpy()})
            with torch.no_grad():
                assert np.abs(logits - classifier.logits(images[:count]).numpy()).max() < 1e-4
        about = session.get_modelmeta().custom_metadata_map
        assert json.loads(about["class_names"]) == ["cat", "dog"] and about["arm"] == "real"
        assert json.loads(about["image_size"]) == 16 and json.loads(about["sides"]) == [16]
        softmax.append((session, int(about["seed"])))
    # Used as the metadata says, on a file of the data, the graphs give what `dinv predict` gives.
    photograph = next((bench.data / "test" / "dog").iterdir())
    raw = np.asarray(Image.open(photograph), np.float32).transpose(2, 0, 1)[None] / 255
    each = [torch.from_numpy(session.run(None, {"images": raw})[0]).softmax(1) for session, _ in softmax]
    asked = PredictSettings(images=str(photograph), out=tmp_path / "p.csv", arm="real", device="cpu")
    assert torch.allclose(torch.stack(each).mean(0).double(), predict_images(finished, asked).probabilities, atol=1e-4)


def test_safetensors_and_its_json_are_all_that_is_needed(finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    done = write(finished, "safetensors", tmp_path / "out", arm="synthetic")
    assert done.count == 2 and done.what == "classifiers of arm synthetic (as asked for)"
    about = json.loads((tmp_path / "out" / "classifiers.json").read_text())
    found = trained(finished, "synthetic")
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    for name, one in about["files"].items():
        path = tmp_path / "out" / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == one["sha256"]
        network = build_network(about["architecture"], len(about["class_names"]), about["image_size"])
        network.load_state_dict(load_file(path))
        mean, std = (torch.tensor(about[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            logits = network.eval()((images / 255 - mean) / std)
            assert torch.allclose(logits, found.by_seed[one["seed"]](images), atol=1e-6)


def test_a_missing_extra_is_named(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"onnxscript is missing; in a clone: pip install .*\[onnx\]"):
        write(finished, "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", [*OF_CLASSIFIERS, *OF_IMAGES])
def test_a_folder_that_holds_something_is_left_alone(finished: Path, tmp_path: Path, to: str) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something already"):
        write(finished, to, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("out", [".", "link", "nowhere"])
def test_what_no_folder_can_take_the_place_of_is_refused_first(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "within").mkdir()
    monkeypatch.chdir(tmp_path / "empty" / "within")  # the working folder is one of the cases
    Path("../../link").symlink_to(tmp_path / "empty" / "within")
    Path("../../nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"a link, a mount point or the working folder, .* name a folder below it\.$"):
        write(finished, "coco-classification", Path(".") if out == "." else tmp_path / out)
    assert list(Path(".").iterdir()) == []


def test_what_a_killed_export_left_is_deleted_by_the_next_one(tmp_path: Path) -> None:
    killed = new_folder(tmp_path / "out")
    (killed.__enter__() / "half.png").touch()
    with new_folder(tmp_path / "out") as folder:
        (folder / "whole.png").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["out", "out/whole.png"]


@pytest.mark.parametrize("to", OF_IMAGES)
def test_where_every_image_copies_there_is_nothing_to_export(finished: Path, tmp_path: Path, to: str) -> None:
    run = drawn(tmp_path / "run", finished, [("cat", "cat/0.png", {}), ("dog", "dog/0.png", {})])
    asked, names = AuditSettings(), SyntheticStore(run, ("cat", "dog")).table("file_name")["file_name"].to_pylist()
    keep_copies_setting(run, asked)
    audit = {"made_from": {"synthetic": images_digest(run, ("cat", "dog"))}, "settings": settings_of_audit(asked)}
    found = {"copies": {"n": len(names)}, "pairs": [{"file": name} for name in names]}
    Ledger(run).commit_json("audit.json", {**audit, **found})
    with pytest.raises(UsageError, match="nothing to export: no synthetic image is left that does not copy"):
        write(run, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_that_changed_stops_the_export_and_nothing_is_left(run: Path, tmp_path: Path) -> None:
    last = sorted((run / "synthetic").rglob("*.png"))[-1]
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    last.write_bytes(buffer.getvalue())
    (tmp_path / "out").mkdir()  # an empty folder may be filled
    with pytest.raises(DataError, match=r"changed since it was written. `dinv repair"):
        write(run, "parquet", tmp_path / "out")
    last.unlink()
    with pytest.raises(DataError, match="missing"):
        write(run, "imagefolder", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [] and not list(tmp_path.glob(".partial-*"))


def test_there_is_room_or_nothing_is_written(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Full)
    for to in ("webdataset", "safetensors"):
        with pytest.raises(DiskError, match="are free"):
            write(finished, to, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote_and_refuses_what_has_no_meaning(
    finished: Path, run: Path, tmp_path: Path
) -> None:
    def dinv(*words: object) -> Any:
        return CliRunner().invoke(app, ["export", *map(str, words)])

    done = dinv(finished, "--to", "safetensors", "--out", tmp_path / "a", "--json")
    summary = json.loads(done.stdout)
    assert done.exit_code == 0 and (summary["count"], summary["to"]) == (2, "safetensors"), done.output
    done = dinv(finished, "--to", "parquet", "--out", tmp_path / "b")
    assert done.exit_code == 0 and "24 synthetic images as parquet" in done.stdout
    refused = dinv(finished, "--to", "tfrecord", "--out", tmp_path / "c")
    assert refused.exit_code == 2 and "coco-classification" in refused.stderr
    refused = dinv(finished, "--to", "parquet", "--arm", "real", "--out", tmp_path / "c")
    assert refused.exit_code == 2 and "leave it out" in refused.stderr
    (run / "synthetic" / "manifest.jsonl").unlink()
    refused = dinv(run, "--to", "parquet", "--out", tmp_path / "c")
    assert refused.exit_code == 2 and not (tmp_path / "c").exists(), refused.output


@pytest.mark.parametrize("to", ["safetensors", *OF_IMAGES, "push"])  # ONNX: where its graphs are opened
def test_no_file_of_any_format_holds_a_vector(finished: Path, tmp_path: Path, to: str) -> None:
    vectors = read_embeddings(finished).at()
    if to == "push":
        write_publication(finished, PushSettings(hub_id="some/one", out=tmp_path / "out", source_ids="plain"))
    else:
        write(finished, to, tmp_path / "out")
    assert any((tmp_path / "out").rglob("*.*")) and files_with_vectors(tmp_path / "out", vectors) == []


@pytest.mark.parametrize("to", ["parquet", "safetensors"])
def test_vectors_are_written_where_they_are_asked_for(finished: Path, tmp_path: Path, to: str) -> None:
    from safetensors import safe_open

    learned = read_embeddings(finished)
    write(finished, to, tmp_path / "out", with_vectors=True)
    assert files_with_vectors(tmp_path / "out", learned.at()) == ["vectors.safetensors"]
    with safe_open(tmp_path / "out" / "vectors.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("vectors"), learned.at())
        about = json.loads(file.metadata()["embeddings"])
    assert tuple(about["ids"]) == learned.ids and "redraws the training images" in about["note"]


def test_every_export_says_what_became_of_the_vectors(finished: Path, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        found = CliRunner().invoke(app, [*map(str, arguments), "--source-ids", "plain"])
        assert found.exit_code == 0, found.output
        return found.stdout

    left_out = "Learned vectors, which redraw their images, are not in it."
    assert left_out in said("export", finished, "--to", "fiftyone", "--out", tmp_path / "1", "--without-vectors")
    assert left_out in said("push", finished, "some/one", "--out", tmp_path / "2", "--dry-run")
    asked = said("export", finished, "--to", "fiftyone", "--out", tmp_path / "3", "--with-vectors")
    assert "vectors.safetensors redraws the training images" in asked and left_out not in asked
    cards = [(tmp_path / number / "README.md").read_text() for number in "123"]
    assert ["are not here" in card for card in cards] == [True, True, False]
    assert ["vectors.safetensors redraws" in card for card in cards] == [False, False, True]


def test_the_search_for_vectors_finds_them_in_tables_and_text(tmp_path: Path) -> None:
    vectors = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    table = pa.table({"vector": vectors.flatten(1).tolist()}, schema=pa.schema([("vector", pa.list_(pa.float32()))]))
    pq.write_table(table, tmp_path / "table.parquet")
    (tmp_path / "text.json").write_text(json.dumps(vectors.tolist()))
    (tmp_path / "half.bin").write_bytes(b"x" + vectors.half().numpy().tobytes())
    (tmp_path / "others.json").write_text(json.dumps((vectors + 0.1).tolist()))
    assert sorted(files_with_vectors(tmp_path, vectors)) == ["half.bin", "table.parquet", "text.json"]
