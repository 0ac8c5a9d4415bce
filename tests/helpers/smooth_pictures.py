"""Smooth random pictures of which each is unlike every other."""

from __future__ import annotations

import torch
from torch import Tensor


def pictures(count: int, seed: int, size: int = 32) -> Tensor:
    """uint8 (count, 3, size, size)."""
    stream = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=stream)
    return (torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") * 255).to(torch.uint8)
