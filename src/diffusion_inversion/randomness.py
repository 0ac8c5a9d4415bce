"""Random numbers by identity: a generator depends on what it is for, never on a position in a batch."""

from __future__ import annotations

import hashlib
import json

import torch


def generator_for(*identity: int | str) -> torch.Generator:
    """A CPU torch.Generator seeded by a hash of `identity`, e.g. (run seed, "sample", source id, variant)."""
    digest = hashlib.sha256(json.dumps(identity, ensure_ascii=True).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
