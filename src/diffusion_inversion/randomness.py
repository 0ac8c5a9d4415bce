"""Random numbers by identity: a generator depends on what it is for, never on a position in a batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch


def generator_for(*identity: int | str) -> torch.Generator:
    """A CPU torch.Generator seeded by a hash of `identity`, e.g. (run seed, "sample", source id, variant)."""
    digest = hashlib.sha256(json.dumps(identity, ensure_ascii=True).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """The ids in an order that depends on them and the seed alone; groups that are learned together are cut from it."""
    return sorted(ids, key=lambda i: (hashlib.sha256(f"{seed} group {i}".encode()).hexdigest(), i))
