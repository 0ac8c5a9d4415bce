"""Objects in boxes of COCO and YOLO: what is cut out, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.sources import open_data
from diffusion_inversion.errors import DataError

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0)}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path


def coco(files: Path, **changes: Any) -> Path:
    """Two pictures with a red and a green object each, at known places."""
    for number in range(2):
        image = Image.new("RGB", (40, 30), (10 * number, 10, 10))
        image.paste(COLOURS["red"], (2, 3, 12, 13))
        image.paste(COLOURS["green"], (20, 5, 32, 21))
        (files / "photos").mkdir(exist_ok=True)
        image.save(files / "photos" / f"{number}.png")
    content: dict[str, Any] = {
        "images": [{"id": 7 + n, "file_name": f"photos/{n}.png", "width": 40, "height": 30} for n in range(2)],
        "categories": [{"id": 9, "name": "green"}, {"id": 3, "name": "red"}],
        "annotations": [
            {"id": 10 * n + k, "image_id": 7 + n, "category_id": category, "bbox": bbox, "iscrowd": 0}
            for n in range(2)
            for k, (category, bbox) in enumerate([(3, [2, 3, 10, 10]), (9, [20, 5, 12, 16])])
        ],
    }
    path = files / "coco.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_objects_of_coco_are_cropped_to_their_boxes(files: Path) -> None:
    source, test = open_data(coco(files), files)
    assert test is None and source.class_names == ("red", "green"), "in the order of the categories' numbers"
    assert source.ids == ("photos/0.png#0", "photos/0.png#1", "photos/1.png#10", "photos/1.png#11")
    for row, label in enumerate(source.labels):
        with source.open(row) as crop:
            name = source.class_names[label]
            assert crop.size == ((10, 10) if name == "red" else (12, 16))
            assert crop.getcolors() == [(crop.width * crop.height, COLOURS[name])], "nothing of what is around it"


@pytest.mark.parametrize(
    ("annotation", "cause"),
    [
        ({"bbox": [1, 1, 0, 5]}, "a box of 0 x 5"),
        ({"bbox": [38, 3, 10, 10]}, "a box with 2 x 10 px of its picture"),
        ({"category_id": 4}, "its image or category is not in the file"),
        ({"image_id": 4}, "its image or category is not in the file"),
        ({"bbox": [1, 1, 5]}, "no COCO annotations of boxes"),
        ({"bbox": [1, 1, 5, float("inf")]}, "no COCO annotations of boxes"),
    ],
)
def test_a_box_that_is_none_is_named(files: Path, annotation: dict[str, Any], cause: str) -> None:
    whole = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 3, 10, 10]}
    with pytest.raises(DataError, match=cause):
        load_images(coco(files, annotations=[whole | annotation]))


@pytest.mark.parametrize("sides", [(30, 40), (80, 60)])
def test_a_box_of_a_picture_that_was_turned_or_scaled_since_is_refused(files: Path, sides: tuple[int, int]) -> None:
    """Its numbers are px of the picture as it was annotated; of this one they cut something else."""
    images = [{"id": 7 + n, "file_name": f"photos/{n}.png"} for n in range(2)]
    changed = images[0] | {"width": sides[0], "height": sides[1]}
    found = rf"{sides[0]} x {sides[1]} px by the annotations, which has 40 x 30"
    with pytest.raises(DataError, match=found):
        load_images(coco(files, images=[changed, images[1]]))
    assert len(load_images(coco(files, images=images))) == 4, "where no size is named, none is asked for"


def test_ids_of_coco_that_occur_twice_are_refused(files: Path) -> None:
    """The last of two would take the labels of the first."""
    image = {"id": 7, "file_name": "photos/0.png"}
    for changes, said in (
        ({"images": [image, {"id": 7, "file_name": "photos/1.png"}]}, "two images of id 7"),
        ({"categories": [{"id": 3, "name": "red"}, {"id": 3, "name": "green"}]}, "two categories of id 3"),
        (
            {"annotations": [{"id": 1, "image_id": 7, "category_id": c, "bbox": [2, 3, 10, 10]} for c in (3, 9)]},
            "two annotations of id photos/0.png#1",
        ),
    ):
        with pytest.raises(DataError, match=said):
            open_data(coco(files, **changes), files)


def test_a_crowd_is_left_out_and_said(files: Path) -> None:
    crowd = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [2, 3, 10, 10], "iscrowd": 1}
    source, _ = open_data(coco(files, annotations=[crowd]), files)
    assert source.ids == () and "iscrowd" in source.problems[0].cause and not source.problems[0].fatal


def test_a_picture_that_leads_out_of_the_data_set_is_refused(files: Path) -> None:
    Image.new("RGB", (40, 40), (1, 2, 3)).save(files / "secret.png")
    (files / "set").mkdir()
    data = coco(files / "set", images=[{"id": 7, "file_name": "../secret.png"}])
    with pytest.raises(DataError, match="outside the data set"):
        load_images(data)


def yolo(files: Path, names: Any = ("red", "green")) -> Path:
    coco(files)
    for split, number in (("train", 0), ("val", 1)):
        folder = files / split / "images"
        folder.mkdir(parents=True)
        (files / "photos" / f"{number}.png").rename(folder / f"{number}.png")
        (files / split / "labels").mkdir()
        # Centre and sides as shares: (2, 3) to (12, 13), and (20, 5) to (32, 21), of 40 x 30 px.
        lines = [f"0 {7 / 40} {8 / 30} {10 / 40} {10 / 30}", "", f"1 {26 / 40} {13 / 30} {12 / 40} {16 / 30}"]
        (files / split / "labels" / f"{number}.txt").write_text("\n".join(lines) + "\n")
    path = files / "data.yaml"
    listed = list(names) if isinstance(names, tuple) else names
    path.write_text(json.dumps({"train": "../train/images", "val": "val/images", "names": listed}))  # JSON is YAML
    return path


@pytest.mark.parametrize("names", [("red", "green"), {"0": "red", "1": "green"}])
def test_objects_of_yolo_are_the_same_as_those_of_coco(files: Path, names: Any) -> None:
    path = yolo(files)
    if isinstance(names, dict):
        path.write_text("train: train/images\nval: val/images\nnames:\n  0: red\n  1: green\n")
    train, test = open_data(path, files)
    assert test is not None and train.class_names == test.class_names == ("red", "green")
    assert train.ids == ("train/images/0.png#1", "train/images/0.png#3")
    for source in (train, test):
        for row, label in enumerate(source.labels):
            name = source.class_names[label]
            with source.open(row) as crop:
                assert crop.size == ((10, 10) if name == "red" else (12, 16))
                assert crop.getcolors() == [(crop.width * crop.height, COLOURS[name])]


@pytest.mark.parametrize(
    "line", ["2 .5 .5 .2 .2", "0 .5 .5 .2", "red .5 .5 .2 .2", "0 .5 .5 inf .2", "0.5 .5 .5 .2 .2"]
)
def test_a_line_of_yolo_that_is_no_box_is_named(files: Path, line: str) -> None:
    path = yolo(files)
    (files / "train" / "labels" / "0.txt").write_text(line)
    train, _ = open_data(path, files)
    assert train.ids == () and train.problems[0].fatal and line in train.problems[0].cause


def test_pictures_in_subfolders_have_their_labels_in_the_same_ones(files: Path) -> None:
    path = yolo(files)
    inner = files / "train" / "images" / "monday"
    inner.mkdir()
    (files / "train" / "labels" / "monday").mkdir()
    (files / "val" / "images" / "0.png").write_bytes((files / "train" / "images" / "0.png").read_bytes())
    (files / "train" / "images" / "0.png").rename(inner / "0.png")
    (files / "train" / "labels" / "0.txt").rename(files / "train" / "labels" / "monday" / "0.txt")
    train, _ = open_data(path, files)
    assert train.ids == ("train/images/monday/0.png#1", "train/images/monday/0.png#3") and train.problems == ()
    with train.open(0) as crop:
        assert crop.getcolors() == [(100, COLOURS["red"])]
    (inner / "0.png").rename(inner / "0.heic")
    (files / "train" / "labels" / "classes.txt").write_text("red\ngreen\n")
    (files / "train" / "images" / "linked").symlink_to(files / "photos")
    train, _ = open_data(path, files)
    said = {one.file: (one.cause, one.fatal) for one in train.problems if "class without" not in one.cause}
    assert said.pop("train/labels/monday/0.txt") == ("labels without an image, not used", False)
    assert said.pop("train/images/linked")[1] and not said


@pytest.mark.parametrize(
    "text",
    [
        "train: [",
        "made: 2024-13-45\ntrain: .\nnames: [a]\n",
        "names: [a]\n",
        "train: nowhere\nnames: [a, b]\n",
        "- a\n",
        "train: .\nnames: [a, a]\n",
    ],
)
def test_a_yaml_that_is_no_data_set_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml.*(give|correct it there|put )"):
        open_data(tmp_path / "data.yaml", tmp_path)
