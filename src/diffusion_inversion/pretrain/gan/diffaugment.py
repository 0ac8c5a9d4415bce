"""DiffAugment (Zhao et al., arXiv 2006.10738): differentiable augmentations of what the discriminator sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ...config.commands import GanAugmentation

SHIFT, HOLE = 1 / 8, 1 / 2  # of the side: farthest translation, side of the square that is cut out


@dataclass(frozen=True)
class Draws:
    """All that is random about the augmentation of N images; the same draws do the same to any N images."""

    brightness: Float[Tensor, " images"]  # uniform in [0, 1), as are the next two
    saturation: Float[Tensor, " images"]
    contrast: Float[Tensor, " images"]
    shift: Int64[Tensor, "images 2"]  # px, down and to the right
    hole: Int64[Tensor, "images 2"]  # px, centre of the square, row and column


def draw(count: int, size: int, stream: torch.Generator | None = None, device: torch.device | str = "cpu") -> Draws:
    """Draws for `count` images of `size` px on `device`: of every policy, whichever are used.

    Without `stream` from the device's own generator, which can be captured in a CUDA graph.
    """
    brightness, saturation, contrast = torch.rand(3, count, generator=stream, device=device)
    farthest, side = _shift(size), _hole(size)
    shift = torch.randint(-farthest, farthest + 1, (count, 2), generator=stream, device=device)
    hole = torch.randint(0, size + 1 - side % 2, (count, 2), generator=stream, device=device)
    return Draws(brightness, saturation, contrast, shift, hole)


def augment(
    images: Float[Tensor, "images 3 side side"], draws: Draws, policies: Sequence[GanAugmentation]
) -> Float[Tensor, "images 3 side side"]:
    """Images in [-1, 1], augmented in the order of `policies`; colours may leave that range. Gradients pass through."""
    for policy in policies:
        images = _POLICIES[policy](images, draws)
    return images


def color(images: Tensor, draws: Draws) -> Tensor:
    """Brightness + U(-.5, .5), then saturation times U(0, 2) and contrast times U(.5, 1.5) about their means."""
    amounts = (draws.brightness, draws.saturation, draws.contrast)
    brightness, saturation, contrast = (v.to(images.device)[:, None, None, None] for v in amounts)
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translation(images: Tensor, draws: Draws) -> Tensor:
    """Shift each image by up to an eighth of its side; what comes in is 0."""
    size = images.shape[-1]
    margin = _shift(size)
    padded = F.pad(images, (margin,) * 4).permute(0, 2, 3, 1)
    first = margin - draws.shift.to(images.device)
    place = first[:, :, None] + torch.arange(size, device=images.device)
    rows = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[rows, place[:, 0, :, None], place[:, 1, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, draws: Draws) -> Tensor:
    """Set a square of half the side to 0; its centre is anywhere, so it may lie partly outside."""
    size = images.shape[-1]
    side = _hole(size)
    place = torch.arange(size, device=images.device) - (draws.hole.to(images.device)[:, :, None] - side // 2)
    inside = (place >= 0) & (place < side)
    return images * ~(inside[:, None, 0, :, None] & inside[:, None, 1, None, :])


_POLICIES: dict[GanAugmentation, Callable[[Tensor, Draws], Tensor]] = {
    "color": color, "translation": translation, "cutout": cutout, "none": lambda images, draws: images,
}  # fmt: skip


def _shift(size: int) -> int:
    return int(size * SHIFT + 0.5)


def _hole(size: int) -> int:
    return int(size * HOLE + 0.5)
