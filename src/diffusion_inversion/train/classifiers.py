"""A network that knows its classes and its images, and the file it is kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from ..config.training import known_architecture
from ..engine.store import commit_bytes
from ..engine.untrusted import check_record, parse_json, read_header, read_tensors, shown, specs_of
from ..errors import ConfigMismatchError, DataError, UsageError
from .architectures import build_network, form_of

# The same constants for every arm and data set, so that no arm brings statistics of its own.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
_FORMAT = "diffusion_inversion.classifier/1"
MAX_FILE = 2**30  # bytes; a ResNet18 of 10 classes has 4.5e7, a VGG16 above 96 px 5.4e8


class _Header(TypedDict):
    """The metadata of a classifier's file."""

    format: str
    architecture: Annotated[str, AfterValidator(known_architecture)]
    class_names: Annotated[list[str], Field(min_length=2)]
    image_size: Annotated[int, Field(ge=1, le=2**16)]
    provenance: dict[str, Any]
    form: NotRequired[int]  # of the network (`architectures.form_of`); 1 where it is not there


def choose_architecture(name: str, device: torch.device) -> str:
    """Return the network that `auto` means: resnet20 on a CPU, resnet18 elsewhere; other names as they are."""
    if name == "auto":
        return "resnet20" if device.type == "cpu" else "resnet18"
    return name


def _read_record(path: Path) -> _Header:
    """The metadata of a classifier's file, checked. Raises DataError."""
    _, metadata = read_header(path, max_bytes=MAX_FILE)
    header = parse_json(metadata.get("classifier", "{}").encode(), path)
    found = header.get("format") if isinstance(header, dict) else None
    if found != _FORMAT:
        raise DataError(f"its format is {shown(repr(found))}, not {_FORMAT!r}")
    return check_record(header, _Header, path)


def _other_form(record: _Header) -> str:
    return (
        f"an earlier version trained it with another form of {record['architecture']} at {record['image_size']} px "
        "(stem or width: architectures.py)"
    )


def require_form(path: Path) -> None:
    """Raise ConfigMismatchError for a classifier of a network that this version builds otherwise; else nothing.

    A file that is missing or damaged is not for this to judge.
    """
    try:
        record = _read_record(path)
    except (DataError, OSError):
        return
    if record.get("form", 1) != form_of(record["architecture"], record["image_size"]):
        raise ConfigMismatchError(
            f"{path}: {_other_form(record)}, so its accuracy is not to be set beside those of this version. Use "
            "`dinv train --restart`, or another folder."
        )


class Classifier(nn.Module):
    """A network that knows its classes and the side of the images it takes.

    Its parameters come from PyTorch's global generator: seed that for a reproducible start. `provenance` is a
    JSON object on how it was trained; it is saved and loaded with the weights.
    """

    provenance: dict[str, Any]

    def __init__(self, architecture: str, class_names: Sequence[str], image_size: int) -> None:
        super().__init__()
        if len(class_names) < 2:
            raise DataError(
                f"class_names={list(class_names)}: a classifier needs at least two; add images of another class."
            )
        self.architecture = architecture
        self.class_names = tuple(class_names)
        self.image_size = image_size
        self.provenance = {}
        self.network = build_network(architecture, len(self.class_names), image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Classify RGB images (B, 3, S, S) uint8, S = image_size: logits (B, classes). Raises UsageError otherwise."""
        side = self.image_size
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise UsageError(
                f"images: {images.dtype} of shape {tuple(images.shape)}; this classifier takes uint8 "
                f"(batch, 3, {side}, {side}). Resize them, e.g. with LabelledImages.resized({side})."
            )
        return self.logits(images.float() / 255)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of float images (B, 3, S, S) in [0, 1], through which gradients flow to the images."""
        logits: Tensor = self.network((images - PIXEL_MEAN) / PIXEL_STD)
        return logits

    def save(self, path: Path) -> str:
        """Commit weights, classes and provenance to one safetensors file; return its sha256 hex.

        The same content gives the same bytes. Raises DiskError.
        """
        from safetensors.torch import save

        header = {
            "format": _FORMAT,
            "architecture": self.architecture,
            "class_names": self.class_names,
            "image_size": self.image_size,
            "provenance": self.provenance,
            **({"form": form} if (form := form_of(self.architecture, self.image_size)) != 1 else {}),
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        # One metadata key: safetensors writes several in no fixed order.
        return commit_bytes(path, save(tensors, metadata={"classifier": json.dumps(header)}))

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read what `save` wrote: a classifier on the CPU in eval mode. Raises DataError for a file that is not one."""
        again = "Train it again, or name a file that `dinv train` wrote with this version"
        try:
            record = _read_record(path)
            if record.get("form", 1) != form_of(record["architecture"], record["image_size"]):
                raise DataError(_other_form(record))
            with torch.device("meta"):
                classifier = cls(record["architecture"], record["class_names"], record["image_size"])
            tensors, _ = read_tensors(path, specs_of(classifier.network), max_bytes=MAX_FILE)
        except (DataError, UsageError) as error:
            cause = str(error).removeprefix(f"{path}: ").partition("; ")[0]
            raise DataError(f"{path}: cannot be read as a classifier: {cause}. {again}.") from error
        classifier.network.load_state_dict(tensors, assign=True)
        if any(buffer.is_meta for buffer in classifier.network.buffers()):
            # Tables that a network makes from its shape, such as Swin's, are in no state dict.
            with torch.random.fork_rng(devices=[]):
                classifier = cls(record["architecture"], record["class_names"], record["image_size"])
            classifier.network.load_state_dict(tensors)
        classifier.provenance = record["provenance"]
        return classifier.eval()
