"""Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022, arXiv 2207.09519): shots as a cache beside the zero-shot logits.

    A = exp(-beta (1 - f K^T)),    logits = scale f W^T + alpha A L

K are the shots' features, L their labels. The authors' code chooses alpha and beta, and for F the epoch, with images
apart, the epoch with those of the test; here folds of the shots choose alpha and beta, and the last epoch counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.few_shot import FewShotSettings
from .examples import Batches, Encoded, folds, without
from .zero_shot import zero_shot_logits

_SMALLEST = 0.1  # of alpha and beta in a search
_EPSILON = 1e-4  # AdamW's


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys K (N, D) float32, of length 1 until they are trained, and values L (N, C), rows sum to 1."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Choice:
    """Weight and sharpness of the cache; accuracy in [0, 1] on the held-out shots, None where nothing was searched."""

    alpha: float
    beta: float
    accuracy: float | None


def build_cache(parts: Sequence[Encoded]) -> Cache:
    """One entry an image: the mean of its views' features, then of length 1."""
    keys = torch.cat([F.normalize(part.views.mean(0), dim=1) for part in parts])
    return Cache(keys, torch.cat([part.targets for part in parts]))


def affinity(features: Tensor, keys: Tensor) -> Tensor:
    """f K^T (B, N) for features (B, D) of any length."""
    return F.normalize(features, dim=1) @ keys.T


def tip_logits(features: Tensor, weights: Tensor, cache: Cache, *, alpha: float, beta: float, scale: float) -> Tensor:
    """scale f W^T + alpha exp(-beta (1 - f K^T)) L: (B, C) for image features (B, D) and class weights (C, D)."""
    near = torch.exp(-beta * (1 - affinity(features, cache.keys)))
    return zero_shot_logits(features, weights, scale) + alpha * near @ cache.values


def fine_tune(
    cache: Cache, real: Encoded, synthetic: Encoded | None, weights: Tensor, scale: float, settings: FewShotSettings,
    seed: int, after_step: Callable[[Cache], None] | None = None,
) -> Cache:  # fmt: skip
    """The cache with its keys trained (F), alpha and beta as they begin; AdamW, cosine, the last step's keys.

    An epoch is one of the real images; with synthetic ones each step has a batch of them too, and L = L_real + L_syn.
    `after_step` sees the cache after each step.
    """
    keys = cache.keys.clone().requires_grad_()
    steps = settings.tip_epochs * -(-len(real) // settings.tip_batch_size)
    optimizer = torch.optim.AdamW([keys], lr=settings.tip_learning_rate, eps=_EPSILON)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parts = [Batches(real, settings.tip_batch_size, "tip", "real", seed)]
    if synthetic is not None:
        parts.append(Batches(synthetic, settings.tip_batch_size, "tip", "synthetic", seed))
    for _ in range(steps):
        trained = Cache(keys, cache.values)
        losses = [
            F.cross_entropy(
                tip_logits(features, weights, trained, alpha=settings.tip_alpha, beta=settings.tip_beta, scale=scale),
                goal,
            )
            for features, goal in (part.draw() for part in parts)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
        if after_step is not None:
            after_step(Cache(keys.detach().clone(), cache.values))
    return Cache(keys.detach(), cache.values)


def choose(
    real: Encoded,
    synthetic: Encoded | None,
    weights: Tensor,
    scale: float,
    settings: FewShotSettings,
    make: Callable[[Encoded, Encoded | None], Cache],
) -> Choice:
    """Alpha and beta with the best accuracy over folds of the real shots; of equals the least cross-entropy.

    `make` builds the cache of what a fold leaves: of the shots the other folds, of the synthetic images those that were
    not made from its shots. Shots that are alike share a fold. Where a class has one shot nothing can be held out: the
    values to begin with.
    """
    parts = folds(real.labels, settings.folds, real.alike)
    if not parts:
        return Choice(settings.tip_alpha, settings.tip_beta, None)
    alphas = grid(settings.largest_alpha, settings.alphas).to(weights.device)
    betas = grid(settings.largest_beta, settings.betas)
    right = torch.zeros(len(betas), len(alphas), dtype=torch.float64)
    loss = torch.zeros_like(right)
    for part in parts:
        held = real.rows(part)
        ids = frozenset().union(*held.made_from)
        left = None if synthetic is None else without(synthetic, ids)
        cache = make(real.rows(sorted(set(range(len(real))) - set(part))), left if left else None)
        near, plain = affinity(held.clean, cache.keys), zero_shot_logits(held.clean, weights, scale)
        for place, beta in enumerate(betas.tolist()):
            cached = torch.exp(-beta * (1 - near)) @ cache.values
            logits = plain + alphas[:, None, None] * cached  # (alphas, held out, C)
            right[place] += (logits.argmax(2) == held.labels).sum(1).double().cpu()
            loss[place] -= (held.targets * logits.log_softmax(2)).sum((1, 2)).double().cpu()
    best = right.max()
    beta, alpha = divmod(int(torch.where(right == best, loss, torch.inf).argmin()), len(alphas))
    return Choice(float(alphas[alpha]), float(betas[beta]), float(best) / sum(map(len, parts)))


def grid(largest: float, count: int) -> Tensor:
    """`count` values from 0.1 on in equal steps that would reach `largest` with one more (the authors' grid)."""
    return _SMALLEST + torch.arange(count) * (largest - _SMALLEST) / count
