"""The adapter of `mini`: from an image's Lite0 profile to conditioning tokens, as a text prompt would give."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..engine.untrusted import specs_of
from .checkpoints import building, network_config, read_weights, weight_names
from .features import PROFILE_DIM


class Adapter(nn.Module):
    """Map profiles (B, PROFILE_DIM) to conditioning tokens (B, tokens, width), float32.

    A two-layer perceptron per image, then a LayerNorm per token, so that its tokens have the scale of the
    text encoder's (whose last layer is a LayerNorm too).
    """

    def __init__(self, tokens: int = 5, width: int = 256, hidden: int = 512) -> None:
        super().__init__()
        self.tokens, self.width, self.hidden = tokens, width, hidden
        self.normalise = nn.BatchNorm1d(PROFILE_DIM, affine=False)
        self.layers = nn.Sequential(nn.Linear(PROFILE_DIM, hidden), nn.GELU(), nn.Linear(hidden, tokens * width))
        self.token_norm = nn.LayerNorm(width)

    def forward(self, profiles: Tensor) -> Tensor:
        flat = self.layers(self.normalise(profiles))
        tokens: Tensor = self.token_norm(flat.unflatten(1, (self.tokens, self.width)))
        return tokens

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors below `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        shape = {"tokens": self.tokens, "width": self.width, "hidden": self.hidden}
        (folder / "config.json").write_text(json.dumps(shape, indent=2) + "\n")
        state = {key: value.half() if value.is_floating_point() else value for key, value in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")


def load_adapter(folder: Path) -> Adapter:
    """Read what `Adapter.save` wrote, in float32, frozen, eval mode. Raises UsageError where it is something else."""
    path = folder / "model.safetensors"
    names = weight_names(path)
    shape = network_config(folder / "config.json", ("tokens", "width", "hidden"), len(names))
    with building(folder), torch.device("meta"):
        adapter = Adapter(**shape)
    weights = read_weights(path, names, specs_of(adapter, any_precision=True))
    adapter.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}, assign=True
    )
    return adapter.eval().requires_grad_(False)
