"""Zero-shot classification: the nearest mean of the embeddings of a class's prompts (arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .prompts import filled, padded, token_ids

if TYPE_CHECKING:
    from .clip import Clip


@torch.no_grad()
def class_weights(clip: Clip, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """W (C, D) float32, rows of length 1: the mean of a class's embeddings, each of length 1."""
    rows = []
    for name in class_names:
        ids = padded(clip, [token_ids(clip, text) for text in filled(templates, name)])
        rows.append(F.normalize(clip.text_features(ids), dim=1).mean(0))
    return F.normalize(torch.stack(rows), dim=1)


def zero_shot_logits(features: Tensor, weights: Tensor, scale: float) -> Tensor:
    """scale f W^T (B, C) for image features (B, D) of any length and class weights (C, D) of length 1.

    scale is CLIP's own exp(logit_scale), 100 for OpenAI's.
    """
    return scale * F.normalize(features, dim=1) @ weights.T
