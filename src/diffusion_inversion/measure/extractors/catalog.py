"""Find an extractor by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ...errors import UsageError
from .extractor import Extractor
from .inception import open_inception
from .lite0 import open_lite0
from .timm_models import open_timm
from .transformer import open_clip, open_dinov2

EXTRACTORS: dict[str, Callable[[torch.device, str | Path | None], Extractor]] = {
    "lite0": open_lite0,
    "inception": open_inception,
    "dinov2": open_dinov2,
    "clip": open_clip,
}
NAMES = (*EXTRACTORS, "timm:<model>")


def open_extractor(name: str, device: torch.device, weights: str | Path | None = None) -> Extractor:
    """Load an extractor, frozen, on `device`.

    weights: None is what the metric is defined with, from the network where it is not here yet. Else inception and
        timm: a local file; dinov2 and clip: a local transformers folder or a hub id; lite0 takes none.
    Raises UsageError: unknown name, missing package, weights that are not here, cannot be fetched or do not fit.
    """
    if name.startswith("timm:"):
        return open_timm(name.removeprefix("timm:"), device, weights)
    if name in EXTRACTORS:
        return EXTRACTORS[name](device, weights)
    raise UsageError(f"--extractor {name}: not known; give one of {', '.join(NAMES)}.")
