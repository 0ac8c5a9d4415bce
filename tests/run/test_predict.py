"""`dinv predict`: the same answers as when the run was tested, for any images, in any of its formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from harness import INVERT, TRAIN, Bench
from image_files import save
from PIL import Image
from toy import toy_images
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.config.commands import PredictSettings
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.predict import Predictions, predict_images
from diffusion_inversion.train.classifiers import Classifier

SAMPLE = SampleSettings(variants=1, inference_steps=1, batch_size=6, image_size=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that are not square, of two sizes: loaded at 16 px, trained on at 8."""
    root, images = tmp_path_factory.mktemp("data"), toy_images(20, size=24)
    for row, image in enumerate(images.images):
        part, name = "train" if row < 8 else "test", images.class_names[int(images.labels[row])]
        pixels = image.permute(1, 2, 0).numpy()
        save(root / part / name / f"{row}.png", pixels[:16, :20] if row % 3 else pixels)
    return root


@pytest.fixture(scope="module")
def small(bench: Bench, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on them."""
    run = tmp_path_factory.mktemp("small") / "run"
    pipeline.run_all(
        run, DataSettings(data=str(data)), bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN,
        command="dinv run data",
    )  # fmt: skip
    return run


def ask(run: Path, images: object, out: Path, **given: Any) -> Predictions:
    return predict_images(run, PredictSettings(images=str(images), out=out, device="cpu", **given))


def recorded(run: Path, arm: str) -> torch.Tensor:
    """(n, 2): the mean over seeds of the probabilities that a run of two classes recorded of its test images."""
    found = []
    for one in Manifest(run / "classifiers" / "manifest.jsonl").units().values():
        if one["arm"] == arm:
            answers, sure = torch.tensor(one["predictions"]), torch.tensor(one["confidences"], dtype=torch.float64)
            second = torch.where(answers == 1, sure, 1 - sure)
            found.append(torch.stack([1 - second, second], 1))
    assert len(found) == 2
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("arm", ["real", "synthetic", "real+synthetic", "real (own size)"])
def test_test_images_get_the_answers_that_the_run_recorded(small: Path, data: Path, tmp_path: Path, arm: str) -> None:
    done = ask(small, data / "test", tmp_path / "p.csv", arm=arm, batch_size=5)
    ids = json.loads((small / "data.json").read_text())["test"]["ids"]
    assert [f"test/{name}" for name in done.files] == ids
    assert (done.probabilities - recorded(small, arm)).abs().max() < 2e-4  # four decimal places are recorded
    assert torch.allclose(done.probabilities.sum(1), torch.ones(12, dtype=torch.float64))
    assert (done.tested, done.learned) == (12, 0)


def test_all_of_data_is_what_was_learned_and_what_was_tested(small: Path, data: Path, tmp_path: Path) -> None:
    done = ask(small, data, tmp_path / "p.csv")
    assert (len(done), done.learned, done.tested, done.labelled) == (20, 8, 12, 20)


def test_accuracy_counts_the_labels_that_are_there_and_what_is_not_abstained_from(
    small: Path, data: Path, tmp_path: Path
) -> None:
    first = ask(small, data / "test", tmp_path / "p.csv")
    right = first.probabilities.argmax(1) == first.labels
    assert first.accuracy == pytest.approx(right.double().mean()) and first.accuracy_kept == first.accuracy
    confidence = first.probabilities.amax(1)
    middle = float(confidence.median())
    some = ask(small, data / "test", tmp_path / "q.csv", abstain_below=middle)
    assert torch.equal(some.abstained, confidence < middle) and 0 < int(some.abstained.sum()) < 12
    assert some.accuracy_kept == pytest.approx(right[confidence >= middle].double().mean())
    with (tmp_path / "q.csv").open() as file:
        assert [row["abstained"] == "true" for row in csv.DictReader(file)] == some.abstained.tolist()


def test_the_three_formats_say_the_same(small: Path, data: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        ask(small, data / "test", tmp_path / f"p.{suffix}", abstain_below=0.6)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert pq.read_table(tmp_path / "p.parquet").to_pylist() == lines
    columns = ["file", "predicted", "confidence", "probability_cat", "probability_dog", "abstained"]
    assert list(rows[0]) == columns and list(lines[0]) == columns
    for row, line in zip(rows, lines, strict=True):
        assert float(row["confidence"]) == line["confidence"] == max(line["probability_cat"], line["probability_dog"])
        assert row["predicted"] == line["predicted"] and line[f"probability_{line['predicted']}"] == line["confidence"]
        assert line["abstained"] == (line["confidence"] < 0.6)


def test_a_table_and_a_folder_of_the_same_images_get_the_same_answers(small: Path, data: Path, tmp_path: Path) -> None:
    files = sorted((data / "test").rglob("*.png"))
    cells = {"image": [path.read_bytes() for path in files], "label": [path.parent.name for path in files]}
    pq.write_table(pa.table(cells | {"label": [*cells["label"][:-1], None]}), tmp_path / "t.parquet")
    pq.write_table(pa.table({"image": cells["image"]}), tmp_path / "unlabelled.parquet")
    loose = tmp_path / "loose" / "a"
    loose.mkdir(parents=True)
    for row, path in enumerate(files):
        (loose / f"{row:02d}.png").write_bytes(path.read_bytes())
    whole = ask(small, data / "test", tmp_path / "p.csv")
    table = ask(small, tmp_path / "t.parquet", tmp_path / "q.csv")
    assert torch.equal(table.labels[:-1], whole.labels[:-1]) and table.labelled == 11
    assert table.files[3] == "t/000003"
    for images in (tmp_path / "unlabelled.parquet", loose.parent):
        other = ask(small, images, tmp_path / "r.csv", overwrite=True)
        assert torch.equal(other.probabilities, whole.probabilities)
        assert other.accuracy is None and other.labelled == 0
    one = ask(small, files[2], tmp_path / "one.csv")
    assert torch.allclose(one.probabilities, whole.probabilities[2:3], atol=1e-6) and one.files == (files[2].name,)


def test_what_cannot_be_read_is_listed_and_the_rest_is_done(small: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    save(folder / "=SUM(A1).png", np.full((9, 30, 3), 90, np.uint8))
    (folder / "cut.png").write_bytes((data / "train" / "cat" / "0.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    done = CliRunner().invoke(app, ["predict", str(small), str(folder), "--out", str(tmp_path / "p.csv"), "--json"])
    summary = json.loads(done.stdout)
    assert done.exit_code == 3 and not summary["ok"], done.output
    assert [one["file"] for one in summary["unreadable"]] == ["cut.png"] and summary["images"] == 1
    assert summary["calibrated"] is False and summary["accuracy"] is None and summary["seeds"] == [0, 1]
    assert "cut.png" in done.stderr and "replace the file" in done.stderr
    with (tmp_path / "p.csv").open() as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["'=SUM(A1).png"]
    (folder / "=SUM(A1).png").unlink()
    with pytest.raises(DataError, match=r"no image can be used. cut\.png: "):
        ask(small, folder, tmp_path / "q.csv")
    assert not (tmp_path / "q.csv").exists()


def test_an_output_is_replaced_only_where_that_is_asked_for(small: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    out.write_text("mine")
    command = ["predict", str(small), str(data / "test"), "--out", str(out)]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr and out.read_text() == "mine"
    done = CliRunner().invoke(app, [*command, "--overwrite"])
    assert done.exit_code == 0, done.output
    assert out.read_text().count("\n") == 13
    said = done.stdout
    assert "12 images by the mean of 2 classifiers of arm real+synthetic (the verdict names none)" in said
    assert "accuracy on the 12 images" in said and "12 of the images are among those that the run was tested on" in said
    with pytest.raises(UsageError, match=r"ends in \.csv, \.jsonl or \.parquet"):
        ask(small, data / "test", tmp_path / "p.xlsx")


def test_nothing_is_guessed(small: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--arm both: not trained .* it has real, synthetic, real\+synthetic, real \("
    ):
        ask(small, data / "test", tmp_path / "p.csv", arm="both")
    with pytest.raises(UsageError, match="IMAGES nowhere: no such folder"):
        ask(small, "nowhere", tmp_path / "p.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images by their suffix"):
        ask(small, tmp_path / "empty", tmp_path / "p.csv")


def test_the_side_of_the_classifier_is_the_one_of_training(small: Path) -> None:
    sides = {path.name.split("-seed")[0]: Classifier.load(path).image_size for path in small.rglob("real*.safetensors")}
    assert sides == {"real": 8, "real+synthetic": 8, "real-own-size": 16}


def test_a_photograph_is_read_upright(small: Path, tmp_path: Path) -> None:
    """EXIF's orientation counts, as it does where a run reads its images."""
    pixels = toy_images(1, size=16).images[0].permute(1, 2, 0).numpy()
    save(tmp_path / "a" / "upright.png", pixels)
    turned = Image.fromarray(np.rot90(pixels))
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees, clockwise, to see it upright
    turned.save(tmp_path / "a" / "turned.png", exif=exif)
    done = ask(small, tmp_path / "a", tmp_path / "p.csv")
    assert torch.allclose(done.probabilities[0], done.probabilities[1], atol=1e-6)
