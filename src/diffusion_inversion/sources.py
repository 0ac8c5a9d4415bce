"""What DATA names: a folder, a parquet file, `hf:<id>` or a built-in data set, opened but not yet decoded."""

from __future__ import annotations

import contextlib
import difflib
import gzip
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .decode import UnusableImageError, open_image
from .errors import DataError, DinvError, UsageError
from .problems import Problem
from .scan import is_ignored, scan_beside, scan_folder

Role = Literal["train", "test"]

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_HUB_TEST_SPLITS = ("test", "validation", "valid", "val")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Source:
    """Labelled images that are listed but not decoded: `open(row)` reads one header."""

    name: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    open: Callable[[int], Image.Image]
    problems: tuple[Problem, ...] = ()
    licence: str = ""


# The training images, and the data set's own test images where it has some.
Opened = tuple[Source, Source | None]


def default_root() -> Path:
    """Where downloads go: $DINV_DATA, or ~/.cache/diffusion-inversion/data."""
    named = os.environ.get("DINV_DATA")
    return Path(named) if named else Path.home() / ".cache" / "diffusion-inversion" / "data"


def open_data(data: str | Path, root: Path, role: Role = "train") -> Opened:
    """Open what DATA names. `role` is what a parquet file is used as: its ids start with it.

    A built-in name always means the built-in data set: write ./digits for a folder of that name.
    Raises UsageError where nothing has that name or a package is missing, DataError where it cannot be read.
    """
    text = str(data)
    if isinstance(data, str) and data in BUILTINS:
        with _reading(data, f"check the network, or put the files under {root}"):
            return BUILTINS[data](root)
    if text.startswith("hf:"):
        return _hub(text, root)
    path = Path(data).expanduser()
    if path.is_dir():
        return _folder(path.resolve())
    if path.is_file() and path.suffix.lower() == ".parquet":
        return _parquet(path, root, role), None
    if path.exists():
        raise UsageError(f"DATA {text}: a file that is not .parquet; give a folder of class folders or a parquet file")
    near = difflib.get_close_matches(text, BUILTINS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(
        f"DATA {text}: no such folder, file or built-in name.{hint} Give a folder of class folders, a parquet file, "
        f"hf:<id>[@revision], or one of {', '.join(BUILTINS)}"
    )


# Folders


def _folder(folder: Path) -> Opened:
    # A class may be called "train" or "test": only folders that hold folders are splits.
    test = next((name for name in ("test", "val") if _holds_folders(folder / name)), None)
    if test is None or not _holds_folders(folder / "train"):
        return _from_scan(folder.name, folder), None
    train = _from_scan(folder.name, folder / "train", folder)
    beside = scan_beside(folder, ("train", test))
    return replace(train, problems=(*train.problems, *beside)), _from_scan(folder.name, folder / test, folder)


def _holds_folders(folder: Path) -> bool:
    if not folder.is_dir() or folder.is_symlink():
        return False
    return any(entry.is_dir() and not is_ignored(entry.name) for entry in folder.iterdir())


def _from_scan(name: str, folder: Path, base: Path | None = None) -> Source:
    scan = scan_folder(folder, base)
    return Source(name, scan.ids, scan.labels, scan.class_names, lambda row: open_image(scan.files[row]), scan.problems)


# Parquet files and the hub, through `datasets`


def _parquet(path: Path, root: Path, role: Role) -> Source:
    import datasets

    cache = root / "huggingface"
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with _reading(str(path), "write the file again"):
            table = datasets.Dataset.from_parquet(str(path), cache_dir=str(cache))
            return _from_table(path.stem, role, table, path.parent, (path.parent,))
    finally:
        if shown:
            datasets.enable_progress_bars()


def _hub(data: str, root: Path) -> Opened:
    import datasets

    name, _, revision = data.removeprefix("hf:").partition("@")
    if not name:
        raise UsageError(f"DATA {data}: no id; write hf:<owner>/<name>, or hf:<owner>/<name>@<revision>")
    with _reading(data, "check the id, the revision and the network, or give a local folder or parquet file"):
        splits = datasets.load_dataset(name, revision=revision or None, cache_dir=str(root / "huggingface"))
        if "train" not in splits:
            raise DataError(f"{data}: no train split among {', '.join(splits)}; save the wanted one as a parquet file")
        test = next((split for split in _HUB_TEST_SPLITS if split in splits), None)
        # Files of a hub data set lie in one of these; a cell that names another file is not the data set's.
        places = (root / "huggingface", *([Path(name)] if Path(name).is_dir() else []), *_hub_caches())
        train = _from_table(data, "train", splits["train"], None, places)
        return train, None if test is None else _from_table(data, test, splits[test], None, places)


def _hub_caches() -> tuple[Path, ...]:
    from huggingface_hub.constants import HF_HUB_CACHE

    return (Path(HF_HUB_CACHE),)


def _from_table(name: str, prefix: str, table: Any, folder: Path | None, places: Sequence[Path]) -> Source:
    """A `datasets.Dataset` with an image and a label column; integer or text labels become sorted classes.

    A cell may name a file instead of holding it: `_named_file`.
    """
    import datasets

    image_column = _column(name, table.column_names, _IMAGE_COLUMNS)
    label_column = _column(name, table.column_names, _LABEL_COLUMNS)
    values: list[Any] = table.select_columns([label_column])[:][label_column]
    feature = table.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        class_names = tuple(feature.names)
        label_of: Mapping[Any, int] = {label: label for label in range(len(class_names))}
    else:
        if any(value is not None and not isinstance(value, (str, int)) for value in values):
            raise DataError(f"{name}: column {label_column} holds {feature}; give integers, text or a ClassLabel")
        known = sorted({value for value in values if value is not None})
        class_names = tuple(str(value) for value in known)
        label_of = {value: label for label, value in enumerate(known)}
    ids = _numbered(prefix, len(values))
    rows = [row for row, value in enumerate(values) if value in label_of]
    unlabelled = tuple(
        Problem(id_, f"label {value} names no class", "label the image, or remove its row", fatal=True)
        for id_, value in zip(ids, values, strict=True)
        if value not in label_of
    )
    encoded = table.cast_column(image_column, datasets.Image(decode=False))

    def open_row(row: int) -> Image.Image:
        cell = encoded[rows[row]][image_column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise ValueError("the cell holds no image")
        return open_image(_named_file(cell["path"], folder, places) if cell["bytes"] is None else cell["bytes"])

    labels = tuple(label_of[values[row]] for row in rows)
    return Source(
        name,
        tuple(ids[row] for row in rows),
        labels,
        class_names,
        open_row,
        (*unlabelled, *_unused_classes(prefix, labels, class_names)),
        table.info.license or "",
    )


def _named_file(path: str, folder: Path | None, places: Sequence[Path]) -> Path:
    """The file that a cell names, relative to `folder`. Raises UnusableImageError unless it lies below one of `places`.

    Without that a table from others could make any image on this disk part of a published data set.
    """
    named = Path(path)
    if named.is_absolute() or folder is not None:
        real = (named if folder is None else folder / named).resolve()
        if any(real.is_relative_to(place.resolve()) for place in places):
            return real
    raise UnusableImageError(
        f"the cell holds no bytes, only a path outside the data set ({path[:80]})", "store the image in the cell"
    )


def _column(name: str, columns: Sequence[str], wanted: Sequence[str]) -> str:
    for column in wanted:
        if column in columns:
            return column
    raise DataError(f"{name}: no column {' or '.join(wanted)} among {', '.join(columns)}; rename the one you want")


# Built-in data sets, through their own libraries


def _digits(root: Path) -> Opened:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    return _from_arrays("digits", "train", images, digits.target, [str(name) for name in digits.target_names]), None


def _elpv(root: Path) -> Opened:
    images, probability, _ = _package("elpv_dataset.utils", "elpv", "demo").load_dataset()
    source = _from_arrays("elpv", "train", images, probability >= 0.5, ["functional", "defective"])
    return replace(source, licence="CC BY-NC-SA 4.0: non-commercial use only"), None


def _fashion_mnist(root: Path, debian: Path = DEBIAN_FASHION_MNIST) -> Opened:
    from torchvision.datasets import FashionMNIST

    def part(train: bool) -> Source:
        split = "train" if train else "test"
        if debian.is_dir() and not (root / "FashionMNIST").is_dir():
            stem = "train" if train else "t10k"
            images = _read_idx(debian / f"{stem}-images-idx3-ubyte.gz")
            labels = _read_idx(debian / f"{stem}-labels-idx1-ubyte.gz")
        else:
            loaded = FashionMNIST(str(root), train=train, download=True)
            images, labels = loaded.data.numpy(), loaded.targets.numpy()
        return _from_arrays("fashion-mnist", split, images, labels, FashionMNIST.classes)

    return part(True), part(False)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped idx file of unsigned bytes (yann.lecun.com/exdb/mnist, "The IDX file format")."""
    with gzip.open(path) as file:
        content = file.read()
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def _cifar(name: str, root: Path) -> Opened:
    from torchvision.datasets import CIFAR10, CIFAR100

    def part(train: bool) -> Source:
        loaded = (CIFAR100 if name == "cifar100" else CIFAR10)(str(root), train=train, download=True)
        return _from_arrays(name, "train" if train else "test", loaded.data, loaded.targets, loaded.classes)

    return part(True), part(False)


def _stl10(root: Path) -> Opened:
    from torchvision.datasets import STL10

    def part(split: Role) -> Source:
        loaded = STL10(str(root), split=split, download=True)
        assert loaded.labels is not None  # only the unlabelled split has none
        return _from_arrays("stl10", split, loaded.data.transpose(0, 2, 3, 1), loaded.labels, loaded.classes)

    return part("train"), part("test")


def _imagenette(root: Path) -> Opened:
    from torchvision.datasets import Imagenette

    folder = root / "imagenette2-320"  # shorter side 320 px: the paper learns at 256

    def part(split: str) -> Source:
        loaded = Imagenette(str(root), split=split, size="320px", download=not folder.is_dir())
        title = {wnid: names[0] for wnid, names in zip(loaded.wnids, loaded.classes, strict=True)}
        source = _from_scan("imagenette", folder / split, folder)
        return replace(source, class_names=tuple(title[wnid] for wnid in source.class_names))

    return part("train"), part("val")


def _eurosat(root: Path) -> Opened:
    from torchvision.datasets import EuroSAT

    EuroSAT(str(root), download=True)
    return _from_scan("eurosat", root / "eurosat" / "2750"), None


def _medmnist(name: str, root: Path) -> Opened:
    medmnist = _package("medmnist", name, "medmnist")
    root.mkdir(parents=True, exist_ok=True)
    info = medmnist.INFO[name]
    class_names = [info["label"][str(label)] for label in range(len(info["label"]))]

    def part(split: Role) -> Source:
        # The library checks the sum of what it downloads, and fetches again what differs: ask only when it is absent.
        absent = not (root / f"{name}.npz").exists()
        loaded = getattr(medmnist, info["python_class"])(split=split, root=str(root), download=absent)
        source = _from_arrays(name, split, loaded.imgs, loaded.labels[:, 0], class_names)
        return replace(source, licence=info["license"])

    return part("train"), part("test")


BUILTINS: dict[str, Callable[[Path], Opened]] = {
    "digits": _digits,
    "elpv": _elpv,
    "fashion-mnist": _fashion_mnist,
    "cifar10": partial(_cifar, "cifar10"),
    "cifar100": partial(_cifar, "cifar100"),
    "stl10": _stl10,
    "imagenette": _imagenette,
    "eurosat": _eurosat,
    "pathmnist": partial(_medmnist, "pathmnist"),
    "dermamnist": partial(_medmnist, "dermamnist"),
    "bloodmnist": partial(_medmnist, "bloodmnist"),
}


def _from_arrays(
    name: str, split: str, images: NDArray[np.uint8], labels: Sequence[int] | NDArray[Any], class_names: Sequence[str]
) -> Source:
    """Images (N, H, W) or (N, H, W, 3) uint8 in memory."""
    numbers = tuple(int(label) for label in labels)
    return Source(
        name,
        _numbered(split, len(images)),
        numbers,
        tuple(class_names),
        lambda row: Image.fromarray(images[row]),
        _unused_classes(split, numbers, class_names),
    )


def _numbered(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}/{row:06d}" for row in range(count))


def _unused_classes(split: str, labels: Sequence[int], class_names: Sequence[str]) -> tuple[Problem, ...]:
    used = set(labels)
    return tuple(
        Problem(f"{split}: class {name}", "class without images", "add images, or leave the class out", fatal=False)
        for label, name in enumerate(class_names)
        if label not in used
    )


def _package(module: str, data: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"DATA {data}: package {package} cannot be imported ({error}); pip install 'diffusion-inversion[{extra}]'"
        ) from error


@contextlib.contextmanager
def _reading(data: str, remedy: str) -> Iterator[None]:
    """Name the data set in what its library raises; keep the library's prints off stdout, which is for results."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except DinvError:
        raise
    except Exception as error:  # Each library has its own errors for no network, damaged files and unknown ids.
        # `datasets` wraps the cause: "An error occurred while generating the dataset".
        cause = error.__cause__ or error
        raise DataError(f"{data}: cannot be read: {' '.join(str(cause).split())}; {remedy}") from error


def absolute(data: str | None) -> str | None:
    """An existing path made absolute, so that a run goes on from any folder; other names as they are."""
    return str(Path(data).resolve()) if data is not None and data not in BUILTINS and Path(data).exists() else data
