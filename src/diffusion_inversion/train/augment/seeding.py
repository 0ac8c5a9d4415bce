"""torchvision's transforms draw from PyTorch's global generator: lend it the state that a given generator decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def global_draws_from(generator: torch.Generator) -> Iterator[None]:
    """Seed the global CPU generator with one draw of `generator`, in [0, 2^63 - 1); on leaving, put its state back."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the GPUs' generators too, and fork_rng does not put these back.
        torch.default_generator.manual_seed(seed)
        yield
