"""Optimizers, learning-rate curve and weight averaging of the pre-training stages."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from ..errors import UsageError

WARMUP_STEPS = 200


def make_optimizer(model: nn.Module, name: str, lr: float) -> dict[str, Optimizer]:
    """`adamw`, or `muon`: timm's Muon for matrices and convolutions, AdamW for vectors and embeddings."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for key, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and "embedding" not in key
        (matrices if name == "muon" and is_matrix else others).append(parameter)
    adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    if name == "adamw":
        return {"adamw": adamw}
    if name == "muon":
        from timm.optim import Muon

        return {"muon": Muon(matrices, lr=lr, momentum=0.95, nesterov=True), "adamw": adamw}
    raise UsageError(f"optimizer={name!r}: unknown. Use adamw or muon.")


def learning_rate(peak: float, step: int, total_steps: int) -> float:
    """Linear warm-up over 200 steps, then a cosine to zero at `total_steps`."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return peak * warm * 0.5 * (1 + math.cos(math.pi * step / total_steps))


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move `ema` towards `model`; early steps use the smaller decay (1 + step) / (10 + step)."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


def trapezoid(peak: float, step: int, total_steps: int) -> float:
    """Linear warm-up over 200 steps, constant, linear to zero over the last fifth (arXiv 2405.18392)."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS, 5 * (total_steps - step) / total_steps)
