"""`dinv adopt`: images of another method are judged as ours are; no test image is taken, none lost or mislabelled."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from coloured_images import COLOURS, SIDE, picture, write_data
from command_line import dinv
from contents import content, rows_of
from harness import TRAIN, Bench, write_images
from image_files import Pixels, save
from PIL import Image
from toy import toy_images

from diffusion_inversion.config.commands import ExportSettings, PushSettings
from diffusion_inversion.config.sampling import AdoptSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import resize
from diffusion_inversion.data.tables import class_label_metadata
from diffusion_inversion.engine import faults
from diffusion_inversion.errors import ConfigMismatchError, DataError, DiskError, UsageError
from diffusion_inversion.measure.variant_groups import recorded_sources
from diffusion_inversion.run import adoption, stages
from diffusion_inversion.run.adoption import adopt
from diffusion_inversion.run.comparing import compare_runs
from diffusion_inversion.run.export.publish import write_publication
from diffusion_inversion.run.export.stage import export
from diffusion_inversion.run.few_shot.additions import open_extra
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.methods import images_made, images_store, require_images
from diffusion_inversion.run.reporting import report_stage
from diffusion_inversion.run.stages import train_stage
from diffusion_inversion.run.status import Part, status
from diffusion_inversion.run.verify import verify
from diffusion_inversion.train.arms import train_arms
from diffusion_inversion.train.mixing import measure


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """4 images of each class, which have names of training images: red/0.png is another picture in DATA."""
    return write_others(tmp_path / "others")


def write_others(folder: Path, side: int = SIDE) -> Path:
    for place, (name, colour) in enumerate(COLOURS.items()):
        for row in range(4):
            save(folder / name / f"{row}.png", picture(colour, 7000 + 100 * place + row, side))
    return folder


def take(
    data: Path, others: Path, out: Path, image_size: int | None = None, anew: bool = False, **more: Any
) -> dict[str, Any]:
    """Adopt for train/ and test/ of `data`, each named itself: ids of their images begin with the class."""
    settings = DataSettings(data=str(data / "train"), test=str(data / "test"), **more)
    return adopt(out, settings, AdoptSettings(images=str(others), image_size=image_size), anew=anew)


def pixels(path: Path) -> Pixels:
    return np.array(Image.open(path))


def test_arms_are_those_of_the_same_images_in_the_stages_themselves(
    bench: Bench, finished: Path, tmp_path: Path
) -> None:
    made = toy_images(40)
    write_images(tmp_path / "others", made, range(24, 36))
    run, data = tmp_path / "run", DataSettings(data=str(bench.data))
    found = adopt(run, data, AdoptSettings(images=str(tmp_path / "others")))
    assert found["images"] == 12 and found["copies"] == 0
    splits = open_splits(run)
    record = report_stage(run, splits, train_stage(run, splits, TRAIN, "cpu"), TRAIN, f"dinv train {run}")
    assert [*record["arms"]] == ["real", "adopted", "real+adopted"] and record["images"] == "adopted"
    direct = train_arms(
        splits.train, load_images(tmp_path / "others"), splits.test, settings=TRAIN, device="cpu"
    ).accuracies()
    assert [one["accuracies"] for one in record["arms"].values()] == [list(one) for one in direct.values()]
    page = (run / "report.html").read_text()
    assert "Did adopted images help" in page and '<th scope="row">adopt</th>' in page
    assert verify(run).findings == () and verify(run).foreign == ()
    assert status(run).parts == [Part("images", 12, 12), Part("classifiers", 6, 6)]
    assert status(run).state == "finished"
    beside = compare_runs([finished, run])["against"][0]
    assert beside["why"] is None
    assert [one["arm"] for one in beside["comparisons"]] == [
        "real", "adopted - synthetic", "real+adopted - real+synthetic",
    ]  # fmt: skip


def test_rows_say_what_is_known_and_nothing_else(data: Path, others: Path, tmp_path: Path) -> None:
    save(others / "red" / "copy.png", pixels(data / "train" / "red" / "1.png"))
    assert take(data, others, tmp_path / "run")["copies"] == 1
    rows = {row["pool_id"]: row for row in rows_of(tmp_path / "run")}
    assert {*rows} == {path.relative_to(others).as_posix() for path in others.rglob("*.png")}
    for name, row in rows.items():
        assert row["class_name"] == name.split("/")[0] and row["method"] == "adopted"
        assert row["source_id"] == f"{row['class_name']}: {name}" and row["generator"] == "others"
        assert row["partner_id"] == ("red/1.png" if name == "red/copy.png" else row["source_id"])
        stored = pixels(tmp_path / "run" / "synthetic" / row["file_name"])
        assert np.array_equal(stored, pixels(others / name))
        assert b"trainedAlgorithmicMedia" not in (tmp_path / "run" / "synthetic" / row["file_name"]).read_bytes()


def test_labels_go_by_name_whatever_their_order(data: Path, tmp_path: Path) -> None:
    """DATA numbers green 0 and red 1, the table red 0 and green 1."""
    names, images, labels = ["red", "green", "blue"], [], []
    for row in range(6):
        buffer = io.BytesIO()
        Image.fromarray(picture(COLOURS[names[row % 2]], 7000 + row)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
        labels.append(row % 2)
    table = pa.table({"image": images, "label": labels})
    file = tmp_path / "others.parquet"
    pq.write_table(table.replace_schema_metadata(class_label_metadata(names, image="Image")), file)
    take(data, file, tmp_path / "run")
    made = images_made(tmp_path / "run", ("green", "red"))
    brighter = made.images.float().mean((2, 3))[:, :2].argmax(1)  # red or green
    assert torch.equal(made.labels, 1 - brighter) and made.labels.bincount().tolist() == [3, 3]


def test_test_images_are_refused_or_left_out(data: Path, others: Path, tmp_path: Path) -> None:
    planted = pixels(data / "test" / "red" / "0.png")
    save(others / "red" / "exact.png", planted)
    larger = Image.fromarray(planted).resize((64, 64), Image.Resampling.BICUBIC)
    larger.save(others / "red" / "near.jpg", quality=90)
    with pytest.raises(DataError) as caught:
        take(data, others, tmp_path / "run")
    assert str(caught.value) == (
        "others: 2 of its images are test images of test: red/exact.png is red/0.png, red/near.jpg is nearly "
        "red/0.png. Take them out, or leave them out with --drop-test-duplicates, or keep the near ones with "
        "--allow-near-duplicates."
    )
    with pytest.raises(DataError, match="1 of its images are test images"):
        take(data, others, tmp_path / "run", allow_near_duplicates=True)
    assert not list((tmp_path / "run").rglob("*.png"))
    found = take(data, others, tmp_path / "run", drop_test_duplicates=True)
    assert found["images"] == 8 and found["left_out"] == {"test images": 2, "forgotten": 0}
    (others / "red" / "exact.png").unlink()
    assert take(data, others, tmp_path / "near", allow_near_duplicates=True)["images"] == 9


def test_a_test_image_is_found_at_the_side_of_the_arms(data: Path, tmp_path: Path) -> None:
    """DATA has 16 px, the arms 8: what was made has the pixels of a test image there, and no other."""
    others = write_others(tmp_path / "others", side=8)
    small = resize(torch.from_numpy(pixels(data / "test" / "green" / "2.png")).permute(2, 0, 1)[None], 8)[0]
    save(others / "green" / "small.png", small.permute(1, 2, 0).numpy())
    with pytest.raises(DataError, match=r"1 of its images .*: green/small.png is green/2.png\."):
        take(data, others, tmp_path / "run", allow_near_duplicates=True)


def test_the_side_is_datas_or_that_of_the_smallest_image(data: Path, others: Path, tmp_path: Path) -> None:
    large = write_others(tmp_path / "large", side=4 * SIDE)
    assert take(data, large, tmp_path / "a")["side"] == SIDE
    assert take(data, write_others(tmp_path / "small", side=8), tmp_path / "b")["side"] == 8
    assert take(data, large, tmp_path / "c", image_size=8)["side"] == 8
    assert images_made(tmp_path / "c", ("green", "red")).size == 8
    for folder, side, message in ((large, 32, "32: larger than the 16 px of the training images"),
                                  (tmp_path / "small", 12, "12: larger than the 8 px of small")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            take(data, folder, tmp_path / "d", image_size=side)
    with pytest.raises(ConfigMismatchError, match="image_size: was 8, now 16"):
        take(data, large, tmp_path / "c")


def test_classes_are_those_of_data(data: Path, others: Path, tmp_path: Path) -> None:
    for name in ("blue", "grey"):
        save(others / name / "0.png", picture((20, 20, 200), 1))
    with pytest.raises(UsageError, match=r"others: has images of blue, grey, and DATA's classes are green, red\."):
        take(data, others, tmp_path / "run")
    for name in ("blue", "grey"):
        (others / name / "0.png").unlink()
    for path in (others / "green").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"others: no image is left for green\."):
        take(data, others, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.png"))


def test_going_on_adds_what_is_new_and_refuses_what_changed(data: Path, others: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    take(data, others, run)
    before = content(run)
    take(data, others, run)
    assert content(run) == before
    times = {path: path.stat().st_mtime_ns for path in (run / "synthetic").rglob("*.png")}
    save(others / "green" / "new.png", picture(COLOURS["green"], 8000))
    assert take(data, others, run)["images"] == 9
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(list((run / "synthetic").rglob("*.png"))) == 9
    whole = content(run)
    save(others / "red" / "0.png", picture(COLOURS["red"], 8001))
    (others / "red" / "1.png").rename(others / "green" / "1 red.png")
    with pytest.raises(ConfigMismatchError, match="2 of the 9 images that were adopted changed") as caught:
        take(data, others, run)
    assert "red/0.png: other pixels" in str(caught.value) and "red/1.png: gone" in str(caught.value)
    assert content(run) == whole
    take(data, others, run, anew=True)
    take(data, others, tmp_path / "fresh")
    assert rows_of(run) == rows_of(tmp_path / "fresh")


@pytest.mark.parametrize("point", faults.POINTS)
def test_killed_and_resumed_equals_uninterrupted(
    data: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(adoption, "UNIT", 3)  # a constant: several commits of few images
    whole, killed, passed = tmp_path / "whole", tmp_path / "killed", 0
    take(data, others, whole)

    def on_point(name: str) -> None:
        nonlocal passed
        passed += name == point
        if passed in (4, 9) and name == point:
            raise SystemExit(99)  # nothing below catches it

    monkeypatch.setattr(faults, "on_point", on_point)  # the seam of faults: what a kill there leaves on disk
    with pytest.raises(SystemExit):
        take(data, others, killed)
    with pytest.raises(UsageError, match="Run the same `dinv adopt` command again"):
        require_images(killed, open_splits(killed))
    for _ in range(2):
        try:
            take(data, others, killed)
        except SystemExit:
            continue
    assert passed > 4 and content(killed) == content(whole) and verify(killed).findings == ()


def test_a_restart_that_is_refused_deletes_nothing(
    data: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    take(data, others, run)
    before = content(run)
    save(others / "red" / "exact.png", pixels(data / "test" / "red" / "0.png"))
    with pytest.raises(DataError, match="test images"):
        take(data, others, run, anew=True)
    (others / "red" / "exact.png").rename(others / "red" / "2.png")
    with pytest.raises(UsageError, match="larger than"):
        take(data, others, run, image_size=99, anew=True)
    with pytest.raises(UsageError, match="no such"):
        take(data, tmp_path / "none", run, anew=True)
    save(others / "red" / "2.png", picture(COLOURS["red"], 8000))
    save(others / "red" / "new.png", picture(COLOURS["red"], 8001))
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="1 images of 16 px"):
        patch.setattr(stages, "SPARE_BYTES", 10**18)  # a constant: no disk has that room
        take(data, others, run, anew=True)
    assert content(run) == before


def test_an_image_that_is_forgotten_takes_its_copy_along_and_none_of_its_name(
    data: Path, others: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    save(others / "red" / "copy.png", pixels(data / "train" / "red" / "1.png"))
    take(data, others, run)
    assert forget(run, ["train:red/1.png", "train:green/1.png"]).synthetic == 1
    names = set(images_store(run, ("green", "red")).table("pool_id")["pool_id"].to_pylist())
    assert "red/copy.png" not in names and {"red/1.png", "green/1.png"} <= names
    with pytest.raises(UsageError, match="Run the same `dinv adopt` command again"):
        require_images(run, open_splits(run))
    found = take(data, others, run)
    assert found["left_out"] == {"test images": 0, "forgotten": 1} and found["images"] == 8
    require_images(run, open_splits(run))


def test_other_images_of_data_must_be_compared_first(data: Path, others: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    take(data, others, run)
    save(data / "test" / "red" / "later.png", pixels(others / "red" / "0.png"))
    with pytest.raises(UsageError, match=r"others than the adopted ones were compared with.*`dinv adopt`"):
        require_images(run, open_splits(run))
    with pytest.raises(DataError, match=r"red/0.png is red/later.png"):
        take(data, others, run)
    assert take(data, others, run, drop_test_duplicates=True)["images"] == 7
    assert "red/0.png" not in {row["pool_id"] for row in rows_of(run)}
    require_images(run, open_splits(run))


def test_nobody_knows_what_they_were_made_of(data: Path, others: Path, tmp_path: Path) -> None:
    """They have names of training images, whose pictures they are not."""
    run = tmp_path / "run"
    take(data, others, run)
    extra = open_extra(str(run), ("green", "red"), None)
    assert extra.made_from is None and len(extra.rows(())) == 8
    splits, made = open_splits(run), images_made(run, ("green", "red"))
    with pytest.raises(DataError, match="8 of 8 images have no source among the real ones"):
        measure(splits.train, made, "curriculum")
    assert recorded_sources(run / "synthetic") == {}, "each stands alone"
    hidden = tmp_path / "hidden"
    done = export(run, ExportSettings(to="imagefolder", out=hidden))
    assert done.count == 8 and any("8 images of others: none named" in line for line in done.licences)
    text = b"".join(path.read_bytes() for path in hidden.rglob("*") if path.is_file())
    rows = pq.read_table(hidden / "metadata.parquet").to_pylist()
    known = {path.relative_to(others).as_posix() for path in others.rglob("*.png")}
    named = [row[name] for row in rows for name in ("source_id", "partner_id", "pool_id")]
    assert not any(name in value for name in known for value in named) and len({*named}) == 16
    assert all(f": {name}".encode() not in text for name in known) and b"trainedAlgorithmicMedia" not in text
    card = (hidden / "README.md").read_text()
    assert "made by another program and adopted" in card and "Taken from: others." in card and "- synthetic" not in card
    plain = tmp_path / "plain"
    export(run, ExportSettings(to="imagefolder", out=plain, source_ids="plain"))
    assert {row["pool_id"] for row in pq.read_table(plain / "metadata.parquet").to_pylist()} == known
    signed = {"c2pa_certificate": tmp_path / "a.pem", "c2pa_key": tmp_path / "b.pem"}
    with pytest.raises(UsageError, match="nobody knows what made adopted images"):
        export(run, ExportSettings(to="imagefolder", out=tmp_path / "signed", **signed))
    with pytest.raises(UsageError, match="publish them from there"):
        write_publication(run, PushSettings(hub_id="a/b", out=tmp_path / "published"))


def test_the_command_says_what_it_took(data: Path, others: Path, tmp_path: Path) -> None:
    save(others / "red" / "copy.png", pixels(data / "train" / "red" / "1.png"))
    save(others / "red" / "exact.png", pixels(data / "test" / "red" / "0.png"))
    asked = ("adopt", data, others, "--out", tmp_path / "run")
    refused = dinv(*asked)
    assert refused.exit_code == 4 and "red/exact.png is test/red/0.png" in refused.stderr.splitlines()[-1]
    done = dinv(*asked, "--drop-test-duplicates")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"9 images of others in {tmp_path / 'run' / 'synthetic'}, {SIDE} px. Next: dinv train {tmp_path / 'run'}",
        "With exactly the pixels of a training image: 1 of them, which are `real` again.",
        "Left out: 1 test images, 0 forgotten.",
    ]
    again = dinv(*asked, "--drop-test-duplicates", "--restart", "--json")
    assert again.exit_code == 0, (again.output, again.exception)
    found = json.loads(again.stdout)
    assert found["classes"] == {"green": 4, "red": 5} and found["copies"] == 1 and found["licence"] == ""
    inside = dinv("adopt", data, others, "--out", others / "run")
    assert inside.exit_code == 2 and "lies inside the images" in inside.output and not (others / "run").exists()
    vectors = tmp_path / "vectors" / "embeddings"
    vectors.mkdir(parents=True)
    assert "a run of learned vectors" in dinv("adopt", data, others, "--out", vectors.parent).output
