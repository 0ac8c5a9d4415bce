"""Copies of known images, made on purpose in levels: what an audit must find, and what shows how much it can."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...data.images import resize
from ...randomness import generator_for

Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Planted:
    """Copies of one level, and which known images each shows."""

    images: Tensor  # (N, 3, S, S) uint8
    rows: Tensor  # (N, 2) int64, rows of the known images: the same twice unless two were joined


def plant(level: str, images: Tensor, rows: Tensor, seed: int) -> Planted:
    """Copy the rows (M,) of uint8 images (N, 3, S, S); what is random about a copy depends on seed, level and row.

    Raises KeyError for a level that `LEVELS` does not name.
    """
    second = rows.roll(1) if level == MOSAIC else rows
    copies = [
        LEVELS[level](images[row], images[other], generator_for(seed, "planted", level, row))
        for row, other in zip(rows.tolist(), second.tolist(), strict=True)
    ]
    return Planted(torch.stack(copies), torch.stack([rows, second], dim=1))


def _exact(image: Tensor, _: Tensor, __: torch.Generator) -> Tensor:
    return image


def _flip(image: Tensor, _: Tensor, __: torch.Generator) -> Tensor:
    return image.flip(-1)


def _jpeg(quality: int) -> Change:
    def change(image: Tensor, _: Tensor, __: torch.Generator) -> Tensor:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(buffer).convert("RGB"))).permute(2, 0, 1)

    return change


def _crop(share: float) -> Change:
    """A square of this share of the side, anywhere, enlarged to the whole."""

    def change(image: Tensor, _: Tensor, stream: torch.Generator) -> Tensor:
        size = image.shape[-1]
        side = round(share * size)
        top, left = torch.randint(size - side + 1, (2,), generator=stream).tolist()
        return resize(image[None, :, top : top + side, left : left + side], size)[0]

    return change


def _rotation(degrees: float) -> Change:
    """Turned to either side about the middle; the edges are those of the mirrored surroundings."""

    def change(image: Tensor, _: Tensor, stream: torch.Generator) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode, functional

        side = image.shape[-1]
        sign = 1 if torch.rand((), generator=stream) < 0.5 else -1
        around = functional.pad(image, [side // 4] * 4, padding_mode="reflect")
        turned: Tensor = functional.rotate(around, sign * degrees, interpolation=InterpolationMode.BILINEAR)
        first = side // 4
        return turned[:, first : first + side, first : first + side]

    return change


def _colour(strength: float) -> Change:
    """Brightness, contrast and saturation within 1 +- strength, hue turned by up to a quarter of it."""

    def change(image: Tensor, _: Tensor, stream: torch.Generator) -> Tensor:
        from torchvision.transforms.v2 import functional

        drawn = (2 * torch.rand(4, generator=stream) - 1).tolist()
        image = functional.adjust_brightness(image, 1 + strength * drawn[0])
        image = functional.adjust_contrast(image, 1 + strength * drawn[1])
        image = functional.adjust_saturation(image, 1 + strength * drawn[2])
        image = functional.adjust_hue(image, strength / 4 * drawn[3])
        return image

    return change


def _blur(share: float) -> Change:
    """A Gaussian whose standard deviation is this share of the side, a third of a pixel at least: a narrower one has no
    neighbours, or such as rounding takes away, and would leave a small image as it is.
    """

    def change(image: Tensor, _: Tensor, __: torch.Generator) -> Tensor:
        from torchvision.transforms.v2 import functional

        sigma = max(share * image.shape[-1], 1 / 3)
        blurred: Tensor = functional.gaussian_blur(image, kernel_size=2 * round(2 * sigma) + 1, sigma=sigma)
        return blurred

    return change


def _mosaic(image: Tensor, other: Tensor, _: torch.Generator) -> Tensor:
    """The left half of one image beside the right half of another."""
    middle = image.shape[-1] // 2
    return torch.cat([image[..., :middle], other[..., middle:]], dim=-1)


MOSAIC = "mosaic of two"
LEVELS: dict[str, Change] = {
    "exact": _exact,
    "JPEG 75": _jpeg(75),
    "JPEG 20": _jpeg(20),
    "crop to 90 %": _crop(0.9),
    "crop to 75 %": _crop(0.75),
    "flip": _flip,
    "rotation by 5°": _rotation(5),
    "rotation by 15°": _rotation(15),
    "colour 0.2": _colour(0.2),
    "colour 0.5": _colour(0.5),
    "blur 1/32": _blur(1 / 32),
    "blur 1/16": _blur(1 / 16),
    MOSAIC: _mosaic,
}
