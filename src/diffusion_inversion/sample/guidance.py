"""Classifier-free guidance (arXiv 2207.12598), and what it leads away from."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def classifier_free_guidance(
    conditional: Float[Tensor, " batch *rest"],
    unconditional: Float[Tensor, " batch *rest"],
    guidance_scale: Float[Tensor, " batch"] | float,
) -> Float[Tensor, " batch *rest"]:
    """u + s (c - u), for predictions of any one kind (noise or v), each (B, ...); s is a number or (B,).

    `guidance_scale` follows diffusers: 1 gives the conditional prediction, 0 the unconditional one. The
    paper's w (section 3.2: (1 + w) c - w u) is guidance_scale - 1.
    """
    if isinstance(guidance_scale, Tensor):
        guidance_scale = guidance_scale.view(-1, *[1] * (conditional.ndim - 1))
    return unconditional + guidance_scale * (conditional - unconditional)


def add_rival(
    unconditional: Float[Tensor, " batch *rest"], rival: Float[Tensor, " batch *rest"], rival_weight: float
) -> Float[Tensor, " batch *rest"]:
    """u' = (1 - n) u + n r: vectors (B, ...) that guidance leads away from, n in [0, 1] of it the rivals'; ours.

    In `classifier_free_guidance` u' takes the place of u: where r = u, nothing changes. Vectors are mixed, not the
    predictions under them: these would need a third pass through the network, and u is a mean of vectors already.
    """
    return unconditional + rival_weight * (rival - unconditional)
