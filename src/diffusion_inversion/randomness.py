"""Random numbers by identity: a generator depends on what it is for, never on a position in a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor


def generator_for(*identity: int | str) -> torch.Generator:
    """A CPU torch.Generator seeded by a hash of `identity`, e.g. (run seed, "sample", source id, variant)."""
    return torch.Generator().manual_seed(int.from_bytes(_digest(identity)[:8], "big") >> 1)


def words_for(identities: Sequence[Sequence[int | str]]) -> Int64[Tensor, "4 n"]:
    """128 bits of the hash of each identity, as words in 0..2^32-1: what a counter-based generator is keyed by."""
    digests = [_digest(tuple(identity)) for identity in identities]
    words = [[int.from_bytes(digest[start : start + 4], "big") for start in range(0, 16, 4)] for digest in digests]
    return torch.tensor(words, dtype=torch.int64).reshape(-1, 4).T.contiguous()


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """The ids in an order that depends on them and the seed alone; groups that are learned together are cut from it."""
    return sorted(ids, key=lambda i: (hashlib.sha256(f"{seed} group {i}".encode()).hexdigest(), i))


def _digest(identity: tuple[int | str, ...]) -> bytes:
    return hashlib.sha256(json.dumps(identity, ensure_ascii=True).encode()).digest()
