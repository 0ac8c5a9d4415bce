"""Several classifiers of the same classes as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .classifiers import Classifier


@torch.inference_mode()
def probabilities(classifiers: Sequence[Classifier], images: Tensor) -> Tensor:
    """Mean over classifiers of softmax(logits): images uint8 (B, 3, S, S) => float64 (B, classes) on the CPU.

    A deep ensemble (Lakshminarayanan et al., arXiv 1612.01474, section 2.4) of classifiers of one side S in eval mode,
    each computed in float32 on its device; no temperature.
    """
    each = [one(images.to(next(one.parameters()).device)).softmax(1).double().cpu() for one in classifiers]
    return torch.stack(each).mean(0)
