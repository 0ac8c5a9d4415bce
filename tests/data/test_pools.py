"""Pools: what is listed, in which order, with which licence, and that nothing is read before it is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import Pixels, noise, save
from PIL import Image

from diffusion_inversion.data.decode import decode_rgb
from diffusion_inversion.data.loose import open_loose
from diffusion_inversion.data.pools import Pool, open_pool
from diffusion_inversion.data.sources import open_data
from diffusion_inversion.errors import DataError, UsageError


def encoded(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def table(path: Path, pictures: list[Pixels], **columns: list[Any]) -> Path:
    cells = [{"bytes": encoded(picture), "path": None} for picture in pictures]
    pq.write_table(pa.table({"image": cells, **columns}), path, row_group_size=2)
    return path


def pixels_of(pool: Pool, row: int) -> Pixels:
    with pool.source.open(row) as image:
        return decode_rgb(image)[0]


def test_a_folder_is_listed_at_any_depth_without_links_and_hidden_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = save(tmp_path / "pool" / "b" / "deep" / "1.png")
    save(tmp_path / "pool" / "a.png")
    save(tmp_path / "pool" / ".hidden" / "2.png")
    (tmp_path / "pool" / "notes.txt").write_text("no image")
    (tmp_path / "pool" / "link.png").symlink_to(first)
    pool = open_pool(str(tmp_path / "pool"), tmp_path)
    assert pool.source.ids == ("a.png", "b/deep/1.png") and len(pool) == 2 and pool.name == "pool"
    assert [pool.licence_of(row) for row in range(2)] == ["", ""]
    assert np.array_equal(pixels_of(pool, 1), np.asarray(Image.open(first)))
    assert "note: pool: link.png: symbolic link, left out; put a copy" in capsys.readouterr().err
    (tmp_path / "pool" / "b" / "folder").symlink_to(tmp_path)
    for name in ("0001", "0002.5"):
        (tmp_path / "pool" / name).write_bytes(first.read_bytes())
    for source in (
        open_pool(str(tmp_path / "pool"), tmp_path).source,
        open_loose(str(tmp_path / "pool"), (), tmp_path),
    ):
        assert source.ids == ("a.png", "b/deep/1.png")
        assert [(one.file, one.cause, one.fatal) for one in source.problems] == [
            ("b/folder", "symbolic link, left out, and 1 more like it", False),
            ("0001", "an image without a suffix that is known, left out, and 1 more like it", False),
        ]
    assert len(capsys.readouterr().err.splitlines()) == 2 * 2


@pytest.mark.parametrize("column", ["licence", "license"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_licences_of_a_folder_lie_beside_file_names(tmp_path: Path, column: str, kind: str) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / "pool" / name)
    path = tmp_path / "pool" / f"metadata.{kind}"
    if kind == "csv":
        path.write_text(f'file_name,{column}\nb.png,"CC BY 4.0, with a comma"\nc.png,\n', encoding="utf-8")
    else:
        pq.write_table(pa.table({"file_name": ["b.png", "c.png"], column: ["CC BY 4.0, with a comma", None]}), path)
    pool = open_pool(str(tmp_path / "pool"), tmp_path)
    assert [pool.licence_of(row) for row in range(3)] == ["", "CC BY 4.0, with a comma", ""]


def test_a_table_needs_no_labels_and_many_are_one_pool(tmp_path: Path) -> None:
    pictures = [noise(8, 8, 3) for _ in range(7)]
    alone = table(tmp_path / "alone.parquet", pictures[:3], licence=["CC0", None, "MIT"])
    pool = open_pool(str(alone), tmp_path)
    assert pool.source.ids == ("pool/000000", "pool/000001", "pool/000002")
    assert [pool.licence_of(row) for row in range(3)] == ["CC0", "", "MIT"]
    (tmp_path / "many").mkdir()
    table(tmp_path / "many" / "1.parquet", pictures[:5])
    table(tmp_path / "many" / "2.parquet", pictures[5:], license=["CC0", "MIT"])
    pool = open_pool(str(tmp_path / "many"), tmp_path)
    assert len(pool) == 7 and pool.source.ids[4:6] == ("1.parquet/000004", "2.parquet/000000")
    assert [pool.licence_of(row) for row in (0, 5, 6)] == ["", "CC0", "MIT"]
    for row in (6, 0, 4, 5, 2):  # back and forth over row groups and files
        assert np.array_equal(pixels_of(pool, row), pictures[row])


def test_a_hub_data_set_without_labels(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    pictures = [noise(8, 8, 3) for _ in range(3)]
    table(folder / "train-00000-of-00001.parquet", pictures, license=["CC0", "MIT", ""])
    pool = open_pool(f"hf:{folder}", tmp_path / "root")
    assert pool.source.ids == ("train/000000", "train/000001", "train/000002")
    assert pool.licence_of(1) == "MIT" and np.array_equal(pixels_of(pool, 2), pictures[2])


def test_the_listing_depends_on_the_ids_alone(tmp_path: Path) -> None:
    listings = set()
    for name, files in (("one", "ab"), ("other", "ab"), ("more", "abc")):
        for file in files:
            save(tmp_path / name / f"{file}.png")
        listings.add(open_pool(str(tmp_path / name), tmp_path).listing)
    assert len(listings) == 2


def test_the_listing_of_a_table_tells_another_table_of_as_many_rows(tmp_path: Path) -> None:
    listings = set()
    for pictures in ([noise(8, 8, 3), noise(8, 8, 3)], [noise(8, 8, 3), noise(9, 8, 3)]):
        for _ in range(2):
            table(tmp_path / "pool.parquet", pictures)
            listings.add(open_pool(tmp_path / "pool.parquet", tmp_path).listing)
    assert len(listings) == 2, "the ids are numbers"


def test_what_is_no_pool_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no table")
    for pool, error, message in (
        ("", UsageError, "--pool: empty"),
        (str(tmp_path / "none"), UsageError, "no such folder"),
        (str(tmp_path / "empty"), DataError, "no images"),
        (str(tmp_path / "text.parquet"), DataError, "text.parquet"),
    ):
        with pytest.raises(error, match=message) as raised:
            open_pool(pool, tmp_path)
        assert "\n" not in str(raised.value)
    save(tmp_path / "pool" / "a.png")
    (tmp_path / "pool" / "metadata.csv").write_bytes(b"file_name,licence\n\xff,x\n")
    with pytest.raises(DataError, match=r"metadata\.csv"):
        open_pool(str(tmp_path / "pool"), tmp_path)


@pytest.mark.parametrize("look", [open_pool, open_data, lambda name, root: open_loose(name, (), root)])
def test_a_home_that_nobody_has_is_said(look: Callable[[str, Path], object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="~nobody-here/pool: no home folder is known for its ~"):
        look("~nobody-here/pool", tmp_path)
