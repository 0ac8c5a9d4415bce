"""The downstream networks: ResNet-20 for 32 px images on a CPU, ResNet18 where there is a GPU."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from .engine.store import commit_bytes
from .engine.untrusted import check_record, parse_json, read_header, read_tensors, shown, specs_of
from .errors import DataError, UsageError

Architecture = Literal["resnet20", "resnet18"]
ARCHITECTURES: tuple[Architecture, ...] = ("resnet20", "resnet18")
SMALL_IMAGE = 64  # px: up to this side ResNet18 keeps the full resolution in its stem
# The same constants for every arm and data set, so that no arm brings statistics of its own.
_PIXEL_MEAN, _PIXEL_STD = 0.5, 0.25
_FORMAT = "diffusion_inversion.classifier/1"
MAX_FILE = 2**30  # bytes; a ResNet18 of 10 classes has 4.5e7


class _Header(TypedDict):
    """The metadata of a classifier's file."""

    format: str
    architecture: Architecture
    class_names: Annotated[list[str], Field(min_length=2)]
    image_size: Annotated[int, Field(ge=1, le=2**16)]
    provenance: dict[str, Any]


class ZeroPadShortcut(nn.Module):
    """He et al. 2016, option A: take every second pixel, double the channels with zeros; no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 2C, H/2, W/2), halves rounded up."""
        half = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


def resnet20(classes: int) -> nn.Module:
    """ResNet-20 of He et al. 2016 section 4.2, with option-A shortcuts: 269,722 parameters for 10 classes.

    Float images (B, 3, H, W), H and W from 8 up, to logits (B, classes). Three stages of three torchvision
    `BasicBlock`s, 16, 32 and 64 channels at full, half and quarter resolution: at 512 px it costs 256 times
    as much as at 32 px.
    """
    from torchvision.models.resnet import BasicBlock

    blocks: list[nn.Module] = []
    channels = 16
    for width in (16, 32, 64):
        for _ in range(3):
            halve = width != channels
            blocks.append(BasicBlock(channels, width, 2 if halve else 1, ZeroPadShortcut() if halve else None))
            channels = width
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(inplace=True),
            blocks=nn.Sequential(*blocks),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, classes),
        )
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet18(classes: int, image_size: int) -> nn.Module:
    """torchvision's ResNet18 without pretrained weights.

    Up to 64 px the stem is a 3x3 convolution of stride 1 without max-pooling (11.17 M parameters for 10
    classes), above it is the standard one. Float images (B, 3, H, W), H and W from 8 up, to logits (B, classes).
    """
    from torchvision import models

    network: nn.Module = models.resnet18(weights=None, num_classes=classes)
    if image_size <= SMALL_IMAGE:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


def choose_architecture(name: Literal["auto", "resnet20", "resnet18"], device: torch.device) -> Architecture:
    """Return the network that `auto` means: resnet20 on a CPU, resnet18 elsewhere; other names as they are."""
    if name == "auto":
        return "resnet20" if device.type == "cpu" else "resnet18"
    return name


class Classifier(nn.Module):
    """A network that knows its classes and the side of the images it takes.

    Its parameters come from PyTorch's global generator: seed that for a reproducible start. `provenance` is a
    JSON object on how it was trained; it is saved and loaded with the weights.
    """

    provenance: dict[str, Any]

    def __init__(self, architecture: Architecture, class_names: Sequence[str], image_size: int) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UsageError(f"architecture={architecture!r}: unknown; use one of {', '.join(ARCHITECTURES)}.")
        if len(class_names) < 2:
            raise DataError(
                f"class_names={list(class_names)}: a classifier needs at least two; add images of another class."
            )
        self.architecture: Architecture = architecture
        self.class_names = tuple(class_names)
        self.image_size = image_size
        self.provenance = {}
        classes = len(self.class_names)
        self.network = resnet20(classes) if architecture == "resnet20" else resnet18(classes, image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Classify RGB images (B, 3, S, S) uint8, S = image_size: logits (B, classes). Raises UsageError otherwise."""
        side = self.image_size
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise UsageError(
                f"images: {images.dtype} of shape {tuple(images.shape)}; this classifier takes uint8 "
                f"(batch, 3, {side}, {side}). Resize them, e.g. with LabelledImages.resized({side})."
            )
        logits: Tensor = self.network((images.float() / 255 - _PIXEL_MEAN) / _PIXEL_STD)
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
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        # One metadata key: safetensors writes several in no fixed order.
        return commit_bytes(path, save(tensors, metadata={"classifier": json.dumps(header)}))

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read what `save` wrote: a classifier on the CPU in eval mode. Raises DataError for a file that is not one."""
        again = "Train it again, or name a file that `dinv train` wrote with this version"
        try:
            _, metadata = read_header(path, max_bytes=MAX_FILE)
            header = parse_json(metadata.get("classifier", "{}").encode(), path)
            found = header.get("format") if isinstance(header, dict) else None
            if found != _FORMAT:
                raise DataError(f"its format is {shown(repr(found))}, not {_FORMAT!r}")
            record = check_record(header, _Header, path)
            with torch.device("meta"):
                classifier = cls(record["architecture"], record["class_names"], record["image_size"])
            tensors, _ = read_tensors(path, specs_of(classifier.network), max_bytes=MAX_FILE)
        except DataError as error:
            cause = str(error).removeprefix(f"{path}: ").partition("; ")[0]
            raise DataError(f"{path}: cannot be read as a classifier: {cause}. {again}.") from error
        classifier.network.load_state_dict(tensors, assign=True)
        classifier.provenance = record["provenance"]
        return classifier.eval()
