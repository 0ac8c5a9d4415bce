"""Write classifiers or synthetic images of a run into a new folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ...config.commands import CredentialSettings, ExportSettings, ImageFormat
from ...engine.disk import require_room
from ...engine.progress import track
from ...engine.store import PARTIAL_PREFIX, disk_errors, sync_folder
from ...errors import UsageError
from ...invert.embeddings import Embeddings, read_embeddings
from ..images import read_record
from ..methods import ADOPTED, RETRIEVAL, method_of
from ..trained import Trained, trained
from . import coco, fiftyone, imagefolder, onnx, parquet, safetensors, vectors, webdataset
from .card import Origin
from .credentials import signer
from .describe import describe, origin_of
from .images import Signer, SyntheticImages

Advance = Callable[[int], None]
OF_CLASSIFIERS: dict[str, Callable[[Trained, int, Path, Advance], None]] = {
    "onnx": onnx.write,
    "safetensors": safetensors.write,
}
OF_IMAGES: dict[ImageFormat, Callable[[SyntheticImages, Path, Advance], None]] = {
    "imagefolder": imagefolder.write,
    "webdataset": webdataset.write,
    "parquet": parquet.write,
    "fiftyone": fiftyone.write,
    "coco-classification": coco.write,
}
_BESIDE = 8000  # bytes that an export adds to an image: its XMP, its signature, its row, its place in a tar file


@dataclass(frozen=True)
class Exported:
    """What was written."""

    count: int
    what: str  # "synthetic images", or "classifiers of arm real (why)"
    licences: tuple[str, ...] = ()  # lines about those of the sources


def export(run: Path, settings: ExportSettings) -> Exported:
    """Write what `settings.to` names into the folder `settings.out`, which is new or empty.

    Learned vectors are part of it only with `settings.with_vectors`: with the generator a vector draws its photograph
    again.

    Raises UsageError (a folder that holds something, an arm beside images, nothing to export, a missing extra),
    DataError (a file of the run is missing or changed), DiskError. After an error the folder is as it was.
    """
    require_empty(settings.out, run)
    learned = read_embeddings(run) if settings.with_vectors else None
    if settings.to != "onnx" and settings.to != "safetensors":
        if settings.arm is not None:
            raise UsageError(f"--arm {settings.arm}: names classifiers; leave it out with --to {settings.to}.")
        origin = origin_of(run, settings.licence, settings.source_ids)
        return write_images(run, settings.to, settings.out, origin, signer_of(run, settings), learned=learned)
    if settings.licence is not None or settings.c2pa_key is not None:
        option = "--c2pa-key" if settings.licence is None else "--licence"
        raise UsageError(f"{option}: of images; leave it out with --to {settings.to}.")
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
        vectors.write(learned, folder, run, settings.source_ids)
    return Exported(count, f"classifiers of arm {found.arm} ({found.why})")


def write_images(
    run: Path,
    to: ImageFormat,
    out: Path,
    origin: Origin,
    sign: Signer | None,
    *,
    learned: Embeddings | None = None,
    address: str = "",
) -> Exported:
    """Write the synthetic images of a run in a format of `OF_IMAGES`, with what `describe` writes beside them."""
    images = SyntheticImages.of(run, origin.source_ids, origin.rights, sign)
    require_room(out, images.size + _BESIDE * len(images), "the images")
    with new_folder(out) as folder, track("export", len(images)) as advance:
        OF_IMAGES[to](images, folder, advance)
        describe(images, folder, to, replace(origin, with_vectors=learned is not None), address)
        vectors.write(learned, folder, run, origin.source_ids)
    return Exported(len(images), "synthetic images", tuple(one.line for one in origin.findings))


def signer_of(run: Path, settings: CredentialSettings) -> Signer | None:
    """What signs the images of a run; None where they are not signed. Raises UsageError."""
    if settings.c2pa_certificate is None or settings.c2pa_key is None:
        return None
    if method_of(run).name == RETRIEVAL:
        raise UsageError(f"{run}: no model made images of a pool; leave --c2pa-certificate and --c2pa-key out.")
    if method_of(run).name == ADOPTED:
        raise UsageError(f"{run}: nobody knows what made adopted images; leave --c2pa-certificate and --c2pa-key out.")
    return signer(settings.c2pa_certificate, settings.c2pa_key)


def require_empty(out: Path, run: Path) -> None:
    """Raise UsageError for a folder that holds anything, lies in the run or cannot be renamed over, or a file."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: holds something already, which is left alone; name a new folder, or empty it.")
    if out.is_symlink() or out.is_mount() or (out.exists() and out.samefile(".")):
        raise UsageError(
            f"--out {out}: a link, a mount point or the working folder, which a new folder cannot take the place of; "
            "name a folder below it."
        )
    if out.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"--out {out}: lies inside the run {run}; name a folder outside")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all is written and on the disk; an error leaves nothing.

    What a killed call left there is deleted first.
    """
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f"{PARTIAL_PREFIX}new-{out.name}")
        shutil.rmtree(partial, ignore_errors=True)
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
