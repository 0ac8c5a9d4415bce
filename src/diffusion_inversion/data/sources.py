"""What DATA names: a folder, a file, `hf:<id>` or a built-in data set, opened but not yet decoded."""

from __future__ import annotations

import difflib
import gzip
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, UsageError, how_to_install
from .beside import columns_beside
from .boxes import coco_file, yolo_file
from .decode import open_image
from .listed import Source, numbered, reading, unused_classes
from .listings import SUFFIXES, TESTS, TRAIN, listing
from .naming import DATA_FILE, UNIT_FILES
from .scan import is_ignored, scan_beside, scan_folder
from .shards import sharded, shards_of
from .tables import hub_data, parquet_file, parquet_files

Role = Literal["train", "test"]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


# The training images, and the data set's own test images where it has some.
Opened = tuple[Source, Source | None]


def default_root(given: str | Path | None = None) -> Path:
    """Where downloads go unless a folder is given: $DINV_DATA, or ~/.cache/diffusion-inversion/data.

    Below the current folder for a user without a home.
    """
    if given is not None:
        return Path(given)
    if named := os.environ.get("DINV_DATA"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "diffusion-inversion" / "data"
    except RuntimeError:
        return Path.cwd() / ".diffusion-inversion" / "data"


def open_data(data: str | Path, root: Path, role: Role = "train") -> Opened:
    """Open what DATA names. `role` is what a parquet file is used as: its ids start with it.

    A built-in name always means the built-in data set: write ./digits for a folder of that name.
    Raises UsageError where nothing has that name or a package is missing, DataError where it cannot be read.
    """
    text = str(data)
    if not text:
        raise UsageError("DATA: empty; give a folder of class folders, a parquet file, hf:<id> or a built-in name")
    if isinstance(data, str) and data in BUILTINS:
        with reading(data, f"check the network, or put the files under {root}", kept_in=root):
            return BUILTINS[data](root)
    if text.startswith("hf:"):
        return hub_data(text, root)
    path = at_home("DATA", text)
    try:
        if path.is_dir():
            return _folder(path.resolve())
        if path.is_file() and (found := _file(path, role)) is not None:
            return found
        is_there = path.exists()
    except OSError as error:  # a name that is too long, a folder or file that may not be read
        place = "" if error.filename in (None, text) else f"{error.filename} "
        raise DataError(
            f"DATA {text}: {place}cannot be read ({error.strerror}); make it readable, or give other data"
        ) from error
    if is_there:
        raise UsageError(
            f"DATA {text}: no kind of file that is read; give a folder of class folders, .parquet, a list of files and "
            "labels (.csv, .tsv, .jsonl), COCO's .json, YOLO's data.yaml, or .tar shards"
        )
    near = difflib.get_close_matches(text, BUILTINS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(
        f"DATA {text}: no such folder, file or built-in name.{hint} Give a folder of class folders, a parquet file, "
        f"hf:<id>[@revision][?config=...], or one of {', '.join(BUILTINS)}"
    )


def at_home(what: str, text: str) -> Path:
    """A path whose `~` the shell left as it was. Raises UsageError, for `what` is named so, where that is no home."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{what} {text}: no home folder is known for its ~; write the whole path") from error


def _file(path: Path, role: Role) -> Opened | None:
    """A file by its suffix; None for another kind."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_file(path, role), None
    if suffix in SUFFIXES:
        return listing(path)
    if suffix == ".json":
        return coco_file(path), None
    if suffix in (".yaml", ".yml"):
        return yolo_file(path)
    return (sharded(path.stem, [path]), None) if suffix == ".tar" else None


# Folders


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, which is no DATA."""
    return (folder / DATA_FILE).is_file() and any((folder / name).is_dir() for name in ("embeddings", "synthetic"))


def _folder(folder: Path) -> Opened:
    if is_run(folder):
        raise UsageError(
            f"DATA {folder}: a run folder, no images; give {folder / 'synthetic'} for those that it drew, or the DATA "
            "that it was made from"
        )
    if shards := shards_of(folder):
        return sharded(folder.name, shards), None
    if units := sorted(folder.glob(UNIT_FILES)):
        return parquet_files(units), None
    # A class may be called "train" or "test": only folders that hold folders are splits.
    train, test = _split(folder, TRAIN), next((name for names in TESTS if (name := _split(folder, names))), None)
    if train is None:
        return _from_scan(folder.name, folder), None
    if test is None:
        raise DataError(
            f"{folder}: {train}/ holds class folders, but no test/, val/ or valid/ is beside it; give {folder / train} "
            "itself, of which a part is held out, or put the test images beside it"
        )
    source = _from_scan(folder.name, folder / train, folder)
    beside = scan_beside(folder, (train, test))
    tested = _from_scan(folder.name, folder / test, folder)
    return replace(source, problems=(*source.problems, *beside)), tested


def _split(folder: Path, names: tuple[str, ...]) -> str | None:
    """The folder of a split by the names that are in use for it, in whatever case. Raises DataError for two, or a link:
    without it another part would be tested on in its place.
    """
    try:
        named = [entry for entry in folder.iterdir() if entry.name.lower() in names]
        found = sorted(entry.name for entry in named if _holds_folders(entry))
        link = next((entry for entry in named if entry.is_symlink() and entry.is_dir()), None)
    except OSError:  # the scan says which folder cannot be listed
        return None
    if link is not None:
        raise DataError(
            f"{link}: symbolic link to a folder, not followed; put a copy of the folder in its place, or give "
            "DATA and --test by themselves"
        )
    if len(found) > 1:
        raise DataError(f"{folder}: {' and '.join(found)} are one split by their names; keep one of them")
    return found[0] if found else None


def _holds_folders(folder: Path) -> bool:
    if not folder.is_dir() or folder.is_symlink():
        return False
    return any(entry.is_dir() and not is_ignored(entry.name) for entry in folder.iterdir())


def _from_scan(name: str, folder: Path, base: Path | None = None) -> Source:
    scan = scan_folder(folder, base)
    names = [file.relative_to(folder).as_posix() for file in scan.files]
    return Source(
        name, scan.ids, scan.labels, scan.class_names, lambda row: open_image(scan.files[row]), scan.problems,
        columns=partial(columns_beside, folder, names),
    )  # fmt: skip


# Built-in data sets, through their own libraries


def _digits(root: Path) -> Opened:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    source = _from_arrays("digits", "train", images, digits.target, [str(name) for name in digits.target_names])
    return replace(source, licence="CC-BY-4.0"), None  # UCI's page of optdigits


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
        return replace(_from_arrays("fashion-mnist", split, images, labels, FashionMNIST.classes), licence="MIT")

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
    return replace(_from_scan("eurosat", root / "eurosat" / "2750"), licence="MIT"), None


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
        numbered(split, len(images)),
        numbers,
        tuple(class_names),
        lambda row: Image.fromarray(images[row]),
        unused_classes(split, numbers, class_names),
    )


def _package(module: str, data: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"DATA {data}: package {package} cannot be imported ({error}); {how_to_install(extra)}"
        ) from error


def absolute(data: str | None) -> str | None:
    """An existing path made absolute, so that a run goes on from any folder; other names as they are."""
    there = data is not None and data not in BUILTINS and os.path.exists(data)  # False too where that is not known
    return str(Path(data).resolve()) if data is not None and there else data
