"""Augmented views of images: a random crop of them at the encoder's side, mirrored or not (torchvision's two)."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

_RATIO = (3 / 4, 4 / 3)  # width by height of a crop
_TRIES = 10  # before the whole image is taken


def crop_box(side: int, smallest: float, generator: Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop of a square: its area at least `smallest` of the whole, as
    torchvision's RandomResizedCrop draws it. A shape that does not fit is drawn again, then the whole is taken."""
    for _ in range(_TRIES):
        share, place = torch.rand(2, generator=generator).tolist()
        area = side * side * (smallest + share * (1 - smallest))
        low, high = map(math.log, _RATIO)
        ratio = math.exp(low + place * (high - low))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= side and 0 < height <= side:
            top = int(torch.randint(side - height + 1, (1,), generator=generator))
            left = int(torch.randint(side - width + 1, (1,), generator=generator))
            return top, left, height, width
    return 0, 0, side, side


def random_view(image: Tensor, side: int, smallest: float, generator: Generator) -> Tensor:
    """A crop of an image uint8 (3, S, S), resized to (3, side, side), antialiased bicubic, mirrored at even odds."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    top, left, height, width = crop_box(image.shape[-1], smallest, generator)
    mirrored = bool(torch.rand(1, generator=generator) < 0.5)
    view: Tensor = resized_crop(
        image, top, left, height, width, [side, side], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return view.flip(-1) if mirrored else view
