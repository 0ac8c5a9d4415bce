"""Images passed through the generator's VAE at a given resolution (paper, Tables 1 and 6): what that alone costs."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..data.images import LabelledImages, changed, content_hash, resize, to_model_range, to_uint8
from ..data.naming import class_folder, safe_name
from ..data.sources import Role
from ..engine.disk import require_room
from ..engine.frozen_settings import freeze_settings, listed, settings_file
from ..engine.hashing import sha256_of
from ..engine.ledger import Ledger
from ..engine.lock import run_lock
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Unit
from ..engine.progress import track
from ..engine.store import commit_many
from ..engine.units import each_unit, unit_name
from ..engine.untrusted import inside
from ..errors import ConfigMismatchError, DataError, UsageError
from ..generator.generator import VAE_PIXELS, Generator
from ..generator.sides import require_side
from ..randomness import generator_for
from .png import encode_png
from .synthetic import read_images

STAGE, SCHEMA = "autoencode", 1
PARTS: tuple[Role, ...] = ("train", "test")
OURS = re.compile(r"[^/]+/[^/]+-[0-9a-f]{8}\.png")  # names below a part that this stage gives
MOST_DECIBELS = 100.0  # what an image counts that came back exactly: its PSNR is infinite
_PNG_OVERHEAD = 4096  # bytes


class AutoencodedUnit(Unit):
    """A commit record; the lists are in the order of `ids`, and so are its files."""

    hashes: list[str]  # of the source images (LabelledImages.hashes)
    labels: list[int]
    squared_errors: list[float]  # mean over pixels and channels of (output - input)^2, in units of 0..255


@dataclass(frozen=True)
class Autoencoded:
    """One part as it lies on disk."""

    folder: Path  # class folders of PNG
    images: int
    psnr: float  # dB, mean over images
    renamed: dict[str, str]  # class name => folder, of classes whose name no folder can have


@dataclass(frozen=True)
class _Entry:
    file: str
    sha256: str
    source_hash: str
    label: int
    squared_error: float


def autoencode(
    images: LabelledImages,
    generator: Generator,
    out: str | Path,
    *,
    resolution: int,
    part: Role = "train",
    sample: bool = False,
    batch_size: int = 100,
    seed: int = 0,
) -> LabelledImages:
    """Pass images through the VAE, write them below `out`/`part` and return them in the order of `images`.

    Each is resized to `resolution` px, encoded, decoded, and resized back to its side. The latent is the mean of the
    encoder's distribution; with `sample` it is drawn from it, by seed, part and image id. `batch_size` images are
    in memory at a time; a folder keeps the one it was begun with, since results can depend on it in their last bits.
    Ids are `class/name.png`, as `load_images` of `out`/`part` gives them. Images that are there are not made again.
    `write_autoencoded` does the same and does not hold the results.

    Raises UsageError, ConfigMismatchError, LockedError and DiskError as that does.
    """
    write_autoencoded(
        images, generator, out, resolution=resolution, part=part, sample=sample, batch_size=batch_size, seed=seed
    )
    return read_autoencoded(images, out, part)


def read_autoencoded(images: LabelledImages, out: str | Path, part: Role = "train") -> LabelledImages:
    """What `write_autoencoded` wrote of these images, in their order.

    Raises DataError where one is not there, ConfigMismatchError where one was made from another image of its name.
    """
    store = _Store(Path(out), part, images.class_names)
    entries = store.entries()
    if missing := [image_id for image_id in images.ids if image_id not in entries]:
        raise DataError(f"{store.folder}: {len(missing)} images are not there (first: {missing[0]}); autoencode first.")
    _require_same(Path(out), images, {image_id: entries[image_id] for image_id in images.ids})
    ordered = [entries[image_id] for image_id in images.ids]
    files = ([getattr(entry, key) for entry in ordered] for key in ("file", "sha256", "label"))
    found = read_images(store.folder, images.class_names, *files)
    return replace(
        found,
        name=f"{images.name}, autoencoded",
        hashes=tuple(content_hash(image.permute(1, 2, 0).numpy()) for image in found.images),
        licence=images.licence,
    )


def write_autoencoded(
    images: LabelledImages,
    generator: Generator,
    out: str | Path,
    *,
    resolution: int,
    part: Role = "train",
    sample: bool = False,
    batch_size: int = 100,
    seed: int = 0,
) -> Autoencoded:
    """Pass images through the VAE and write them as `out`/`part`/<class>/*.png, one batch in memory at a time.

    The latent is the mean of the encoder's distribution; with `sample` it is drawn from it, by seed, part and image
    id. Images that are there are not made again, so a killed call goes on; files that changed since are made again.
    A call with more images adds them.

    Raises UsageError (`resolution` is no multiple of the VAE's factor; `out` holds files of others),
    ConfigMismatchError (`out` was made with other settings, weights or images), LockedError, DiskError.
    """
    require_side(generator, resolution, option="--resolution")
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: give at least 1.")
    run = Path(out)
    store = _Store(run, part, images.class_names)
    with run_lock(run):
        store.require_own()
        begun = any(Manifest(run / name / MANIFEST).units() for name in PARTS)
        freeze_settings(run, STAGE, made_from(images, generator, resolution, sample, batch_size, seed), begun=begun)
        store.drop_changed()
        committed = store.entries()
        _require_same(run, images, committed)
        left = len(images) - len(committed)
        require_room(run, left * (3 * images.size**2 + _PNG_OVERHEAD), f"{left} images of {images.size} px")
        with track(f"{STAGE} {part}", left) as advance:

            def do(unit: tuple[str, ...]) -> None:
                batch = images.subset([images.row_of[image_id] for image_id in unit])
                noise = None
                if sample:
                    side = resolution // generator.vae_factor
                    shape = (generator.latent_channels, side, side)
                    streams = [generator_for(seed, STAGE, part, image_id) for image_id in unit]
                    noise = torch.stack([torch.randn(shape, generator=stream) for stream in streams])
                store.commit(batch, autoencoded(batch.images, generator, resolution, noise))
                advance(len(unit))

            each_unit(run, images.ids, store.manifest, batch_size, do)
        store.remove_unlisted()
        errors = [entry.squared_error for entry in store.entries().values()]
        renamed = {name: folder for name, folder in store.class_folders.items() if name != folder}
        return Autoencoded(store.folder, len(errors), mean_psnr(errors), renamed)


def autoencoded(
    images: UInt8[Tensor, "batch 3 side side"],
    generator: Generator,
    resolution: int,
    noise: Float[Tensor, "batch channels height width"] | None = None,
) -> UInt8[Tensor, "batch 3 side side"]:
    """Resize to `resolution` px, encode to the mean or, with standard normal `noise`, a draw; decode, resize back."""
    found, size = [], max(1, VAE_PIXELS // resolution**2)
    for start in range(0, len(images), size):
        latents = generator.encode(to_model_range(resize(images[start : start + size], resolution)))
        chosen = latents.mean if noise is None else latents.sample(noise[start : start + size].to(latents.mean.device))
        found.append(resize(to_uint8(generator.decode(chosen).cpu()), images.shape[-1]))
    return torch.cat(found)


def mean_psnr(squared_errors: Sequence[float]) -> float:
    """Mean over images of 10 log10(255^2 / squared error), in dB; at most 100 dB an image."""
    return fmean(min(10 * math.log10(255**2 / e), MOST_DECIBELS) if e > 0 else MOST_DECIBELS for e in squared_errors)


def made_from(
    images: LabelledImages, generator: Generator, resolution: int, sample: bool, batch_size: int, seed: int
) -> dict[str, Any]:
    """Everything an output depends on, but its image, as JSON data. The VAE is in float32 whatever the UNet is in."""
    return {
        "schema": SCHEMA,
        "resolution": resolution,
        "latent": "sample" if sample else "mean",
        "seed": seed if sample else None,
        "batch_size": batch_size,
        "size": images.size,
        "class_names": sorted(images.class_names),
        "generator": generator.hash,
    }


class _Store:
    """The images below `run`/`part`, listed by their manifest."""

    def __init__(self, run: Path, part: Role, class_names: Sequence[str]) -> None:
        self.run, self.folder, self.class_names = run, run / part, class_names
        self.class_folders = {name: class_folder(name) for name in class_names}
        self.manifest = Manifest(self.folder / MANIFEST, {"commit": AutoencodedUnit})

    def require_own(self) -> None:
        """Raise UsageError where the part holds files and no earlier call made it."""
        strange = self.folder.exists() and next(self.folder.iterdir(), None)
        if strange and Ledger(self.run).read_json(settings_file(STAGE)) is None:
            raise UsageError(f"{self.folder}: holds {strange.name}, which `dinv {STAGE}` did not write. Choose --out.")

    def entries(self) -> dict[str, _Entry]:
        """Every committed image by source id. Raises DataError for a record whose lists do not fit each other."""
        found: dict[str, _Entry] = {}
        for unit in self.manifest.units().values():
            columns = (unit["ids"], unit["files"], unit["hashes"], unit["labels"], unit["squared_errors"])
            if len({len(column) for column in columns}) > 1:
                raise DataError(
                    f"{self.manifest.path}: unit {unit['unit']}: lists of different lengths. Delete {self.folder} and "
                    "run the command again."
                )
            for image_id, name, source_hash, label, error in zip(*columns, strict=True):
                found[image_id] = _Entry(name, unit["files"][name], source_hash, label, error)
        return found

    def drop_changed(self) -> None:
        """Take back every unit that has a file which is missing or not as it was written."""
        for unit, record in self.manifest.units().items():
            files: Mapping[str, str] = record["files"]
            if any(_changed(inside(self.folder, name), digest) for name, digest in files.items()):
                self.manifest.append({"event": "drop", "unit": unit})

    def commit(self, sources: LabelledImages, results: Tensor) -> None:
        """Write a unit of results uint8 (B, 3, S, S) as PNG, then list them as one record."""
        labels = sources.labels.tolist()
        files = {
            self._file_name(image_id, label): encode_png(image)
            for image_id, label, image in zip(sources.ids, labels, results, strict=True)
        }
        digests = commit_many({self.folder / name: data for name, data in files.items()})
        errors = (results.double() - sources.images.double()).square().mean(dim=(1, 2, 3))
        self.manifest.append(
            {
                "event": "commit",
                "unit": unit_name(sources.ids),
                "count": len(sources),
                "ids": list(sources.ids),
                "files": {name: digests[self.folder / name] for name in files},
                "hashes": list(sources.hashes),
                "labels": labels,
                "squared_errors": errors.tolist(),
            }
        )

    def _file_name(self, image_id: str, label: int) -> str:
        """`class/stem-hash.png`: the stem names the source, the hash keeps sources of one stem apart."""
        digest = hashlib.sha256(image_id.encode()).hexdigest()[:8]
        return f"{self.class_folders[self.class_names[label]]}/{safe_name(Path(image_id).stem)}-{digest}.png"

    def remove_unlisted(self) -> None:
        """Delete images of ours that no record lists: a kill left them, and a reader of the folder would take them."""
        listed_files = {entry.file for entry in self.entries().values()}
        for path in self.folder.glob("*/*.png"):
            name = path.relative_to(self.folder).as_posix()
            if name not in listed_files and OURS.fullmatch(name):
                path.unlink(missing_ok=True)


def _require_same(run: Path, images: LabelledImages, committed: Mapping[str, _Entry]) -> None:
    """Raise ConfigMismatchError where an image in the folder comes from one that is not among `images` as it was."""
    before = {image_id: (entry.source_hash, entry.label) for image_id, entry in committed.items()}
    if lines := [f"{image_id}: {what}" for image_id, what in changed(before, images.contents)]:
        raise ConfigMismatchError(
            f"{run}: {len(lines)} of its {len(committed)} images come from others than these:\n{listed(lines)}\n"
            "Use the old data and the options that select it, or choose another folder."
        )


def _changed(path: Path, digest: str) -> bool:
    try:
        return sha256_of(path) != digest
    except FileNotFoundError:
        return True
