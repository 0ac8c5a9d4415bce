"""The images of the report: real ones beside what was made of them, as data that a page can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...sample.png import encode_png

LARGEST_PNG = 128  # px; a larger image is a JPEG, which shows as much at a tenth of the bytes
_QUALITY = 90


@dataclass(frozen=True)
class Nearest:
    """The real training image nearest to each variant of one source, V of them."""

    images: Tensor  # (V, 3, S, S) uint8
    ids: tuple[str, ...]
    distances: tuple[float, ...]  # 0 = the same, 1 = as far as two different real images are on average


@dataclass(frozen=True)
class ReportImages:
    """R source images with what was made of them, all RGB uint8 of one side S."""

    real: Tensor  # (R, 3, S, S)
    reconstruction: Tensor | None  # (R, 3, S, S): sampled from the learned vector itself; None where there is none
    variants: Sequence[Tensor]  # of each source (V, 3, S, S); V may be 0 where counts are balanced
    labels: Tensor  # (R,) int64, index into the run's class names
    distances: tuple[float, ...] | None = None  # of each reconstruction to its source; None: not measured
    called: str = "variant"  # what a variant is called
    captions: tuple[str, ...] | None = None  # of each source's variants, all alike; None: `called` with a number
    ids: tuple[str, ...] | None = None  # of the sources
    photographs: Tensor | None = None  # (R, 3, P, P), P > S: the sources before they were shrunk; None: never larger
    nearest: tuple[Nearest, ...] | None = None  # of each source's variants; None: not measured
    # (3, S, S) each, of run.json's examples of failed labels: source, image, and what was drawn again.
    failed: Sequence[tuple[Tensor, Tensor, Tensor | None]] = ()
    # (3, S, S) and (V, 3, S, S) each, of run.json's images of the lowest and the highest noise: source and variants.
    strengths: Sequence[tuple[Tensor, Tensor]] = ()
    copies: bytes | None = None  # PNG of synthetic images above the training images that they are too near to
    redrawn: bytes | None = None  # PNG of training images, below each what is too near, and what is in its place
    strips: bytes | None = None  # PNG of vectors at growing strengths of interpolation and noise

    def __post_init__(self) -> None:
        rows, sides = len(self.real), self.real.shape[1:]
        reconstruction = self.real if self.reconstruction is None else self.reconstruction
        if (
            self.real.ndim != 4
            or reconstruction.shape != self.real.shape
            or any(variants.ndim != 4 or variants.shape[1:] != sides for variants in self.variants)
            or any(
                len(each) != rows
                for each in (self.variants, self.labels, self.distances, self.ids, self.photographs, self.nearest)
                if each is not None
            )
            or any(
                not len(found.images) == len(found.ids) == len(found.distances) == len(variants)
                for variants, found in zip(self.variants, self.nearest or (), strict=False)
            )
        ):
            raise ValueError(
                f"real {tuple(self.real.shape)}, reconstruction {tuple(reconstruction.shape)}, variants "
                f"{[tuple(one.shape) for one in self.variants]}, labels {tuple(self.labels.shape)}: not R images of "
                "one side with as many of everything else"
            )
        if any(images.dtype != torch.uint8 for images in (self.real, reconstruction, *self.variants)):
            raise ValueError("the report's images must be uint8")


def data_uri(image: bytes, kind: str = "png") -> str:
    """The bytes of an image as a URI that a page can hold."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def picture_uri(image: Tensor) -> str:
    """uint8 (3, H, W) as a URI: a PNG up to 128 px, each pixel as it is; a JPEG above."""
    if max(image.shape[1:]) <= LARGEST_PNG:
        return data_uri(encode_png(image))
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="JPEG", quality=_QUALITY)
    return data_uri(buffer.getvalue(), "jpeg")
