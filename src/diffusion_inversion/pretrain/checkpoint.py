"""Training state on disk: weights, EMA and optimizer moments in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ..engine.store import commit_file


@dataclass
class Progress:
    """How far a stage has come; `seconds` is training time, summed over every resumption."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0


def save(path: Path, modules: dict[str, nn.Module], optimizers: dict[str, Optimizer], progress: Progress) -> None:
    """Write everything a resumed run needs, then rename over the previous state."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"optimizer/{name}/{index}/{key}"] = torch.as_tensor(value)
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    metadata = {"progress": json.dumps(asdict(progress))}
    commit_file(path, lambda partial: save_file(copies, partial, metadata=metadata))


def restore(path: Path, modules: dict[str, nn.Module], optimizers: dict[str, Optimizer]) -> Progress:
    """Load the state that `save` wrote into the given objects; a missing file means a fresh start."""
    if not path.is_file():
        return Progress()
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as handle:
        progress = Progress(**json.loads(handle.metadata()["progress"]))
    for name, module in modules.items():
        prefix = f"module/{name}/"
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{name}/"):
                index, moment = key.split("/")[2:]
                state.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
