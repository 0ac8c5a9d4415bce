"""CoOp (Zhou et al. 2022, arXiv 2109.01134): the words around the class name are learned vectors.

    prompt_y = [start] v_1 ... v_M [class y] . [end],    p(y | x) = softmax_y(scale cos(f(x), g(prompt_y)))

v is shared by all classes; f and g stay frozen. Otherwise than in the authors' code (KaiyangZhou/CoOp and its Dassl)
features come from a bank of views, not from a fresh view at each step, and synthetic images have a loss of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.few_shot import FewShotSettings
from ...errors import DinvError
from ...randomness import generator_for
from .examples import Batches, Encoded
from .prompts import prompts_with_context
from .zero_shot import zero_shot_logits

if TYPE_CHECKING:
    from .clip import Clip

_SPREAD = 0.02  # standard deviation of the first vectors
_WARM_UP_RATE = 1e-5
_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4  # Dassl's defaults, which CoOp's files leave alone


def coop_weights(clip: Clip, ids: Tensor, context: Tensor) -> Tensor:
    """Class weights (C, D) of length 1 for prompts (C, L), whose places 1 to M the context (M, W) takes.

    Gradients flow to the context.
    """
    return F.normalize(clip.text_features(ids, context), dim=1)


def coop_logits(clip: Clip, features: Tensor, ids: Tensor, context: Tensor) -> Tensor:
    """scale cos(f, g(prompt_y)): (B, C) for image features (B, D)."""
    return zero_shot_logits(features, coop_weights(clip, ids, context), clip.scale)


def epochs_of(shots: int, settings: FewShotSettings) -> int:
    """How often all shots are gone through: the settings' number, or CoOp's for so many shots."""
    if settings.coop_epochs is not None:
        return settings.coop_epochs
    return 50 if shots == 1 else 100 if shots <= 4 else 200


def rate_at(epoch: int, epochs: int, peak: float) -> float:
    """The learning rate of epoch 0..epochs-1: a constant warm-up of one epoch, then a cosine that begins at `peak`."""
    return _WARM_UP_RATE if epoch == 0 else 0.5 * peak * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def learn_context(
    clip: Clip,
    class_names: Sequence[str],
    real: Encoded,
    synthetic: Encoded | None,
    *,
    shots: int,
    settings: FewShotSettings,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Prompts (C, L) int64 and the context (M, W) float32 after the last epoch.

    An epoch is one of the real images; with synthetic ones each step has a batch of them too, and L = L_real + L_syn.
    Raises DinvError where the loss is no longer finite.
    """
    ids = prompts_with_context(clip, class_names, settings.coop_tokens)
    start = torch.randn(settings.coop_tokens, clip.text_width, generator=generator_for("few-shot", "context", seed))
    context = (_SPREAD * start).to(clip.device).requires_grad_()
    optimizer = torch.optim.SGD([context], lr=_WARM_UP_RATE, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    parts = [Batches(real, settings.coop_batch_size, "coop", "real", seed)]
    if synthetic is not None:
        parts.append(Batches(synthetic, settings.coop_batch_size, "coop", "synthetic", seed))
    epochs = epochs_of(shots, settings)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate_at(epoch, epochs, settings.coop_learning_rate)
        for _ in range(max(len(real) // settings.coop_batch_size, 1)):
            weights = coop_weights(clip, ids, context)
            drawn = [part.draw() for part in parts]
            losses = [
                F.cross_entropy(zero_shot_logits(features, weights, clip.scale), goal) for features, goal in drawn
            ]
            loss = torch.stack(losses).sum()
            if not bool(loss.isfinite()):
                raise DinvError(
                    f"coop: loss={loss.item()} in epoch {epoch}; set coop_learning_rate below "
                    f"{settings.coop_learning_rate:g}"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ids, context.detach()
