"""The paper's default augmentation, batched: random crop of the zero-padded image, random horizontal flip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_padding(size: int) -> int:
    """Zero pixels added on each side of an image of side `size`: an eighth, which is the usual 4 at 32 px."""
    return size // 8


@dataclass(frozen=True)
class Moves:
    """What happens to each of B images: corner of the crop in the padded image, in 0..2 padding; mirrored or not."""

    top: Tensor  # (B,) int64
    left: Tensor  # (B,) int64
    flip: Tensor  # (B,) bool

    @classmethod
    def draw(cls, batch: int, padding: int, generator: torch.Generator) -> Moves:
        """Draw corners uniformly and mirror half of the images, on the generator's device."""
        corners = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator, device=generator.device)
        flip = torch.rand(batch, generator=generator, device=generator.device) < 0.5
        return cls(corners[0], corners[1], flip)


def crop_and_flip(images: Tensor, moves: Moves, padding: int) -> Tensor:
    """Pad (B, 3, S, S) images of any dtype with zeros, cut one SxS window out of each, mirror those that `moves` says.

    Same as torchvision's `pad`, `crop` and `hflip` image by image, in one gather on the images' device.
    """
    batch, channels, height, width = images.shape
    device = images.device
    across = torch.arange(width, device=device)
    columns = torch.where(moves.flip.to(device)[:, None], across.flip(0), across) + moves.left.to(device)[:, None]
    rows = torch.arange(height, device=device) + moves.top.to(device)[:, None]
    # One flat place per pixel for all channels: 128 images of 32 px took 0.25 ms on one core, 1.7 ms with an index
    # for each dimension.
    places = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).reshape(batch, 1, height * width)
    padded = F.pad(images, (padding, padding, padding, padding)).flatten(2)
    return padded.gather(2, places.expand(-1, channels, -1)).reshape(images.shape)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return randomly cropped and mirrored images: (B, 3, S, S), any dtype, to the same shape, dtype and device.

    Every image moves on its own. A generator on the CPU gives the same moves whatever the images' device.
    """
    padding = crop_padding(images.shape[-1])
    return crop_and_flip(images, Moves.draw(images.shape[0], padding, generator), padding)
