"""Classifier tuning (He et al. 2022, arXiv 2210.07574): a linear head on CLIP's features that begins as its text.

With synthetic images each step has a batch of either kind and L = L_real + L_syn, where L_syn mixes the labels' cross-
entropy with that of the zero-shot classifier's softened answers. Otherwise than in the authors' code (CVMI-Lab/
SyntheticData) there are as many steps without synthetic images as with them, and the last step's head counts, not the
best on the test images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.few_shot import FewShotSettings
from .clip_filter import answers
from .examples import Batches, Encoded

_EPOCHS, _PER_CLASS = 30, 800  # of the authors' synthetic images
_LONGEST_GRADIENT = 1.0


@dataclass(frozen=True, eq=False)
class Head:
    """Weight (C, D) and bias (C,) float32."""

    weight: Tensor
    bias: Tensor


def steps_of(classes: int, settings: FewShotSettings) -> int:
    """Optimizer steps of the settings, or the authors' for so many classes with their number of synthetic images."""
    if settings.tuning_steps is not None:
        return settings.tuning_steps
    return _EPOCHS * -(-_PER_CLASS * classes // settings.tuning_synthetic_batch_size)


def head_logits(features: Tensor, head: Head) -> Tensor:
    """f w^T + b (B, C) for image features (B, D) of any length."""
    return F.linear(F.normalize(features, dim=1), head.weight, head.bias)


def soft_loss(logits: Tensor, targets: Tensor, teacher: Tensor, settings: FewShotSettings) -> Tensor:
    """(1 - s) CE(logits, targets) + s CE(logits, softmax(teacher / T)); all (B, C)."""
    s = settings.soft_weight
    soft = F.cross_entropy(logits, answers(teacher, settings.soft_temperature))
    return (1 - s) * F.cross_entropy(logits, targets) + s * soft


def tune(
    real: Encoded, synthetic: Encoded | None, weights: Tensor, scale: float, settings: FewShotSettings, seed: int
) -> Head:
    """The head after the last step, from zero-shot class weights (C, D) of length 1; the encoder is frozen."""
    start = Head(scale * weights, torch.zeros(len(weights), device=weights.device))
    weight, bias = start.weight.clone().requires_grad_(), start.bias.clone().requires_grad_()
    steps = steps_of(len(weights), settings)
    optimizer = torch.optim.AdamW(
        [weight, bias], lr=settings.tuning_learning_rate, weight_decay=settings.tuning_weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = Batches(real, settings.tuning_batch_size, "tuning", "real", seed)
    others = None
    if synthetic is not None:
        others = Batches(synthetic, settings.tuning_synthetic_batch_size, "tuning", "synthetic", seed)
    for _ in range(steps):
        features, goal = batches.draw(augmented=False)
        loss = F.cross_entropy(head_logits(features, Head(weight, bias)), goal)
        if others is not None:
            features, goal = others.draw(augmented=False)
            logits, teacher = head_logits(features, Head(weight, bias)), head_logits(features, start)
            loss = loss + soft_loss(logits, goal, teacher, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight, bias], _LONGEST_GRADIENT)
        optimizer.step()
        schedule.step()
    return Head(weight.detach(), bias.detach())
