"""DATA in all its forms, subsets and splits that no test image leaks out of."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from diffusion_inversion import datasets, sources
from diffusion_inversion.datasets import data_record, load_images, load_splits
from diffusion_inversion.errors import DataError, UsageError

RNG = np.random.default_rng(0)
Pixels = NDArray[np.uint8]


def noise(*shape: int) -> Pixels:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: Pixels | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(8, 8, 3) if pixels is None else pixels).save(path)
    return path


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for row in range(count):
            save(root / name / f"{row:03d}.png")
    return root


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
    save(tmp_path / "b/tiny.png", noise(2, 9, 3))
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
        ("b/t3.png", "same pixels as a/t1.png, under another label"),
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
    (tmp_path / "x.csv").touch()
    with pytest.raises(UsageError, match="a file that is not"):
        load_images(tmp_path / "x.csv")


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


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any), st.integers(0, 60), st.data())
def test_limit_is_an_equal_share_whatever_the_order(counts: list[int], extra: int, data: st.DataObject) -> None:
    total, used = sum(counts), sum(1 for count in counts if count)
    limit = used + extra
    plain = source(counts)
    rows = datasets._stratified(plain, limit, 7)
    taken = Counter(plain.labels[row] for row in rows)
    assert len(rows) == min(limit, total)
    assert rows == sorted(set(rows))
    # Equal share as far as possible: a class gets less than another only where it has no more, or by the remainder.
    largest = max(taken.values())
    assert all(taken[label] >= min(count, largest - 1) for label, count in enumerate(counts))

    order = data.draw(st.permutations(range(total)))
    shuffled = source(counts, order)
    chosen = {shuffled.ids[row] for row in datasets._stratified(shuffled, limit, 7)}
    assert chosen == {plain.ids[row] for row in rows}
    assert set(rows) <= set(datasets._stratified(plain, limit + 1, 7))


def test_limit_depends_on_the_seed() -> None:
    plain = source([50, 50])
    assert datasets._stratified(plain, 10, 0) != datasets._stratified(plain, 10, 1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.floats(0.05, 0.95), st.integers(0, 5))
def test_hold_out_parts_every_class(counts: list[int], share: float, seed: int) -> None:
    plain = source(counts)
    train, test = datasets._hold_out(plain, share, seed)
    assert sorted([*train, *test]) == list(range(sum(counts)))
    held = Counter(plain.labels[row] for row in test)
    for label, count in enumerate(counts):
        assert held[label] == (0 if count == 1 else min(max(round(share * count), 1), count - 1))


def test_hold_out_of_a_folder(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 10})
    splits = load_splits(tmp_path, holdout=0.3, seed=3)
    assert splits.how == "holdout"
    assert splits.test.labels.bincount().tolist() == [6, 3]
    assert not set(splits.train.ids) & set(splits.test.ids) and len(splits.train) == 21
    again = load_splits(tmp_path, holdout=0.3, seed=3, limit=4, test_limit=2)
    assert set(again.train.ids) < set(splits.train.ids) and set(again.test.ids) < set(splits.test.ids)
    assert again.train.labels.tolist() == [0, 0, 1, 1]
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


# Parquet and hub, written by `datasets` itself


def write_parquet(path: Path, labels: Sequence[Any], names: list[str] | None, pixels: Pixels | None = None) -> Path:
    import datasets as hf

    pixels = noise(len(labels), 8, 8, 3) if pixels is None else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = hf.ClassLabel(names=names) if names else hf.Value("string" if isinstance(labels[0], str) else "int64")
    features = hf.Features({"image": hf.Image(), "label": kind})
    table = {"image": [Image.fromarray(value) for value in pixels], "label": list(labels)}
    hf.Dataset.from_dict(table, features=features).to_parquet(path)
    return path


def test_parquet_with_class_names(tmp_path: Path) -> None:
    pixels = noise(4, 8, 8, 3)
    train = write_parquet(tmp_path / "pets.parquet", [1, 0, 1, 0], ["dog", "cat"], pixels)
    images = load_images(train, root=tmp_path / "root")
    assert images.name == "pets"
    assert images.ids == ("train/000000", "train/000001", "train/000002", "train/000003")
    assert images.class_names == ("dog", "cat")
    assert images.labels.tolist() == [1, 0, 1, 0]
    assert np.array_equal(images.images.permute(0, 2, 3, 1).numpy(), pixels)


def test_parquet_test_set_is_renumbered_to_the_training_classes(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", [0, 1, 1], ["dog", "cat"])
    test = write_parquet(tmp_path / "test.parquet", ["cat", "dog", "dog"], None)
    splits = load_splits(train, test=test, root=tmp_path / "root")
    assert splits.test.class_names == ("dog", "cat")
    assert splits.test.labels.tolist() == [1, 0, 0]
    assert splits.test.ids[0] == "test/000000"


def test_parquet_integer_labels_are_sorted_as_numbers(tmp_path: Path) -> None:
    images = load_images(write_parquet(tmp_path / "x.parquet", [10, 2, 10], None), root=tmp_path / "root")
    assert images.class_names == ("2", "10")
    assert images.labels.tolist() == [1, 0, 1]


def test_parquet_problems(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"train/000001.*label -1"):
        load_images(write_parquet(tmp_path / "unlabelled.parquet", [0, -1, 1], ["a", "b"]), root=root)
    vacant = load_images(write_parquet(tmp_path / "vacant.parquet", [0, 2], ["a", "b", "c"]), root=root)
    assert [problem.file for problem in vacant.problems] == ["train: class b"]
    cut = write_parquet(tmp_path / "cut.parquet", [0, 1], ["a", "b"])
    cut.write_bytes(cut.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"cut\.parquet: cannot be read"):
        load_images(cut, root=root)


def test_parquet_without_the_columns(tmp_path: Path) -> None:
    import datasets as hf

    hf.Dataset.from_dict({"picture": [1], "label": [0]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column image or img among picture, label"):
        load_images(tmp_path / "x.parquet", root=tmp_path / "root")


def test_hub_data_set_with_its_own_split(tmp_path: Path) -> None:
    """A local folder laid out as a hub repository goes through the same `load_dataset`."""
    repository = tmp_path / "pets"
    write_parquet(repository / "data/train-00000-of-00001.parquet", [0, 1, 1, 0], ["dog", "cat"])
    write_parquet(repository / "data/test-00000-of-00001.parquet", [1, 0], ["dog", "cat"])
    splits = load_splits(f"hf:{repository}", root=tmp_path / "root")
    assert splits.how == "own"
    assert (len(splits.train), len(splits.test)) == (4, 2)
    assert splits.test.ids == ("test/000000", "test/000001")
    assert splits.test.labels.tolist() == [1, 0]
    with pytest.raises(UsageError, match="no id"):
        load_images("hf:@main")


# Built-in data sets, on tiny files laid out as their libraries lay them out


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def same_pixels(images: Any, expected: Pixels) -> bool:
    """expected (N, H, W) or (N, H, W, 3)."""
    rgb = expected if expected.ndim == 4 else np.repeat(expected[..., None], 3, axis=3)
    return np.array_equal(images.images.permute(0, 2, 3, 1).numpy(), rgb)


def test_digits_are_scaled_and_parted() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    splits = load_splits("digits", limit=100)
    assert splits.how == "holdout"
    assert splits.train.labels.bincount().tolist() == [10] * 10
    assert splits.train.class_names == tuple("0123456789")
    row = int(splits.train.ids[0].removeprefix("train/"))
    assert splits.train.labels[0] == digits.target[row]
    assert np.allclose(splits.train.images[0, 0].numpy() / 255, digits.images[row] / 16, atol=0.5 / 255)
    train, test = load_images("digits"), load_images("digits", split="test")
    assert len(train) + len(test) == 1797
    assert not set(train.ids) & set(test.ids)
    assert test.ids == splits.test.ids


def test_elpv_threshold_and_licence() -> None:
    elpv = pytest.importorskip("elpv_dataset", reason="extra demo is not installed")
    folder = Path(elpv.__file__).parent / "data"
    table = [line.split() for line in (folder / "labels.csv").read_text().splitlines()]
    splits = load_splits("elpv", size=32, limit=20, test_limit=20)
    assert splits.train.class_names == ("functional", "defective")
    assert splits.train.native_size == 300
    assert splits.train.labels.tolist().count(1) == 10
    for part in (splits.train, splits.test):
        assert "CC BY-NC-SA 4.0" in part.licence
        rows = [int(id_.removeprefix("train/")) for id_ in part.ids]
        assert part.labels.tolist() == [int(float(table[row][1]) >= 0.5) for row in rows]
        with Image.open(folder / table[rows[0]][0]) as image:
            assert abs(part.images[0].float().mean() - np.asarray(image).mean()) < 1


def idx(values: Pixels) -> bytes:
    return b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape) + values.tobytes()


@pytest.mark.parametrize("packed", [True, False], ids=["debian", "torchvision"])
def test_fashion_mnist(tmp_path: Path, packed: bool) -> None:
    raw = tmp_path / ("debian" if packed else "root/FashionMNIST/raw")
    raw.mkdir(parents=True)
    labels = np.arange(10, dtype=np.uint8)
    pixels = {stem: noise(10, 28, 28) for stem in ("train", "t10k")}
    for stem, value in pixels.items():
        for kind, array in ((f"{stem}-images-idx3-ubyte", value), (f"{stem}-labels-idx1-ubyte", labels)):
            if packed:
                (raw / f"{kind}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (raw / kind).write_bytes(idx(array))
    train, test = sources._fashion_mnist(tmp_path / "root", debian=tmp_path / "debian")
    assert test is not None
    assert train.class_names[9] == "Ankle boot" and train.labels[9] == 9
    assert same_pixels(datasets._load(train, range(10), None), pixels["train"])
    assert same_pixels(datasets._load(test, range(10), None), pixels["t10k"])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if name == "cifar10" else CIFAR100
    key = "labels" if name == "cifar10" else "fine_labels"
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pixels = noise(10, 3, 32, 32)
    sums: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    parts = {"train_list": ("first", slice(0, 6)), "test_list": ("second", slice(6, 10))}
    for attribute, (file, rows) in parts.items():
        labels = list(range(10))[rows]
        (folder / file).write_bytes(pickle.dumps({"data": pixels[rows].reshape(-1, 3072), key: labels}))
        sums[attribute].append([file, md5(folder / file)])
    names = [f"class {label}" for label in range(10)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: names}))
    # torchvision checks the sums of the real files.
    for attribute, value in sums.items():
        monkeypatch.setattr(kind, attribute, value)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / kind.meta["filename"])})

    train, test = load_images(name, root=tmp_path), load_images(name, split="test", root=tmp_path)
    assert train.class_names == tuple(names)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5] and test.labels.tolist() == [6, 7, 8, 9]
    assert same_pixels(train, pixels[:6].transpose(0, 2, 3, 1))
    assert same_pixels(test, pixels[6:].transpose(0, 2, 3, 1))
    assert test.ids[0] == "test/000000"


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    names = [f"class {label}" for label in range(10)]
    (folder / "class_names.txt").write_text("\n".join(names))
    pixels = {split: noise(10, 96, 96, 3) for split in ("train", "test")}
    for split, value in pixels.items():
        value.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # stored channel, column, row
        np.arange(1, 11, dtype=np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "unlabeled_X.bin").touch()
    for attribute in ("train_list", "test_list"):
        files = [file for file, _ in getattr(STL10, attribute)]
        monkeypatch.setattr(STL10, attribute, [[file, md5(folder / file)] for file in files])

    splits = load_splits("stl10", root=tmp_path)
    assert splits.how == "own"
    assert splits.train.labels.tolist() == list(range(10))
    assert same_pixels(splits.train, pixels["train"])
    assert same_pixels(splits.test, pixels["test"])


def test_imagenette(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n01440764", "n03888257"):
            save(tmp_path / "imagenette2-320" / split / wnid / "x.JPEG", noise(40, 50, 3))
    splits = load_splits("imagenette", root=tmp_path)
    assert splits.how == "own"
    assert splits.train.class_names == ("tench", "parachute")
    assert splits.test.ids == ("val/n01440764/x.JPEG", "val/n03888257/x.JPEG")
    assert splits.train.native_size == 40


def test_eurosat(tmp_path: Path) -> None:
    class_folders(tmp_path / "eurosat/2750", {"Forest": 5, "River": 5})
    splits = load_splits("eurosat", root=tmp_path)
    assert splits.how == "holdout"
    assert splits.train.class_names == ("Forest", "River")
    assert splits.test.labels.bincount().tolist() == [1, 1]
    assert load_images("eurosat", split="test", root=tmp_path).ids == splits.test.ids


@pytest.mark.parametrize(
    ("name", "shape"), [("pathmnist", (28, 28, 3)), ("dermamnist", (28, 28, 3)), ("bloodmnist", (28, 28, 3))]
)
def test_medmnist(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    medmnist = pytest.importorskip("medmnist", reason="extra medmnist is not installed")
    count = len(medmnist.INFO[name]["label"])
    arrays: dict[str, Any] = {f"{split}_images": noise(count, *shape) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.arange(count, dtype=np.uint8)[:, None] for split in ("train", "val", "test")}
    np.savez(tmp_path / f"{name}.npz", **arrays)
    splits = load_splits(name, root=tmp_path)
    assert splits.how == "own"
    assert splits.train.class_names[0] == medmnist.INFO[name]["label"]["0"]
    assert splits.train.labels.tolist() == list(range(count))
    assert same_pixels(splits.train, arrays["train_images"])
    assert same_pixels(splits.test, arrays["test_images"])
    assert splits.train.licence == medmnist.INFO[name]["license"]

    (tmp_path / f"{name}.npz").write_bytes(b"half a download")
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        load_images(name, root=tmp_path)


@pytest.mark.parametrize(
    ("data", "module", "extra"), [("pathmnist", "medmnist", "medmnist"), ("elpv", "elpv_dataset", "demo")]
)
def test_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: str, module: str, extra: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # what Python does for a package that cannot be imported
    with pytest.raises(UsageError, match=rf"pip install 'diffusion-inversion\[{extra}\]'"):
        load_images(data, root=tmp_path)


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINV_DATA", str(tmp_path))
    class_folders(tmp_path / "eurosat/2750", {"Forest": 5, "River": 5})
    assert len(load_images("eurosat")) == 8


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
