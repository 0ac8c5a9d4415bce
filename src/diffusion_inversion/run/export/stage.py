"""Write classifiers or synthetic images of a run into a new folder, whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...config.commands import ExportSettings
from ...engine.disk import require_room
from ...engine.progress import track
from ...engine.store import PARTIAL_PREFIX, disk_errors, sync_folder
from ...errors import UsageError
from ...invert.embeddings import Embeddings, read_embeddings
from ..images import read_record
from ..trained import Trained, trained
from . import coco, fiftyone, imagefolder, onnx, parquet, safetensors, vectors, webdataset
from .images import SyntheticImages

Advance = Callable[[int], None]
OF_CLASSIFIERS: dict[str, Callable[[Trained, int, Path, Advance], None]] = {
    "onnx": onnx.write,
    "safetensors": safetensors.write,
}
OF_IMAGES: dict[str, Callable[[SyntheticImages, Path, Advance], None]] = {
    "imagefolder": imagefolder.write,
    "webdataset": webdataset.write,
    "parquet": parquet.write,
    "fiftyone": fiftyone.write,
    "coco-classification": coco.write,
}
_BESIDE = 2000  # bytes that a format adds to an image: its row, its place in a tar file


@dataclass(frozen=True)
class Exported:
    """What was written."""

    count: int
    what: str  # "synthetic images", or "classifiers of arm real (why)"


def export(run: Path, settings: ExportSettings) -> Exported:
    """Write what `settings.to` names into the folder `settings.out`, which is new or empty.

    Learned vectors are part of it only with `settings.with_vectors`: with the generator a vector draws its photograph
    again.

    Raises UsageError (a folder that holds something, an arm beside images, nothing to export, a missing extra),
    DataError (a file of the run is missing or changed), DiskError. After an error the folder is as it was.
    """
    require_empty(settings.out)
    learned = read_embeddings(run) if settings.with_vectors else None
    if settings.to in OF_IMAGES:
        if settings.arm is not None:
            raise UsageError(f"--arm {settings.arm}: names classifiers; leave it out with --to {settings.to}.")
        return _export_images(run, settings.to, settings.out, learned)
    if settings.to == "onnx":
        onnx.require()
    found, record = trained(run, settings.arm), read_record(run)
    if record is None:
        raise UsageError(f"{run}: not a run folder, it has no data.json. Name one that `dinv run` made.")
    weights = sum(value.nbytes for one in found.by_seed.values() for value in one.state_dict().values())
    require_room(settings.out, 2 * weights, "the classifiers")
    count = len(found.by_seed)
    with new_folder(settings.out) as folder, track("export", count, "classifiers") as advance:
        OF_CLASSIFIERS[settings.to](found, record["size"], folder, advance)
        vectors.write(learned, folder)
    return Exported(count, f"classifiers of arm {found.arm} ({found.why})")


def _export_images(run: Path, to: str, out: Path, learned: Embeddings | None) -> Exported:
    """Write the synthetic images of a run in a format of `OF_IMAGES`."""
    images = SyntheticImages.of(run)
    require_room_for(images, out)
    with new_folder(out) as folder, track("export", len(images)) as advance:
        OF_IMAGES[to](images, folder, advance)
        vectors.write(learned, folder)
    return Exported(len(images), "synthetic images")


def require_room_for(images: SyntheticImages, out: Path) -> None:
    """Raise DiskError where the images do not fit."""
    require_room(out, images.size + _BESIDE * len(images), "the images")


def require_empty(out: Path) -> None:
    """Raise UsageError for a folder that holds anything, or a file of that name."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: holds something already, which is left alone; name a new folder, or empty it.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all is written and on the disk; an error leaves nothing."""
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.parent / f"{PARTIAL_PREFIX}{secrets.token_hex(6)}"
        partial.mkdir()
        try:
            yield partial
            for path in partial.rglob("*"):
                _sync(path)
            os.replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(out.parent)


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
