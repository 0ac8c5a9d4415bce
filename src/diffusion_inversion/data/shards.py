"""WebDataset shards: tar files whose samples are an image and its class, side by side under one key."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .decode import MAX_FILE_BYTES, UnusableImageError, open_image
from .listed import Source, reading, unused_classes
from .problems import Problem
from .scan import IMAGE_SUFFIXES

_LABELS = (".cls", ".txt", ".json")  # of the class, the wanted one first
_LABEL_KEYS = ("label", "class", "cls")  # in a .json
_MOST_LABEL_BYTES = 1 << 16


@dataclass
class _Sample:
    """Where the parts of a sample lie: (shard, offset, bytes) of its image, and the text of its class by suffix."""

    image: tuple[Path, int, int] | None
    labels: dict[str, str]


def shards_of(folder: Path) -> tuple[Path, ...]:
    """The tar files of a folder that holds shards alone and no class folders; () where it holds none.

    Raises OSError.
    """
    entries = list(folder.iterdir())
    found = sorted(one for one in entries if one.suffix.lower() == ".tar" and one.is_file())
    return () if any(one.is_dir() and not one.name.startswith(".") for one in entries) else tuple(found)


def sharded(name: str, shards: Sequence[Path]) -> Source:
    """The samples of shards, known by shard and key. Classes are the texts beside the images, numbers in their order.

    Raises DataError: a file that is no plain tar, two samples of one key.
    """
    samples: dict[str, _Sample] = {}
    for shard in shards:
        with reading(str(shard), "give a whole tar file that is not compressed"):
            for id_, sample in _samples(shard):
                if id_ in samples:
                    raise DataError(f"{shard}: key {id_} is there twice; give each sample a key of its own")
                samples[id_] = sample
    problems, kept = [], dict[str, tuple[tuple[Path, int, int], str]]()
    for id_, sample in samples.items():
        label = next((sample.labels[suffix] for suffix in _LABELS if suffix in sample.labels), "")
        if sample.image is None:
            problems.append(Problem(id_, "a sample without an image", "add one, or remove the sample", fatal=True))
        elif not label:
            problems.append(Problem(id_, "a sample without a class", "add a .cls beside the image", fatal=True))
        else:
            kept[id_] = (sample.image, label)
    names = _in_order({label for _, label in kept.values()})
    labels = tuple(names.index(label) for _, label in kept.values())
    places = [place for place, _ in kept.values()]
    return Source(
        name,
        tuple(kept),
        labels,
        names,
        lambda row: open_image(_bytes(*places[row])),
        (*problems, *unused_classes(name, labels, names)),
    )


def _samples(shard: Path) -> Iterator[tuple[str, _Sample]]:
    """Key by key: a key is the name up to the first dot of its last part (WebDataset's convention)."""
    found: dict[str, _Sample] = {}
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            path = PurePosixPath(member.name)
            stem, dot, suffix = path.name.partition(".")
            if not stem or not dot:
                continue
            key, suffix = f"{shard.stem}/{(path.parent / stem).as_posix()}", f".{suffix.lower()}"
            sample = found.setdefault(key, _Sample(None, {}))
            if suffix in IMAGE_SUFFIXES:
                sample.image = (shard, member.offset_data, member.size)
            elif suffix in _LABELS and member.size <= _MOST_LABEL_BYTES:
                sample.labels[suffix] = _label(_bytes(shard, member.offset_data, member.size), suffix)
    yield from found.items()


def _label(content: bytes, suffix: str) -> str:
    """The class that a part names; "" where it names none."""
    text = content.decode("utf-8", "replace").strip()
    if suffix != ".json":
        return text
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    values = (record.get(key) for key in _LABEL_KEYS) if isinstance(record, dict) else ()
    return next((str(value) for value in values if isinstance(value, (str, int))), "")


def _in_order(labels: set[str]) -> tuple[str, ...]:
    """Class names sorted, as numbers where all are: 2 before 10."""
    numbers = all(label.isdecimal() for label in labels)  # 1 and 01 are two classes of one number
    return tuple(sorted(labels, key=lambda label: (int(label) if numbers else 0, label)))


def _bytes(shard: Path, offset: int, size: int) -> bytes:
    if size > MAX_FILE_BYTES:
        raise UnusableImageError(f"{size / 1e6:.0f} MB in its shard", "compress it or make the image smaller")
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)
