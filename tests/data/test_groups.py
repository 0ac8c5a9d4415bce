"""Groups: how they are given, that no split parts one, what is refused, and what file names suggest."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from image_files import noise, save
from PIL import Image

from diffusion_inversion.data.datasets import data_record, load_splits
from diffusion_inversion.data.groups import with_groups
from diffusion_inversion.data.inspection import inspect
from diffusion_inversion.data.listed import Source
from diffusion_inversion.data.selection import Chosen, hold_out
from diffusion_inversion.data.sources import open_data
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.sample.png import encode_png


def of(images: list[tuple[int, int]]) -> Source:
    """A source whose images are (label, group)."""
    ids = tuple(f"{label}/{row}.png" for row, (label, _) in enumerate(images))
    labels = tuple(label for label, _ in images)
    names = tuple("abc")
    return Source(
        "s", ids, labels, names, lambda row: Image.new("RGB", (8, 8)), groups=tuple(f"g{g}" for _, g in images)
    )


def patients(folder: Path, count: int = 6, each: int = 3) -> Path:
    """Class folders of files p<patient>_<number>.png, patients with images of both classes."""
    for patient in range(count):
        for number in range(each):
            save(folder / "ab"[number % 2] / f"p{patient}_{number}.png")
    return folder


IMAGES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=4, max_size=60)


def held(source: Source, share: float, seed: int, chosen: Chosen | None = None) -> tuple[list[int], list[int]]:
    try:
        return hold_out(source, share, seed, chosen)
    except DataError as error:
        assert "none can be held out" in str(error)
        assume(False)
        raise AssertionError from error


@given(IMAGES, st.floats(0.1, 0.6), st.integers(0, 3), st.randoms())
def test_a_hold_out_parts_no_group_and_every_class(
    images: list[tuple[int, int]], share: float, seed: int, order: Any
) -> None:
    source = of(images)
    train, test = held(source, share, seed)
    assert sorted([*train, *test]) == list(range(len(images)))
    assert not {source.groups[row] for row in train} & {source.groups[row] for row in test}
    assert {source.labels[row] for row in train} == {source.labels[row] for row in test} == {*source.labels}
    largest = max(Counter(source.groups).values())
    classes = len({*source.labels})
    assert abs(len(test) - share * len(images)) <= largest * classes, "as near as whole groups of every class get"
    rows = list(range(len(images)))
    order.shuffle(rows)
    turned = replace(
        source,
        ids=tuple(source.ids[row] for row in rows),
        labels=tuple(source.labels[row] for row in rows),
        groups=tuple(source.groups[row] for row in rows),
    )
    assert {turned.ids[row] for row in held(turned, share, seed)[1]} == {source.ids[row] for row in test}


@given(IMAGES, IMAGES, st.integers(0, 3))
def test_groups_stay_on_their_side_where_data_grows(
    first: list[tuple[int, int]], more: list[tuple[int, int]], seed: int
) -> None:
    before = of(first)
    train, test = held(before, 0.3, seed)
    chosen = Chosen(frozenset(before.ids[row] for row in train), frozenset(before.ids[row] for row in test))
    grown = of([*first, *more])
    now_train, now_test = held(grown, 0.3, seed, chosen)
    assert set(train) <= set(now_train) and set(test) <= set(now_test)
    assert not {grown.groups[row] for row in now_train} & {grown.groups[row] for row in now_test}


def test_the_seed_decides_which_groups_are_held_out() -> None:
    source = of([(row % 2, row // 4) for row in range(40)])
    found = {frozenset(source.groups[row] for row in hold_out(source, 0.2, seed)[1]) for seed in range(6)}
    assert len(found) > 3 and all(len(groups) == 2 for groups in found)


def test_groups_of_one_class_are_held_out_class_by_class() -> None:
    source = of([(row // 50, row // 5) for row in range(150)])
    _, test = hold_out(source, 0.2, 0)
    assert Counter(source.labels[row] for row in test) == {0: 10, 1: 10, 2: 10}


@pytest.mark.parametrize("pattern", [r"^(p\d+)_", r"p\d+", r"^([^_]+)"])
def test_a_pattern_on_file_names(tmp_path: Path, pattern: str) -> None:
    splits = load_splits(patients(tmp_path), groups=pattern)
    assert splits.how == "holdout"
    for part in (splits.train, splits.test):
        assert part.groups == tuple(Path(image_id).name.split("_")[0] for image_id in part.ids)
        assert {*part.labels.tolist()} == {0, 1}
    assert not {*splits.train.groups} & {*splits.test.groups} and len({*splits.test.groups}) == 1
    record = data_record(splits)
    assert record["train"]["groups"] == list(splits.train.groups)
    subset = splits.train.subset([2, 0])
    assert subset.groups == (splits.train.groups[2], splits.train.groups[0])


def test_without_groups_nothing_says_so(tmp_path: Path) -> None:
    splits = load_splits(patients(tmp_path))
    assert splits.train.groups == splits.test.groups == ()
    assert "groups" not in data_record(splits)["train"]


def test_limits_take_images_of_the_parts_that_were_made(tmp_path: Path) -> None:
    whole = load_splits(patients(tmp_path, 10), groups="p.")
    few = load_splits(tmp_path, groups="p.", limit=6, test_limit=2, chosen=Chosen(per_class=4))
    assert set(few.train.ids) < set(whole.train.ids) and set(few.test.ids) < set(whole.test.ids)
    assert (len(few.train), len(few.test)) == (6, 2)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_of_the_table_beside_class_folders(tmp_path: Path, kind: str) -> None:
    names = sorted(f"{c}/{i}.png" for c in "ab" for i in range(8))
    scene = {name: int(name[2]) // 2 for name in names}
    for name in names:
        save(tmp_path / name)
    if kind == "csv":
        lines = [f"{name},{scene[name]}" for name in reversed(names)]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,scene", *lines]))
    else:
        table = pa.table({"file_name": names, "scene": [scene[name] for name in names]})
        pq.write_table(table, tmp_path / "metadata.parquet")
    splits = load_splits(tmp_path, groups="scene")
    for part in (splits.train, splits.test):
        assert part.groups == tuple(str(scene[name]) for name in part.ids)
    assert not {*splits.train.groups} & {*splits.test.groups}
    assert splits.train.problems == (), "the table was used"


def table(path: Path, **columns: list[Any]) -> Path:
    count = len(next(iter(columns.values())))
    cells = [encode_png(torch.from_numpy(noise(8, 8, 3)).permute(2, 0, 1)) for _ in range(count)]
    pq.write_table(pa.table({"image": cells, **columns}), path)
    return path


def test_a_column_of_a_parquet_file(tmp_path: Path) -> None:
    # Row 0 has no label and is no image of the source: groups are those of the rows that are.
    path = table(tmp_path / "d.parquet", label=[0, 1] * 6, patient=[row // 3 for row in range(12)])
    splits = load_splits(path, groups="patient")
    for part in (splits.train, splits.test):
        assert part.groups == tuple(str(int(image_id[-6:]) // 3) for image_id in part.ids)
    assert not {*splits.train.groups} & {*splits.test.groups}


@pytest.mark.parametrize("splits", [False, True])
def test_a_column_of_a_list_of_files(tmp_path: Path, splits: bool) -> None:
    lines = [f"{save(tmp_path / f'{row}.png').name},{'ab'[row % 2]},p{row // 4}" for row in range(16)]
    split = ["test" if row >= 8 else "train" for row in range(16)]
    rows = [f"{line},{part}" for line, part in zip(lines, split, strict=True)] if splits else lines
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join([f"path,label,Patient{',split' if splits else ''}", *rows]))
    found = load_splits(listed, groups="patient")
    assert found.how == ("own" if splits else "holdout")
    for part in (found.train, found.test):
        assert part.groups == tuple(f"p{int(image_id.partition('.')[0]) // 4}" for image_id in part.ids)
    assert not {*found.train.groups} & {*found.test.groups}


def test_rows_without_a_label_do_not_shift_the_groups(tmp_path: Path) -> None:
    path = table(tmp_path / "d.parquet", label=[-1, 0, 1, 0, 1], patient=list("xyyzz"))
    source = with_groups(open_data(path, tmp_path)[0], "patient")
    assert source.groups == ("y", "y", "z", "z") and source.ids[0].endswith("1")


def test_a_file_names_images_by_id_or_by_file_name(tmp_path: Path) -> None:
    data = patients(tmp_path / "data")
    lines = ["image,group"] + [f"{file.name},{file.name[1]}" for file in data.rglob("*.png")]
    listed = tmp_path / "groups.csv"
    listed.write_text("\n".join([*lines, "a/p5_0.png,alone", ""]))
    train = load_splits(data, groups=str(listed)).train
    test = load_splits(data, groups=str(listed)).test
    group_of = dict(zip((*train.ids, *test.ids), (*train.groups, *test.groups), strict=True))
    assert group_of["a/p5_0.png"] == "alone" and group_of["b/p5_1.png"] == "5" and group_of["a/p0_2.png"] == "0"


def test_a_file_comes_before_a_column_and_that_before_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = table(tmp_path / "d.parquet", label=[0, 1] * 4, **{"0": list("aabbccdd")})
    source = with_groups(open_source(data), "0")
    assert source.groups == tuple("aabbccdd")  # every file name has a 0 too
    monkeypatch.chdir(tmp_path)
    Path("0").write_text("\n".join(f"{image_id},{row % 2}" for row, image_id in enumerate(source.ids)))
    assert with_groups(open_source(data), "0").groups == tuple("01010101")
    os.remove("0")
    assert with_groups(open_source(data), "[0-9]$").groups == tuple("01234567")


def open_source(path: Path) -> Source:
    return open_data(path, path.parent)[0]


@pytest.mark.parametrize(
    ("groups", "kind", "said"),
    [
        ("(", UsageError, "no regular expression"),
        ("scene", UsageError, "found in none of its file names, such as p0_0.png, p0_2.png"),
        ("p", DataError, "all 18 images are of one group, p;"),
        (r"^(p\d)_[01]", DataError, "6 of 18 images of data have no group (a/p0_2.png, a/p1_2.png, a/p2_2.png, ...)"),
        (r"(x)?p", DataError, "18 of 18 images of data have no group"),
        ("gone/groups.csv", UsageError, "no such file"),
        (r"_([012])", DataError, "class b: its 6 images are of one group, 1, so none can be held out"),
    ],
)
def test_groups_that_cannot_be_are_refused_in_a_line(
    tmp_path: Path, groups: str, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as caught:
        load_splits(patients(tmp_path / "data"), groups=groups)
    assert said in str(caught.value) and "give" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a/p0_0.png\n", "line 1 is no image name and value"),
        (b"a/p0_0.png,x\na/p0_0.png,y\n", "a/p0_0.png has x and y"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"", "18 of 18 images of data have no group"),
    ],
)
def test_a_file_that_is_no_list_of_groups(tmp_path: Path, text: bytes, said: str) -> None:
    listed = tmp_path / "groups.csv"
    listed.write_bytes(text)
    with pytest.raises(DataError) as caught:
        load_splits(patients(tmp_path / "data"), groups=str(listed))
    assert said in str(caught.value) and "give" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_column_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    data = table(tmp_path / "d.parquet", label=[0, 1] * 2, patient=list("aabb"))
    with pytest.raises(UsageError, match="its columns: label, patient"):
        load_splits(data, groups="patients")


def test_cells_without_a_value_are_no_group(tmp_path: Path) -> None:
    data = table(tmp_path / "d.parquet", label=[0, 1] * 2, patient=[1.0, math.nan, None, 2.0])
    with pytest.raises(DataError, match=r"2 of 4 images of d have no group \(train/000001, train/000002\)"):
        load_splits(data, groups="patient")


@pytest.mark.parametrize("how", ["given", "own"])
def test_a_group_in_train_and_test_is_named(tmp_path: Path, how: str) -> None:
    patients(tmp_path / "train", 4)
    patients(tmp_path / "test", 2)
    for file in [*(tmp_path / "test").rglob("p0_*.png")]:
        file.rename(file.with_name(file.name.replace("p0", "p9")))
    data, test = (tmp_path, None) if how == "own" else (tmp_path / "train", tmp_path / "test")
    at = "train/a/p1_0.png" if how == "own" else "a/p1_0.png"
    with pytest.raises(DataError, match=rf"1 group\(s\) in train and test, such as p1 \(.*: {at}; .*a/p1_0.png\)"):
        load_splits(data, test=test, groups=r"p\d")
    found = inspect(str(data), test=None if test is None else str(test), groups=r"p\d")
    assert not found.usable and any("1 group(s) in train and test" in p.cause for p in found.train.problems if p.fatal)
    for file in [*(tmp_path / "test").rglob("p1_*.png")]:
        file.unlink()
    assert load_splits(data, test=test, groups=r"p\d").how == how


@pytest.mark.parametrize(
    ("names", "pattern", "groups"),
    [
        ("scene_{0}#{1}.png", r"^([^#]+)#", 6),
        ("patient{0}_{1}.png", r"^([^_-]+)[_-]", 6),
        ("scan-{0}-slice{1}.png", r"^(\D*\d+)\D+\d", 6),
        ("p{0}s{1}.png", r"^(\D*\d+)\D+\d", 6),
        ("left_case{0}_{1}x.png", r"^(\D*\d+)\D+\d", 6),
        ("scan_of_cam{2}_{1}q{0}.png", r"^(\D*\d+)\D+\d", 3),
    ],
)
def test_inspect_says_which_groups_file_names_suggest(tmp_path: Path, names: str, pattern: str, groups: int) -> None:
    for patient in range(6):
        for number in range(4):
            name = names.format(patient, number, "abcdef"[patient])
            name = names.format(patient, number, patient % 3) if "{2}" in names else name
            save(tmp_path / "ab"[number % 2] / name)
    found = inspect(str(tmp_path))
    (problem,) = found.train.problems
    assert problem.cause.startswith(f"file names suggest {groups} groups, ") and not problem.fatal
    assert f"--groups '{pattern}'" in problem.remedy
    again = inspect(str(tmp_path), groups=pattern)
    assert again.usable and not again.train.problems and again.train.groups + again.test.groups == groups
    assert f"  groups        {again.train.groups}" in again.table()


@pytest.mark.parametrize("name", ["{1:03d}.png", "IMG_{0}{1}.png", "{2}_{0}{1}.png", "{0}{1}_{2}.png"])
def test_names_that_number_images_suggest_nothing(tmp_path: Path, name: str) -> None:
    for label, of_class in enumerate("ab"):
        for number in range(10):
            save(tmp_path / of_class / name.format(label, number, of_class))
    assert inspect(str(tmp_path)).train.problems == ()


def test_inspect_counts_the_suggested_groups_that_are_on_both_sides(tmp_path: Path) -> None:
    patients(tmp_path / "train", 4, 4)
    patients(tmp_path / "test", 5, 4)
    (problem,) = inspect(str(tmp_path)).train.problems
    assert problem.cause == "file names suggest 5 groups, 4 of them in train and test"
