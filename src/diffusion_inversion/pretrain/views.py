"""Views of the training images: plain, mirrored, near (crops) and wide (what no photograph of the corpus looks like).

The wide views bring cells, solar modules and drawings within reach of a generator that saw photographs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Draw: TypeAlias = Callable[..., Tensor]  # draw(*shape): uniform in [0, 1), on the images' device


def device_draws(device: torch.device) -> Draw:
    """Draws from the device's own generator: they can be captured in a CUDA graph."""
    return lambda *shape: torch.rand(*shape, device=device)


def seeded_draws(seed: int, device: torch.device) -> Draw:
    """Draws that are the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.rand(*shape, generator=generator).to(device)


def mirrored_half(images: Tensor, draw: Draw) -> Tensor:
    """Float images (B, 3, S, S), each mirrored with probability 1/2."""
    return torch.where(_wide(draw(len(images)) < 0.5), images.flip(-1), images)


def near_view(images: Tensor, draw: Draw) -> Tensor:
    """Random crops of 0.6 to 1 times the side, mirrored half of the time; float (B, 3, S, S) in [-1, 1]."""
    count = len(images)
    zoom = 1 - 0.4 * draw(count)
    mirror = torch.where(draw(count) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(zoom)
    return _eight_bits(_resample(images, zoom * mirror, zero, zero, zoom, *_shifts(1 - zoom, draw)))


def wide_view(images: Tensor, draw: Draw) -> Tensor:
    """Zoom, turns, grey, channel order, contrast, tint, inversion, blur and more; float (B, 3, S, S) in [-1, 1].

    Rounded to 8 bits, as an image file would be. Shares: zoom to 2x 70 %, quarter turns 50 % (of which a quarter is
    none), turns of up to 14 degrees 30 %, mirrored 50 %, grey 35 %, other saturation 32 %, channels reordered 30 %,
    contrast and brightness 60 % each, tint 30 %, inverted 15 %, blurred 15 %.
    """
    count = len(images)
    images = _wide_geometry(images, draw)
    grey = images.mean(1, keepdim=True)
    zero, one = images.new_zeros(count), images.new_ones(count)
    saturation = torch.where(draw(count) < 0.5, 0.3 + 1.4 * draw(count), one)
    saturation = torch.where(draw(count) < 0.35, zero, saturation)
    images = grey + (images - grey) * _wide(saturation)
    order = torch.argsort(draw(count, 3), dim=1)[:, :, None, None].expand_as(images)
    images = torch.where(_wide(draw(count) < 0.3), images.gather(1, order), images)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    contrast = torch.where(draw(count) < 0.6, 0.4 + 1.2 * draw(count), one)
    brightness = torch.where(draw(count) < 0.6, 0.8 * (draw(count) - 0.5), zero)
    images = (mean + (images - mean) * _wide(contrast) + _wide(brightness)).clamp(-1, 1)
    tint = 0.5 * (draw(count, 3, 1, 1) - 0.5)
    images = torch.where(_wide(draw(count) < 0.3), (images + tint).clamp(-1, 1), images)
    images = torch.where(_wide(draw(count) < 0.15), -images, images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    blur = torch.where(draw(count) < 0.15, draw(count), zero)
    return _eight_bits(images + (blurred - images) * _wide(blur))


def _wide_geometry(images: Tensor, draw: Draw) -> Tensor:
    count = len(images)
    zero, one = images.new_zeros(count), images.new_ones(count)
    zoom = torch.where(draw(count) < 0.7, 1 - 0.5 * draw(count), one)
    quarters = torch.where(draw(count) < 0.5, (4 * draw(count)).floor(), zero)
    tilt = torch.where(draw(count) < 0.3, 0.5 * (draw(count) - 0.5), zero)
    tilted = tilt != 0
    zoom = torch.where(tilted, zoom.clamp(max=0.78), zoom)  # the corners of a turned square stay inside
    mirror = torch.where(draw(count) < 0.5, -1.0, 1.0)
    angle = quarters * (math.pi / 2) + tilt
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    x, y = _shifts(1 - zoom, draw)
    x, y = x.masked_fill(tilted, 0.0), y.masked_fill(tilted, 0.0)
    return _resample(images, cos * mirror, -sin, sin * mirror, cos, x, y)


def _shifts(room: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    return (2 * draw(len(room)) - 1) * room, (2 * draw(len(room)) - 1) * room


def _resample(images: Tensor, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bicubic samples at the affine image of the grid; coordinates in [-1, 1], all arguments (B,)."""
    theta = torch.stack([torch.stack([xx, xy, x], 1), torch.stack([yx, yy, y], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _eight_bits(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
