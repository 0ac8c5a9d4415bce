"""CutOut (DeVries and Taylor 2017, arXiv 1708.04552), batched: one black square in every image."""

from __future__ import annotations

import torch
from torch import Tensor


def square_side(size: int) -> int:
    """Side in px of the square in an image of side `size`: an eighth, and at least one pixel.

    Section B.2.3 has "a random square region, sized at 1/8 of the input image"; we read that as its side.
    """
    return max(size // 8, 1)


def erase_squares(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Return a copy of (B, 3, S, S) images, black in one square each; its corner (B,) int64 is in 0..S - side.

    Same as torchvision's `erase` with value 0, image by image.
    """

    def inside(corner: Tensor, length: int) -> Tensor:
        place = torch.arange(length, device=images.device) - corner.to(images.device)[:, None]
        return (place >= 0) & (place < side)

    rows, columns = inside(top, images.shape[-2]), inside(left, images.shape[-1])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Erase one square in each of (B, 3, S, S) images, any dtype, uniformly among the places wholly inside.

    Differs from DeVries and Taylor, whose squares may hang over the edge: each image loses the same area here.
    """
    side = square_side(images.shape[-1])
    places = images.shape[-1] - side + 1
    top, left = torch.randint(0, places, (2, images.shape[0]), generator=generator, device=generator.device)
    return erase_squares(images, top, left, side)
