"""Data as people have it beside class folders: lists of files and WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, features

from diffusion_inversion.data.datasets import load_images, load_splits
from diffusion_inversion.data.decode import open_image, shorter_side
from diffusion_inversion.data.sources import open_data
from diffusion_inversion.errors import DataError, DinvError, UsageError

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def picture(path: Path, colour: tuple[int, int, int], side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two images of each colour, in one flat folder, none like another."""
    for name, colour in COLOURS.items():
        for number in range(2):
            value = tuple(min(255, channel + 40 * number) for channel in colour)
            picture(tmp_path / "images" / f"{name}{number}.png", value)  # type: ignore[arg-type]
    return tmp_path


def rows(files: Path) -> list[tuple[str, str]]:
    return [(f"images/{path.name}", path.stem[:-1]) for path in sorted((files / "images").iterdir())]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        comma = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join([comma.join(lines[0]), *(comma.join(line.values()) for line in lines)]) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_list_of_files_gives_each_its_class(files: Path, suffix: str) -> None:
    data = write(files / f"data{suffix}", [{"path": name, "label": label} for name, label in rows(files)])
    images = load_images(data)
    assert images.class_names == ("blue", "green", "red")
    assert images.ids == tuple(name for name, _ in rows(files))
    for id_, label, pixels in zip(images.ids, images.labels.tolist(), images.images, strict=True):
        assert images.class_names[label] in id_
        assert int(pixels[:, 0, 0].argmax()) == ["red", "green", "blue"].index(images.class_names[label])


def test_labels_of_a_csv_stay_text_and_a_split_is_its_own_test(files: Path) -> None:
    lines = [
        {"file_name": name, "class": "007" if label == "red" else "7", "split": "test" if "1" in name else "train"}
        for name, label in rows(files)
    ]
    splits = load_splits(write(files / "data.csv", lines))
    assert splits.how == "own" and splits.train.class_names == ("007", "7")
    assert len(splits.train) == len(splits.test) == 3
    assert all(name.endswith("0.png") for name in splits.train.ids)


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([{"path": "images/red0.png", "label": ""}], "no label"),
        ([{"path": "", "label": "red"}], "names no file"),
        ([{"path": "../elsewhere.png", "label": "red"}], "outside the folder"),
        ([{"path": "images/red0.png", "label": "red"}] * 2, "named by two lines"),
        ([{"path": "images/gone.png", "label": "red"}], "the file is gone"),
        ([{"picture": "images/red0.png", "label": "red"}], "no column file_name or path"),
        ([{"path": "images/red0.png", "note": "red"}], "no column label or class"),
        ([{"path": "images/red0.png", "label": "red", "split": "test"}], "no image whose split is train"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(files: Path, lines: list[dict[str, str]], cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        load_images(write(files / "data.csv", lines))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_columns_that_are_one_but_for_case_and_space_are_refused(files: Path, suffix: str) -> None:
    """The last of them would be taken, whichever was meant."""
    lines = [{"path": name, "Label": "old", " label": label} for name, label in rows(files)]
    with pytest.raises(DataError, match="two columns of one name, label; rename one"):
        load_images(write(files / f"data{suffix}", lines))


def test_labels_of_json_lines_stay_as_they_are_written(files: Path) -> None:
    labels = ["2019-01-01", "2019-01-01T00:00:00", 1, 1.0, True, " 1 "]
    lines = [{"path": name, "label": label} for (name, _), label in zip(rows(files), labels, strict=True)]
    lines[0]["note"] = "x" * 3_000_000  # one line of 3 MB
    data = write(files / "data.jsonl", lines)
    data.write_text("\ufeff" + data.read_text().replace("\n", "\n\n"), encoding="utf-8")
    source, _ = open_data(data, files)
    assert source.class_names == ("1", "2019-01-01", "2019-01-01T00:00:00", "True")
    assert [source.class_names[label] for label in source.labels].count("1") == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"path": "a", "label": "b"}\n{"path"', r"line 2: .*no valid JSON"),
        ('{"path": "a", "label": "b", "label": "c"}', "line 1: no valid JSON .a key twice"),
        ('["a", "b"]', "line 1: no object"),
        ("\n\n", "no line; give one for each image"),
        ('{"path": "a", "label": []}', "several labels"),
    ],
)
def test_json_lines_that_are_none_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        open_data(tmp_path / "data.jsonl", tmp_path)


