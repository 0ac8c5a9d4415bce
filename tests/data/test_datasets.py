"""Class folders, subsets, splits that no test image leaks out of, and their record."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import class_folders, noise, save
from PIL import Image

from diffusion_inversion.data import selection, sources
from diffusion_inversion.data.datasets import data_record, load_images, load_splits
from diffusion_inversion.errors import DataError, UsageError

# Folders


def test_folder_is_read_in_order_with_its_pixels(tmp_path: Path) -> None:
    pixels = {f"{c}/{i}.png": noise(8, 8, 3) for c in "ba" for i in range(2)}
    for name, value in pixels.items():
        save(tmp_path / name, value)
    images = load_images(tmp_path)
    assert images.name == tmp_path.name
    assert images.ids == ("a/0.png", "a/1.png", "b/0.png", "b/1.png")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.class_names == ("a", "b")
    assert images.problems == ()
    for id_, image in zip(images.ids, images.images, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[id_])


def test_native_size_is_the_smallest_and_size_overrides_it(tmp_path: Path) -> None:
    save(tmp_path / "a/0.png", noise(12, 30, 3))
    save(tmp_path / "a/1.png", noise(20, 20, 3))
    save(tmp_path / "b/0.png", noise(40, 16, 3))
    images = load_images(tmp_path)
    assert (images.size, images.native_size) == (12, 12)
    resized = load_images(tmp_path, size=6)
    assert (resized.size, resized.native_size) == (6, 12)
    assert resized.hashes == images.hashes


def test_native_size_is_capped(tmp_path: Path) -> None:
    save(tmp_path / "a/0.png", noise(600, 700, 3))
    images = load_images(tmp_path)
    assert (images.size, images.native_size) == (512, 600)


def test_one_tiny_image_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3})
    save(tmp_path / "b/tiny.png", noise(2, 3, 3))
    images = load_images(tmp_path)
    assert images.size == 2
    assert [problem.file for problem in images.problems] == ["b/tiny.png"]
    assert load_images(tmp_path, size=8).problems == ()


def test_all_unusable_files_come_at_once(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2})
    whole = save(tmp_path / "c/cut.jpg", noise(64, 64, 3)).read_bytes()
    (tmp_path / "c/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c/void.png").touch()
    save(tmp_path / "loose.png")
    save(tmp_path / "a/deep/x.png")
    (tmp_path / "a/note.txt").touch()
    with pytest.raises(DataError) as caught:
        load_images(tmp_path)
    text = str(caught.value)
    assert "4 files cannot be used" in text
    assert all(name in text for name in ("c/cut.jpg", "c/void.png", "loose.png", "a/deep/x.png", "truncated"))
    assert "note.txt" not in text


def test_lesser_problems_ride_along(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a/._000.png").touch()
    twin = noise(8, 8, 3)
    save(tmp_path / "a/t1.png", twin)
    save(tmp_path / "a/t2.png", twin)
    save(tmp_path / "b/t3.png", twin)
    images = load_images(tmp_path)
    assert {(p.file, p.cause) for p in images.problems} == {
        ("a/._000.png", "hidden or system file, not used"),
        ("a/t2.png", "same pixels as a/t1.png"),
        ("b/t3.png", "conflicting labels: same pixels as a/t1.png, labelled a, this is labelled b"),
    }
    assert "b/t3.png" in images.ids


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folder_with_its_own_split(tmp_path: Path, test_name: str) -> None:
    class_folders(tmp_path / "train", {"a": 3, "b": 2})
    class_folders(tmp_path / test_name, {"a": 1, "b": 2})
    class_folders(tmp_path / "spare", {"a": 1})
    splits = load_splits(tmp_path)
    assert splits.how == "own"
    assert splits.train.ids[0] == "train/a/000.png" and len(splits.train) == 5
    assert splits.test.ids == (f"{test_name}/a/000.png", f"{test_name}/b/000.png", f"{test_name}/b/001.png")
    assert [problem.file for problem in splits.train.problems] == ["spare"]
    assert load_images(tmp_path, split="test").ids == splits.test.ids


def test_test_goes_before_val(tmp_path: Path) -> None:
    for name in ("train", "test", "val"):
        class_folders(tmp_path / name, {"a": 1, "b": 1})
    splits = load_splits(tmp_path)
    assert splits.test.ids[0] == "test/a/000.png"
    assert [problem.file for problem in splits.train.problems] == ["val"]


def test_train_and_test_may_be_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, {"bus": 2, "test": 2, "train": 2})
    assert load_images(tmp_path).class_names == ("bus", "test", "train")


def test_empty_folder_and_missing_split_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        load_images(tmp_path)
    class_folders(tmp_path, {"a": 2, "b": 1})
    with pytest.raises(DataError, match="no test split"):
        load_images(tmp_path, split="test")


def test_one_class_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one class, a"):
        load_splits(class_folders(tmp_path, {"a": 5}))


@pytest.mark.parametrize(
    "arguments", [{"size": 0}, {"limit": 0}, {"test_limit": -1}, {"holdout": 0.0}, {"holdout": 1.0}, {"limit": 1}]
)
def test_wrong_arguments_are_usage_errors(tmp_path: Path, arguments: dict[str, Any]) -> None:
    class_folders(tmp_path, {"a": 4, "b": 4})
    with pytest.raises(UsageError, match=next(iter(arguments))):
        load_splits(tmp_path, **arguments)


def test_unknown_data_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Did you mean cifar10\?.*eurosat"):
        load_images("cifar-10")
    (tmp_path / "x.xls").touch()
    with pytest.raises(UsageError, match="no kind of file that is read"):
        load_images(tmp_path / "x.xls")


# Subsets and hold-outs


def source(counts: Sequence[int], order: Sequence[int] | None = None) -> sources.Source:
    pairs = [(f"{label}/{row}", label) for label, count in enumerate(counts) for row in range(count)]
    pairs = [pairs[row] for row in order] if order is not None else pairs
    return sources.Source(
        "toy",
        tuple(id_ for id_, _ in pairs),
        tuple(label for _, label in pairs),
        tuple(f"c{label}" for label in range(len(counts))),
        lambda row: Image.new("L", (8, 8)),
    )


@pytest.mark.parametrize("balanced", [False, True])
@given(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any), st.integers(0, 60), st.data())
def test_limit_is_a_fair_share_whatever_the_order(
    balanced: bool, counts: list[int], extra: int, data: st.DataObject
) -> None:
    total, used = sum(counts), sum(1 for count in counts if count)
    limit = used + extra
    plain = source(counts)
    rows = selection.stratified(plain, limit, 7, balanced=balanced)
    taken = Counter(plain.labels[row] for row in rows)
    assert len(rows) == min(limit, total)
    assert rows == sorted(set(rows))
    assert all(taken[label] for label, count in enumerate(counts) if count)
    if balanced:
        # Equal share as far as possible: a class gets less than another only where it has no more, or by the remainder.
        largest = max(taken.values())
        assert all(taken[label] >= min(count, largest - 1) for label, count in enumerate(counts))
    else:
        # Of two classes, moving one image from the better to the worse served never makes their shares more equal.
        for a, b in itertools.permutations([label for label, count in enumerate(counts) if count], 2):
            if taken[a] > 1 and taken[b] < counts[b]:
                assert (2 * taken[a] - 1) / counts[a] <= (2 * taken[b] + 1) / counts[b] + 1e-9

    order = data.draw(st.permutations(range(total)))
    shuffled = source(counts, order)
    chosen = {shuffled.ids[row] for row in selection.stratified(shuffled, limit, 7, balanced=balanced)}
    assert chosen == {plain.ids[row] for row in rows}
    assert set(rows) <= set(selection.stratified(plain, limit + 1, 7, balanced=balanced))


def test_a_subset_has_the_proportions_of_its_classes() -> None:
    """Those of elpv: 1,116 functional cells and 508 defective ones."""
    plain = source([1116, 508])
    kept = [plain.labels[row] for row in selection.stratified(plain, 200, 0)]
    assert Counter(kept) == {0: 137, 1: 63}
    even = [plain.labels[row] for row in selection.stratified(plain, 200, 0, balanced=True)]
    assert Counter(even) == {0: 100, 1: 100}


def test_equal_classes_are_chosen_alike_by_either_rule() -> None:
    """So the runs of earlier versions on such data, CIFAR-10 for one, go on as they were."""
    plain = source([30, 30, 30])
    for limit in (3, 17, 60, 89):
        assert selection.stratified(plain, limit, 0) == selection.stratified(plain, limit, 0, balanced=True)


def test_what_was_chosen_stays_whatever_the_rule() -> None:
    plain = source([40, 10])
    even = selection.stratified(plain, 16, 0, balanced=True)
    ids = frozenset(plain.ids[row] for row in even)
    assert selection.stratified(plain, 16, 0, chosen=ids) == even
    assert set(even) < set(selection.stratified(plain, 30, 0, chosen=ids))


def test_no_class_has_more_than_the_limit_of_a_class(tmp_path: Path) -> None:
    plain = source([40, 10, 3])
    rows = selection.first_of_classes(plain, 5, 0, range(53))
    assert Counter(plain.labels[row] for row in rows) == {0: 5, 1: 5, 2: 3}
    assert set(rows) <= set(selection.first_of_classes(plain, 6, 0, range(53)))
    class_folders(tmp_path, {"a": 30, "b": 10})
    rule = selection.Chosen(per_class=4)
    splits = load_splits(tmp_path, holdout=0.5, chosen=rule)
    assert splits.train.labels.bincount().tolist() == [4, 4]
    assert splits.test.labels.bincount().tolist() == [15, 5]  # the test keeps all
    assert load_splits(tmp_path, holdout=0.5, limit=5, chosen=rule).train.labels.bincount().tolist() == [3, 2]
    with pytest.raises(UsageError, match="per_class=0"):
        load_splits(tmp_path, chosen=selection.Chosen(per_class=0))


def test_the_test_keeps_its_proportions_where_the_training_is_even(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 40, "b": 20})
    splits = load_splits(tmp_path, holdout=0.5, limit=12, test_limit=9, chosen=selection.Chosen(balanced=True))
    assert splits.train.labels.bincount().tolist() == [6, 6]
    assert splits.test.labels.bincount().tolist() == [6, 3]


def test_a_licence_is_given_where_data_names_none(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, {"a": 4, "b": 4})
    assert load_splits(folder).train.licence == ""
    given = load_splits(folder, licence="ask the clinic")
    assert data_record(given)["licence"] == "ask the clinic"
    known = load_splits("digits", limit=20, licence="CC BY 4.0")  # its own, in other words
    assert known.train.licence == "CC-BY-4.0"
    with pytest.raises(UsageError, match=r"--licence MIT: DATA digits names its own, CC-BY-4\.0\. Leave --licence out"):
        load_splits("digits", limit=20, licence="MIT")


def test_limit_depends_on_the_seed() -> None:
    plain = source([50, 50])
    assert selection.stratified(plain, 10, 0) != selection.stratified(plain, 10, 1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.floats(0.05, 0.95), st.integers(0, 5))
def test_hold_out_parts_every_class(counts: list[int], share: float, seed: int) -> None:
    plain = source(counts)
    train, test = selection.hold_out(plain, share, seed)
    assert sorted([*train, *test]) == list(range(sum(counts)))
    held = Counter(plain.labels[row] for row in test)
    for label, count in enumerate(counts):
        assert held[label] == (0 if count == 1 else min(max(round(share * count), 1), count - 1))


def test_a_hold_out_grows_with_its_data_and_moves_no_image() -> None:
    before, after = source([10, 10]), source([50, 10])
    parts = [frozenset(before.ids[row] for row in part) for part in selection.hold_out(before, 0.2, 0)]
    train, test = (
        {after.ids[row] for row in part} for part in selection.hold_out(after, 0.2, 0, selection.Chosen(*parts))
    )
    assert train >= parts[0] and test >= parts[1] and len(parts[1]) == 4
    new = test - parts[1]
    assert len(test) == 12 and not new & {*before.ids}, "a fifth of each class again, of images that came alone"


def test_hold_out_of_a_folder(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 10})
    splits = load_splits(tmp_path, holdout=0.3, seed=3)
    assert splits.how == "holdout"
    assert splits.test.labels.bincount().tolist() == [6, 3]
    assert not set(splits.train.ids) & set(splits.test.ids) and len(splits.train) == 21
    again = load_splits(tmp_path, holdout=0.3, seed=3, limit=4, test_limit=2)
    assert set(again.train.ids) < set(splits.train.ids) and set(again.test.ids) < set(splits.test.ids)
    assert again.train.labels.tolist() == [0, 0, 0, 1]
    assert load_splits(tmp_path, holdout=0.3, seed=4).test.ids != splits.test.ids


def test_only_the_subset_is_decoded(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 9, "b": 9})
    chosen = load_images(tmp_path, limit=4).ids
    for file in tmp_path.glob("*/*.png"):
        if file.relative_to(tmp_path).as_posix() not in chosen:
            file.write_bytes(b"damaged")
    assert load_images(tmp_path, limit=4).ids == chosen
    with pytest.raises(DataError, match="14 files"):
        load_images(tmp_path)


# Train and test apart


def parted(tmp_path: Path) -> tuple[Path, Path]:
    train = class_folders(tmp_path / "one", {"a": 3, "b": 3})
    test = class_folders(tmp_path / "two", {"a": 3, "b": 4})
    return train, test


def test_given_test_set_is_used_whole_at_the_training_size(tmp_path: Path) -> None:
    train, test = parted(tmp_path)
    save(test / "a/big.png", noise(20, 20, 3))
    splits = load_splits(train, test=test)
    assert splits.how == "given"
    assert (len(splits.train), len(splits.test)) == (6, 8)
    assert splits.test.size == splits.train.size == 8
    with pytest.raises(UsageError, match="DATA itself"):
        load_splits(train, test=f"{train}/")


def test_duplicates_across_the_splits_name_both_files(tmp_path: Path) -> None:
    train, test = parted(tmp_path)
    for row in range(3):
        for name in "ab":  # as BMP: the same pixels in another file format
            with Image.open(train / name / f"{row:03d}.png") as image:
                image.save(test / name / f"copy{row}.bmp")
    with pytest.raises(DataError) as caught:
        load_splits(train, test=test)
    text = str(caught.value)
    assert "6 test image(s)" in text and "... and 1 more" in text and "--drop-test-duplicates" in text
    assert "two: a/copy0.bmp  =  one: a/000.png" in text

    splits = load_splits(train, test=test, drop_duplicates=True)
    assert len(splits.train) == 6 and len(splits.test) == 7
    assert not set(splits.train.hashes) & set(splits.test.hashes)
    assert ("b/copy2.bmp", "same pixels as training image b/002.png, left out of test") in {
        (problem.file, problem.cause) for problem in splits.test.problems
    }


def test_duplicates_across_a_hold_out_are_refused(tmp_path: Path) -> None:
    for name, pixels in (("a", noise(8, 8, 3)), ("b", noise(8, 8, 3))):
        for row in range(6):
            save(tmp_path / name / f"{row}.png", pixels)
    with pytest.raises(DataError, match="pixels of a training image"):
        load_splits(tmp_path)
    with pytest.raises(DataError, match="every test image"):
        load_splits(tmp_path, drop_duplicates=True)


def test_class_names_must_agree(tmp_path: Path) -> None:
    train = class_folders(tmp_path / "one", {"cat": 2, "dog": 2})
    test = class_folders(tmp_path / "two", {"cat": 2, "hound": 2})
    with pytest.raises(DataError, match=r"cat, dog; two tests on cat, hound"):
        load_splits(train, test=test)


def test_problems_of_both_parts_come_at_once(tmp_path: Path) -> None:
    train, test = parted(tmp_path)
    (train / "a/000.png").write_bytes(b"x")
    (test / "a/000.png").write_bytes(b"x")
    with pytest.raises(DataError, match="2 files") as caught:
        load_splits(train, test=test)
    assert f"{test}: a/000.png" in str(caught.value)


# The record


def test_record_is_json_and_names_every_image(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 6, "b": 6})
    (tmp_path / ".hidden").touch()
    splits = load_splits(tmp_path, holdout=0.5)
    record = json.loads(json.dumps(data_record(splits)))
    assert record["name"] == tmp_path.name and record["how"] == "holdout"
    assert record["class_names"] == ["a", "b"]
    for part, images in (("train", splits.train), ("test", splits.test)):
        assert record[part]["ids"] == list(images.ids)
        assert record[part]["hashes"] == list(images.hashes)
        assert record[part]["labels"] == images.labels.tolist()
    assert [problem["file"] for problem in record["train"]["problems"]] == [".hidden"]
    assert record["test"]["problems"] == []
