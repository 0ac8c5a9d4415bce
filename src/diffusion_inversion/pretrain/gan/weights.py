"""A trained GAN: one safetensors file (the averaged generator, its classes, its training images), or a BigGAN."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from ...data.images import LabelledImages
from ...engine.hashing import sha256_of
from ...engine.store import commit_file
from ...engine.untrusted import TensorSpec, check_record, parse_json, read_header, read_tensors, specs_of
from ...errors import DataError, UsageError
from .biggan import CONFIG, BigGanGenerator, load_biggan
from .networks import SIDES, GanGenerator

WEIGHTS = "gan.safetensors"
SCHEMA = 1
MAX_BYTES = 2**32
_RECORD = "dinv-gan"  # key of the metadata
_TRAINED_ON = "trained_on"


class _Record(TypedDict):
    """The metadata of a file: see `GanGenerator`."""

    schema: Annotated[int, Field(ge=SCHEMA, le=SCHEMA)]
    size: Annotated[int, Field(ge=min(SIDES), le=max(SIDES))]
    width: Annotated[int, Field(ge=1, le=512)]
    latent_dim: Annotated[int, Field(ge=1, le=4096)]
    class_names: Annotated[list[str], Field(min_length=1, max_length=100_000)]
    licence: NotRequired[str]  # not in files of earlier versions


@dataclass(frozen=True, eq=False)
class Gan:
    """A frozen generator in evaluation mode on `device`."""

    name: str  # of its file or folder
    generator: GanGenerator | BigGanGenerator
    class_names: tuple[str, ...]
    hash: str  # sha256 hex of its file or files
    trained_on: frozenset[str]  # content hashes of its training images, where the file says so
    device: torch.device
    licence: str = ""  # of its training images, where the file says so

    @property
    def size(self) -> int:
        """Side of its images in px."""
        return self.generator.architecture["size"]

    @property
    def latent_dim(self) -> int:
        """Length of a latent."""
        return self.generator.architecture["latent_dim"]

    def labels_of(self, class_names: Collection[str], what: str) -> dict[str, int]:
        """The GAN's number of each class. Raises UsageError for a class that it does not know."""
        numbers = {name: number for number, name in enumerate(self.class_names)}
        if unknown := [name for name in class_names if name not in numbers]:
            known = ", ".join(map(repr, self.class_names[:5])) + (", ..." if len(self.class_names) > 5 else "")
            raise UsageError(
                f"{what}: class {unknown[0]!r} ({len(unknown)} in all) is none of those that {self.name} was trained "
                f"on ({known}). Train a GAN on this data: dinv gan train."
            )
        return {name: numbers[name] for name in class_names}

    def refuse_tested(self, test_ids: Sequence[str], test_hashes: Sequence[str]) -> None:
        """Raise DataError where the GAN was trained on one of these test images."""
        seen = [i for i, content in zip(test_ids, test_hashes, strict=True) if content in self.trained_on]
        if seen:
            raise DataError(
                f"{self.name}: was trained on {len(seen)} of the {len(test_ids)} test images (first: {seen[0]}). Train "
                "it with the DATA, --test, --holdout and --data-seed of the run."
            )

    def images(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images (B, 3, S, S) float32 in (-1, 1) on `device` of latents (B, latent_dim) and the GAN's labels (B,)."""
        images: Tensor = self.generator(latents.to(self.device), labels.to(self.device))
        return images


def save_gan(generator: GanGenerator, images: LabelledImages, path: Path) -> None:
    """Write the generator, float32, with class names, content hashes and licence of its training images, or nothing."""
    architecture = {name: value for name, value in generator.architecture.items() if name != "classes"}
    record = {"schema": SCHEMA, **architecture, "class_names": list(images.class_names)}
    record |= {"licence": images.licence} if images.licence else {}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in generator.state_dict().items()}
    contents = b"".join(map(bytes.fromhex, sorted(set(images.hashes))))
    tensors[_TRAINED_ON] = torch.frombuffer(bytearray(contents), dtype=torch.uint8).reshape(-1, 32)
    commit_file(path, lambda partial: save_file(tensors, partial, metadata={_RECORD: json.dumps(record)}))


def load_gan(source: Path, device: torch.device) -> Gan:
    """Load what `dinv gan train` made (its folder, or a safetensors file of its layout), or the folder of a BigGAN.

    Raises UsageError where there is none, DataError for a file of another layout, or one that is damaged.
    """
    path = source / WEIGHTS if source.is_dir() else source
    if (source / CONFIG).is_file():
        if path.is_file():
            raise UsageError(f"{source}: holds two GANs, {WEIGHTS} and that of {CONFIG}. Give each a folder.")
        big, digest = load_biggan(source)
        names = tuple(big.config.class_names)
        return Gan(source.resolve().name, big.to(device), names, digest, frozenset(), device)
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file. Make it with `dinv gan train DATA --out FOLDER`, or give the folder of a BigGAN "
            f"with its {CONFIG} (docs/gan.md)."
        )
    infos, metadata = read_header(path, max_bytes=MAX_BYTES)
    if _RECORD not in metadata:
        raise DataError(
            f"{path}: not the layout of `dinv gan train` (no {_RECORD!r} in the file's metadata). Weights of BigGAN go "
            f"into a folder of their own with {CONFIG} (docs/gan.md); others are not read."
        )
    record = check_record(parse_json(metadata[_RECORD].encode(), path), _Record, path)
    names = tuple(record["class_names"])
    if record["size"] not in SIDES or len(set(names)) != len(names):
        raise DataError(
            f"{path}: a side of {record['size']} px, or a class twice; make it again with `dinv gan train`."
        )
    with torch.device("meta"):  # nothing is allocated before the tensors have the sizes that the record calls for
        generator = GanGenerator(len(names), record["size"], record["width"], record["latent_dim"])
    wanted = specs_of(generator)
    known = {_TRAINED_ON: TensorSpec(torch.uint8, (None, 32))} if _TRAINED_ON in infos else {}
    tensors, _ = read_tensors(path, wanted | known, max_bytes=MAX_BYTES)
    contents = tensors.pop(_TRAINED_ON, torch.empty(0, 32, dtype=torch.uint8))
    generator.load_state_dict(tensors, assign=True)
    generator.eval().requires_grad_(False)
    return Gan(
        source.resolve().name,
        generator.to(device),
        names,
        sha256_of(path),
        frozenset(row.numpy().tobytes().hex() for row in contents),
        device,
        record.get("licence", ""),
    )