def test_several_labels_for_an_image_are_refused_by_name(files: Path) -> None:
    data = write(files / "data.jsonl", [{"path": "images/red0.png", "label": ["red", "round"]}])
    with pytest.raises(DataError, match="several labels for an image are not learned here"):
        load_images(data)


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(files: Path, name: str) -> bytes:
    return (files / "images" / f"{name}.png").read_bytes()


def test_shards_give_the_images_beside_their_classes(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        members = []
        for label, name in enumerate(("red", "green", "blue")):
            key = f"some/{name}{number}"
            kind = [(".cls", str(10 * label).encode()), (".json", json.dumps({"label": 10 * label}).encode())][number]
            members += [(f"{key}{kind[0]}", kind[1]), (f"{key}.png", png(files, f"{name}{number}"))]
        shard(folder / f"s-{number}.tar", members)
    images = load_images(folder)
    assert images.class_names == ("0", "10", "20"), "numbers in their order"
    assert images.ids[0] == "s-0/some/red0" and len(images) == 6
    by_files = {path.stem: path for path in (files / "images").iterdir()}
    for id_, pixels in zip(images.ids, images.images, strict=True):
        with Image.open(by_files[id_.rpartition("/")[2]]) as original:
            assert tuple(pixels[:, 0, 0].tolist()) == original.getpixel((0, 0))
    assert torch.equal(load_images(folder / "s-0.tar").images, images.images[:3])


def test_classes_of_one_number_have_one_order(files: Path) -> None:
    """Of a set alone their order would be another one with each process."""
    members = [
        (f"{number}{end}", content)
        for number, label in enumerate(["1", "01", "2", "001", "10"])
        for end, content in ((".cls", label.encode()), (".png", png(files, "red0")))
    ]
    source, _ = open_data(shard(files / "s.tar", members), files)
    assert source.class_names == ("001", "01", "1", "2", "10")


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([("a.png", b"x")], "a sample without a class"),
        ([("a.cls", b"1")], "a sample without an image"),
        ([("a.png", b"x"), ("a.json", b"[")], "a sample without a class"),
        ([("a.png", b"x"), ("a.cls", b"1")], "unreadable"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(tmp_path: Path, members: list[tuple[str, bytes]], cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        load_images(shard(tmp_path / "s.tar", members))


@pytest.mark.parametrize(
    "name", ["data.tar", "data.json", "data.csv", "data.jsonl", "data.yaml", "data.txt", "data.tsv"]
)
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"[" * 100_000, b"a,b\n1\n", b"\x1f\x8b\x08\x00"])
def test_any_bytes_are_refused_with_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DinvError) as refused:
        open_data(tmp_path / name, tmp_path)
    assert name in str(refused.value) and "\n" not in str(refused.value)
    assert isinstance(refused.value, UsageError) == (name == "data.txt")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_avif_is_read_and_too_large_a_one_refused_by_its_header(tmp_path: Path) -> None:
    pixels = torch.randint(256, (4, 4, 3), dtype=torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.avif", quality=100, subsampling="4:4:4")
    read = load_images(tmp_path).images[0].permute(1, 2, 0)
    assert (read.int() - torch.from_numpy(pixels).int()).abs().max() <= 6
    with open_image(tmp_path / "a" / "x.avif") as image:
        image._size = (5000, 5000)  # as a header of that size would make it
        with pytest.raises(DataError, match="AVIF needs 475 MB"):
            shorter_side(image)


def test_a_split_that_plays_no_part_is_said(files: Path) -> None:
    """Images that were meant for the test are not to vanish while others are held out in their place."""

    def data(*splits: str) -> Path:
        lines = [
            {"path": name, "label": label, "split": split}
            for (name, label), split in zip(rows(files), splits, strict=True)
        ]
        return write(files / "data.csv", lines)

    with pytest.raises(DataError, match="split 'dev': 2 lines, which are not used"):
        load_splits(data("train", "train", "train", "train", "dev", "dev"))
    with pytest.raises(DataError, match="1 lines without a split, which are not used"):
        load_splits(data("train", "train", "train", "train", "train", ""))
    found = load_splits(data("train", "test", "train", "test", "extra", "val"))
    assert found.how == "own" and len(found.train) == len(found.test) == 2
    assert ["split 'extra'" in one.cause for one in found.train.problems if "not used" in one.cause] == [True]
    (files / "data.csv").write_text("path,label\n")
    with pytest.raises(DataError, match="no line but the first"):
        load_splits(files / "data.csv")
