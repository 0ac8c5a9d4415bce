"""What a long unit of work has so far, saved now and then, so that a kill costs minutes and not the unit."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .signals import out_of_time
from .store import commit_bytes
from .units import unit_name

EVERY = 120.0  # seconds between two saves
STATE_FILE = re.compile(r"state-[0-9a-f]{16}\.safetensors")


class UnitState:
    """Tensors that a unit goes on from, in one safetensors file beside its results. No record names it."""

    def __init__(self, folder: Path, jobs: tuple[str, ...], made_from: Any) -> None:
        """`made_from` is JSON data, all that the result depends on: another call does not take over this state."""
        key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
        self.path = folder / f"state-{unit_name([*jobs, key])}.safetensors"
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """What was saved; None where nothing was, or where the file is damaged, so that the unit begins anew."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                return tensors if (file.metadata() or {}).get("check") == _check(tensors) else None
        except (OSError, SafetensorError):
            return None

    def offer(self, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Save, if it is time to; raise KeyboardInterrupt where a stop was asked for and the grace is over."""
        stop = out_of_time()
        if stop or time.monotonic() - self._saved_at >= EVERY:
            self.save(tensors())
            self._saved_at = time.monotonic()
        if stop:
            raise KeyboardInterrupt

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors durably. Raises DiskError."""
        from safetensors.torch import save

        kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        commit_bytes(self.path, save(kept, metadata={"check": _check(kept)}))

    def clear(self) -> None:
        """Delete the file: the unit is committed."""
        self.path.unlink(missing_ok=True)


def clear_states(folder: Path) -> None:
    """Delete what units left that were cut otherwise later. Call it when a stage is complete."""
    for path in folder.glob("state-*.safetensors"):
        path.unlink(missing_ok=True)


def _check(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype} ".encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
