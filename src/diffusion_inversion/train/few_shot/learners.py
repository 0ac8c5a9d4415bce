"""The learners side by side: shots in, a classifier of features out. No test image is ever an argument here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...config.few_shot import FewShotSettings, Method
from .coop import coop_logits, learn_context
from .examples import Encoded
from .tip_adapter import Cache, Choice, build_cache, choose, fine_tune, tip_logits
from .tuning import head_logits, tune
from .zero_shot import zero_shot_logits

if TYPE_CHECKING:
    from .clip import Clip

AUGMENTED: tuple[Method, ...] = ("coop", "tip-adapter", "tip-adapter-f")  # learners that need views


@dataclass(frozen=True)
class Learned:
    """A classifier: logits (B, C) of image features (B, D) of any length, and what was chosen on folds of the shots."""

    logits: Callable[[Tensor], Tensor]
    choice: Choice | None = None


def learn(
    method: Method,
    clip: Clip,
    class_names: Sequence[str],
    weights: Tensor,
    real: Encoded,
    synthetic: Encoded | None,
    *,
    shots: int,
    settings: FewShotSettings,
    seed: int,
) -> Learned:
    """Train a learner on real images, with synthetic ones in its loss and cache where there are some.

    weights: zero-shot class weights (C, D) of length 1. The result is that of the last epoch. Random numbers depend on
    the seed alone, so real images come in one order with and without synthetic ones. Raises DinvError where CoOp's
    training diverges.
    """
    scale = clip.scale
    if method == "zero-shot":
        return Learned(lambda features: zero_shot_logits(features, weights, scale))
    if method == "coop":
        ids, context = learn_context(clip, class_names, real, synthetic, shots=shots, settings=settings, seed=seed)
        return Learned(lambda features: coop_logits(clip, features, ids, context))
    if method == "classifier-tuning":
        head = tune(real, synthetic, weights, scale, settings, seed)
        return Learned(lambda features: head_logits(features, head))

    def make(some: Encoded, others: Encoded | None) -> Cache:
        cache = build_cache([some] if others is None else [some, others])
        if method == "tip-adapter-f":
            return fine_tune(cache, some, others, weights, scale, settings, seed)
        return cache

    choice = choose(real, synthetic, weights, scale, settings, make)
    cache = make(real, synthetic)
    return Learned(
        lambda features: tip_logits(features, weights, cache, alpha=choice.alpha, beta=choice.beta, scale=scale),
        choice,
    )
