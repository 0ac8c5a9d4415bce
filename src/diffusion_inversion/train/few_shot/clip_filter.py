"""The CLIP filter of LECF (He et al. 2022, arXiv 2210.07574, section 3.2.1): what CLIP thinks an image shows."""

from __future__ import annotations

import torch
from torch import Tensor


def kept(confidences: Tensor, threshold: float, count: int) -> Tensor:
    """Rows (count,) int64, ascending, of one class's images that are kept of those in random order.

    confidences: (N,), the probability that CLIP gives the class. Of those of at least `threshold` the first `count`;
    where they are fewer, the `count` most confident of all. So what is kept and passes a higher threshold stays.
    """
    passing = (confidences >= threshold).nonzero()[:, 0]
    if len(passing) >= count:
        return passing[:count]
    return torch.sort(confidences, descending=True, stable=True).indices[:count].sort().values


def answers(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T) (B, C): the soft targets of synthetic images, He et al.'s soft-target cross-entropy.

    (1 - s) CE(y) + s CE(answers) is the cross-entropy with the target (1 - s) y + s answers.
    """
    return (logits / temperature).softmax(1)
