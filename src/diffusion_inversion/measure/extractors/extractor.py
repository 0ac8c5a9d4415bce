"""What an extractor is, and how images go through it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import DataError


@dataclass(frozen=True)
class Preprocessing:
    """Resize to `size` px (antialiased where it shrinks, clamped to [0, 255]), divide by 255, then (x - mean) / std."""

    size: int
    mode: str  # "bilinear" or "bicubic"
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) => float32 (B, 3, size, size)."""
        pixels = F.interpolate(images.float(), size=(self.size, self.size), mode=self.mode, antialias=True)
        mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (pixels.clamp(0, 255) / 255 - mean) / std

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.mode} to {self.size} px, antialiased; mean {mean}; std {std}"


@dataclass(frozen=True, eq=False)
class Extractor:
    """A frozen network. `name` is what the user calls it; `suffix` ends the names of the metrics on it.

    embed: uint8 (B, 3, S, S) on `device` => float32 (B, dim), in float32 throughout. An image's row depends on the
    other images of its batch by rounding alone: 1e-4 of the largest entry at most (2e-6 measured
    with Lite0).
    """

    name: str
    suffix: str
    dim: int
    preprocessing: str
    weights_sha256: str
    device: torch.device
    embed: Callable[[Tensor], Tensor]


def extract(
    extractor: Extractor, images: Tensor, *, batch_size: int = 64, advance: Callable[[int], None] | None = None
) -> Tensor:
    """Features of uint8 (N, 3, S, S) as float32 (N, dim) on the CPU. Raises DataError where a feature is not finite.

    advance: called with the number of images after each batch.
    """
    features = torch.empty(len(images), extractor.dim)
    # TF32 convolutions would make features of a GPU differ from those of a CPU in the third digit.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(extractor.device)
            features[start : start + len(batch)] = extractor.embed(batch).cpu()
            if advance:
                advance(len(batch))
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite().all(dim=1)).sum())
        raise DataError(
            f"extractor {extractor.name}: NaN or infinity in the features of {bad} of {len(images)} images, so its "
            "weights are damaged; get them again"
        )
    return features


def weights_digest(model: nn.Module) -> str:
    """sha256 hex over the names, dtypes, shapes and bytes of all tensors of a model on the CPU, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
