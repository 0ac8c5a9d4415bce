"""Parquet files, the hub, the built-in data sets, and what DATA names that cannot be read."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import Pixels, class_folders, noise, save
from PIL import Image

from diffusion_inversion.data import datasets, sources
from diffusion_inversion.data.datasets import load_images, load_splits
from diffusion_inversion.errors import DataError, DinvError, UsageError

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


def test_a_hub_data_set_of_several_configs_with_columns_of_its_own(tmp_path: Path) -> None:
    """As `datasets` reads the repository's card; a config, columns and splits are named in DATA."""
    import datasets as hf

    repository, root = tmp_path / "beasts", tmp_path / "root"
    for config, labels in (("small", [0, 1]), ("large", [1, 0, 1])):
        features = hf.Features({"photo": hf.Image(), "species": hf.ClassLabel(names=["cat", "dog"])})
        (repository / config).mkdir(parents=True)
        for seed, split in enumerate(("learn", "exam")):
            pixels = list(np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3), np.uint8))
            table = hf.Dataset.from_dict({"photo": pixels, "species": labels}, features=features)
            table.to_parquet(repository / config / f"{split}.parquet")
    card = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {config}/{split}.parquet\n" for split in ("learn", "exam"))
        for config in ("small", "large")
    )
    (repository / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    columns = "image=photo&label=species&train=learn&test=exam"
    splits = load_splits(f"hf:{repository}?config=large&{columns}", root=root)
    assert splits.train.class_names == ("cat", "dog") and splits.train.labels.tolist() == [1, 0, 1]
    drawn = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    assert same_pixels(splits.train, drawn) and splits.how == "own"
    assert len(load_images(f"hf:{repository}?config=small&{columns}", root=root)) == 2
    with pytest.raises(DataError, match=r"no train split among learn, exam; name one: \?train="):
        load_images(f"hf:{repository}?config=small", root=root)
    with pytest.raises(DataError, match="no split test among"):
        load_splits(f"hf:{repository}?config=small&{columns.replace('exam', 'test')}", root=root)
    with pytest.raises(DataError, match="no column breed among photo, species"):
        load_images(f"hf:{repository}?config=small&image=photo&label=breed&train=learn", root=root)
    for query in ("colour=red", "config=a&config=b", "config=", "nothing"):
        with pytest.raises(UsageError, match="after \\? give each of config, image, label, train, test at most once"):
            load_images(f"hf:{repository}?{query}", root=root)


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
    assert splits.train.labels.tolist().count(1) == 6  # 31 % of the cells, as in the whole
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
    with pytest.raises(UsageError, match=rf"pip install '\.\[{extra}\]'"):
        load_images(data, root=tmp_path)


def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINV_DATA", str(tmp_path))
    class_folders(tmp_path / "eurosat/2750", {"Forest": 5, "River": 5})
    assert len(load_images("eurosat")) == 8


@pytest.mark.parametrize("linked", ["train", "test", "val"])
def test_a_split_that_is_a_link_is_not_replaced_by_another(tmp_path: Path, linked: str) -> None:
    for name in ("train", "test", "val"):
        class_folders(tmp_path / name, {"a": 1, "b": 1})
    (tmp_path / linked).rename(tmp_path / "elsewhere")
    (tmp_path / linked).symlink_to(tmp_path / "elsewhere")
    if linked == "val":  # test/ is there, so it would not be used either way
        assert load_splits(tmp_path).test.ids[0] == "test/a/000.png"
        return
    with pytest.raises(DataError, match=rf"/{linked}: symbolic link to a folder, not followed; put a copy"):
        load_splits(tmp_path)


@pytest.mark.parametrize("entry", ["x" * 300, "x" * 300 + ".csv"])
def test_a_name_that_no_file_can_have_is_said_in_one_line(tmp_path: Path, entry: str) -> None:
    assert sources.absolute(str(tmp_path / entry)) == str(tmp_path / entry)
    with pytest.raises(DinvError, match=r"^DATA ") as refused:  # newer Pythons say that there is none
        sources.open_data(str(tmp_path / entry), tmp_path)
    assert "\n" not in str(refused.value)
