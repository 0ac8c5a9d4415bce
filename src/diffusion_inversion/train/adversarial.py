"""ME-ADA's maximisation phase (Zhao et al. 2020, arXiv 2010.08001): images moved to where the classifier is worst.

Section B.2.3 of the paper: K times, T_min steps of training, then one such phase, whose copies join the training set
under the labels of their originals.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DinvError, UsageError


def objective(logits: Tensor, start_logits: Tensor, labels: Tensor, gamma: float, eta: float) -> Tensor:
    """What each copy raises: logits (B, C) now and at the start, labels (B,) int64 or soft (B, C), to (B,) in nats.

    cross-entropy + eta * entropy of the prediction - gamma / 2 * squared distance of the logits. Differs from Zhao et
    al., who take the distance between the inputs of the last layer: a classifier here is a function to logits.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1)
    distance = (logits - start_logits).square().sum(dim=1) / 2
    return F.cross_entropy(logits, labels, reduction="none") + eta * entropy - gamma * distance


def ascend(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    rate: float,
    gamma: float,
    eta: float,
) -> Tensor:
    """Return adversarial copies (B, 3, S, S) in [0, 1] of float32 images (B, 3, S, S) in [0, 1].

    Labels are (B,) int64, or soft ones (B, classes) float32.
    Each of `steps` steps adds `rate` times the gradient of the `objective` to every image and clips it to [0, 1].
    `network` maps images in [0, 1] to logits (B, classes); give it in eval mode, or its batch statistics tie the
    images to each other and are moved. Its parameters' gradients are left alone. The labels stay those of the images.

    Differs from the authors' code (garyzhao/ME-ADA), which takes means over the batch and over the features, clips
    once at the end, and steps on pixels in [-1, 1]: here no image depends on the size of its batch. Its rate 20 at
    batch 128 is 20 / 128 / 4 = 0.039 here, but for its distance of means. Its other defaults: 15 steps, gamma 1,
    eta 1 (10 in its CIFAR-10 command), 2 phases 10 epochs apart.

    Raises UsageError for images that are not float, DinvError where a pixel is no longer finite.
    """
    if not images.is_floating_point():
        raise UsageError(f"images: {images.dtype}; the ascent needs float images in [0, 1]: divide uint8 ones by 255.")
    copies = images.detach()
    with torch.no_grad():
        start_logits = network(copies).float()
    for _ in range(steps):
        copies.requires_grad_(True)
        with torch.enable_grad():
            value = objective(network(copies).float(), start_logits, labels, gamma, eta).sum()
            (gradient,) = torch.autograd.grad(value, copies)
        copies = (copies.detach() + rate * gradient).clamp(0, 1)
    if not copies.isfinite().all():
        raise DinvError(
            f"adversarial copies: not finite after {steps} steps at rate {rate:g}, gamma {gamma:g}. "
            "Give a smaller rate or gamma, or train the network further first."
        )
    return copies
