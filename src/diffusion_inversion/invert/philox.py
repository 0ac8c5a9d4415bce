"""Random numbers from counters: any number of a sequence at once, on any device, without a state to keep.

Philox4x32-10 (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3) in 64-bit integer operations of PyTorch.
Nothing here synchronises or copies between devices, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

NAME = "philox4x32-10"  # on record where numbers were drawn so
ROUNDS = 10
_MASK = 2**32 - 1
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what the two words of a key grow by from round to round


def round_keys(key: Int64[Tensor, "2 n *rest"]) -> Int64[Tensor, "rounds 2 n *rest"]:
    """The keys of all rounds from that of the first, words in 0..2^32-1."""
    steps = [[number * word for word in _WEYL] for number in range(ROUNDS)]
    added = torch.tensor(steps, dtype=torch.int64, device=key.device)
    return (key + added.view(ROUNDS, 2, *[1] * (key.ndim - 1))) & _MASK


def philox(
    counter: Sequence[Int64[Tensor, ...]], keys: Int64[Tensor, "rounds 2 n *rest"]
) -> tuple[Int64[Tensor, ...], ...]:
    """Four words of 32 random bits for each counter of four words and each key, which are broadcast to each other.

    `keys` are `round_keys`. All words lie in 0..2^32-1; a product of two wraps modulo 2^64, as both halves of it need.
    """
    a, b, c, d = counter
    for key in keys:
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = ((second >> 32) & _MASK) ^ b ^ key[0], second & _MASK
        c, d = ((first >> 32) & _MASK) ^ d ^ key[1], first & _MASK
    return a, b, c, d


def normals(words: Sequence[Int64[Tensor, "*shape n"]]) -> Float32[Tensor, "*shape 4n"]:
    """Standard normal numbers, at most 6.7 in size, from four tensors of words (Box and Muller 1958)."""
    found = []
    for first, second in (words[:2], words[2:]):
        uniform = first.float() * 2.0**-32 + 2.0**-33  # in (0, 1]: the logarithm is finite
        radius, angle = (-2 * uniform.log()).sqrt(), second.float() * (2 * math.pi * 2.0**-32)
        found += [radius * angle.cos(), radius * angle.sin()]
    return torch.cat(found, dim=-1)


def integers(words: Int64[Tensor, "*shape"], below: int) -> Int64[Tensor, "*shape"]:
    """Uniform integers in 0..below-1 for below <= 2^31; a value's probability is off by less than 2^-32."""
    return (words * below) >> 32
