"""Parquet files as they are on disk now, whatever their names, and what their cells hold."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import Pixels, noise
from PIL import Image

from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.data.tables import class_of_rows, parquet_file
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.sample.png import encode_png


def png(pixels: Pixels) -> bytes:
    import torch

    return encode_png(torch.from_numpy(pixels.copy()).permute(2, 0, 1))


def write(path: Path, pixels: Pixels, labels: list[Any] | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [row % 2 for row in range(len(pixels))] if labels is None else labels
    pq.write_table(pa.table({"image": [png(value) for value in pixels], "label": labels}), path, **options)
    return path


def same(images: LabelledImages, pixels: Pixels) -> bool:
    return np.array_equal(images.images.permute(0, 2, 3, 1).numpy(), pixels)


@pytest.mark.parametrize("name", ["d[1].parquet", "a*b/d.parquet", "q?.parquet", "{x,y}.parquet", "**/d.parquet"])
def test_a_path_is_no_pattern(tmp_path: Path, name: str) -> None:
    """huggingface/datasets#7468: the neighbours, which the pattern means, are other images."""
    for neighbour in ("d1.parquet", "aXb/d.parquet", "qq.parquet", "x.parquet", "z/d.parquet"):
        write(tmp_path / neighbour, noise(2, 8, 8, 3))
    pixels = noise(4, 8, 8, 3)
    assert same(load_images(write(tmp_path / name, pixels), root=tmp_path / "root"), pixels)


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    """huggingface/datasets#444: of one size and time, as `cp -p` and rsync leave them."""
    path, root = tmp_path / "d.parquet", tmp_path / "root"
    before, after = noise(4, 8, 8, 3), noise(4, 8, 8, 3)
    status = write(path, before).stat()
    assert same(load_images(path, root=root), before)
    write(path, after)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert same(load_images(path, root=root), after)
    path.write_bytes(os.urandom(100))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=r"d\.parquet: cannot be read"):
        load_images(path, root=root)
    assert not root.exists()  # nothing is copied, so nothing has to be writable, or forgotten


@pytest.mark.parametrize("row_group_size", [1, 7, 100])
def test_rows_in_any_order(tmp_path: Path, row_group_size: int) -> None:
    from diffusion_inversion.data.sources import open_data

    pixels = noise(50, 8, 8, 3)
    source, _ = open_data(write(tmp_path / "d.parquet", pixels, row_group_size=row_group_size), tmp_path)
    for row in (0, 1, 40, 3, 3, 49, 17, 18, 0, 33, *range(50), *range(49, -1, -1)):
        with source.open(row) as image:
            assert np.array_equal(np.asarray(image), pixels[row]), row


def test_negative_integers_name_no_class(tmp_path: Path) -> None:
    """huggingface/datasets#5624: -1 is how data sets mark what has no label."""
    path = write(tmp_path / "d.parquet", noise(4, 8, 8, 3), [0, -1, 1, 0])
    with pytest.raises(DataError, match=r"train/000001 +label -1 names no class .*write the labels as text"):
        load_images(path)
    assert load_images(write(path, noise(2, 8, 8, 3), ["-1", "1"])).class_names == ("-1", "1")


def test_texts_name_classes_as_in_lists_of_files(tmp_path: Path) -> None:
    """The space around a label does not count, and an empty one names no class."""
    path = write(tmp_path / "d.parquet", noise(4, 8, 8, 3), ["cat", " cat", "dog ", "dog"])
    source = parquet_file(path, "train")
    assert source.class_names == ("cat", "dog") and source.labels == (0, 0, 1, 1) and source.problems == ()
    assert class_of_rows(path) == ("cat", "cat", "dog", "dog")
    path = write(tmp_path / "d.parquet", noise(3, 8, 8, 3), ["cat", "", " "])
    source = parquet_file(path, "train")
    assert source.class_names == ("cat",) and source.ids == ("train/000000",)
    assert [(one.file, one.cause, one.fatal) for one in source.problems] == [
        (f"train/00000{row}", "label '' names no class", True) for row in (1, 2)
    ]
    assert class_of_rows(path) == ("cat", None, None)


def test_cells_that_hold_no_image_say_what_they_hold(tmp_path: Path) -> None:
    path, pixels = tmp_path / "d.parquet", noise(2, 8, 8, 3)
    images = [png(value) for value in pixels]

    def refused(column: list[Any], match: str) -> None:
        pq.write_table(pa.table({"image": column, "label": list(range(len(column)))}), path)
        with pytest.raises(DataError, match=match):
            load_images(path)

    refused([base64.b64encode(image).decode() for image in images], r"base64 text.*base64\.b64decode")
    refused(["data:image/png;base64," + base64.b64encode(images[0]).decode()] * 2, "base64 text")
    refused([[image, image] for image in images], r"column image holds a list in every cell.*one row for each image")
    refused([value.tolist() for value in pixels], "column image holds a list in every cell")
    refused([1, 2], "column image holds int64, no image; store PNG or JPEG bytes")
    refused([images[0], None], "the cell holds no image")
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), path)
    with pytest.raises(DataError, match=r"d\.parquet: a table without rows"):
        load_images(path)


def test_files_beside_the_table_and_none_elsewhere(tmp_path: Path) -> None:
    pixels = noise(2, 8, 8, 3)
    for place in ("data/x.png", "outside.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[0]).save(tmp_path / place)
    path = tmp_path / "data" / "d.parquet"
    cells = [{"bytes": None, "path": "x.png"}, {"bytes": png(pixels[1]), "path": "gone.png"}]
    pq.write_table(pa.table({"image": cells, "label": ["a", "b"]}), path)
    assert same(load_images(path), pixels)
    pq.write_table(pa.table({"image": ["x.png", "../outside.png"], "label": ["a", "b"]}), path)
    with pytest.raises(DataError, match="a path outside the data set"):
        load_images(path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 132\n"


def test_git_lfs_pointers_are_called_so(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(POINTER)
    with pytest.raises(DataError, match=r"d\.parquet: a Git LFS pointer.*git lfs pull"):
        load_images(tmp_path / "d.parquet")
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "x.png").write_bytes(POINTER)
    with pytest.raises(DataError, match=r"a/x\.png +a Git LFS pointer, not the file it stands for +fetch"):
        load_images(tmp_path / "data")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Not the network, and not the data."""
    from diffusion_inversion.errors import DiskError

    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot be written \(.*--root or \$DINV_DATA"):
        load_images("eurosat", root=tmp_path / "file" / "root")
    write(tmp_path / "mnist" / "train.parquet", noise(2, 8, 8, 3))
    with pytest.raises(DiskError, match=r"cannot be written \(.*--root or \$DINV_DATA"):
        load_images(f"hf:{tmp_path}/mnist", root=tmp_path / "file" / "root")


def test_a_folder_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mnist" / "train.parquet", noise(2, 8, 8, 3))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"hf:mnist: mnist lies in the working folder.*write \./mnist"):
        load_images("hf:mnist", root=tmp_path / "root")
    with pytest.raises(UsageError, match=r"\* in a path is a pattern"):
        load_images(f"hf:{tmp_path}/mn*st", root=tmp_path / "root")
