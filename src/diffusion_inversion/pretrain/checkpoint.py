"""Training state on disk: weights, EMA and optimizer moments in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Protocol

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ..engine.store import commit_file
from ..engine.untrusted import (
    FLOATS,
    TensorInfo,
    TensorSpec,
    check_record,
    parse_json,
    read_header,
    read_tensors,
    specs_of,
)
from ..errors import DataError, UsageError

RANDOM = "random"
MOMENTS = "muon"  # a module without which training can go on
VAE = "vae"  # in the metadata of what learns latents: the hash of the autoencoder that they are of
MAX_STATE = 2**34  # bytes; mini's has 2e8
MAX_CACHE = 2**36  # bytes; 100,000 images in 7 views have 4e9


@dataclass
class Progress:
    """How far a stage has come; `seconds` is training time, summed over every resumption.

    `begun` is the step at which the optimizer's moments were empty: 0, or where finished weights were gone on from.
    """

    step: Annotated[int, Field(ge=0)] = 0
    samples: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    begun: Annotated[int, Field(ge=0)] = 0


class Random(Protocol):
    """A generator of random numbers whose state can be kept."""

    def get(self) -> Tensor: ...
    def set(self, state: Tensor) -> None: ...


def save(
    path: Path,
    modules: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    progress: Progress,
    random: Random | None,
    vae: str | None = None,
) -> None:
    """Write everything a resumed run needs, then rename over the previous state.

    `vae` is the hash of the autoencoder whose latents are learned.
    """
    tensors = {} if random is None else {RANDOM: random.get()}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"optimizer/{name}/{index}/{key}"] = torch.as_tensor(value)
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    metadata = {"progress": json.dumps(asdict(progress))} | ({VAE: vae} if vae is not None else {})
    commit_file(path, lambda partial: save_file(copies, partial, metadata=metadata))


def restore(
    path: Path,
    modules: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    random: Random | None,
    vae: str | None = None,
) -> Progress:
    """Load the state that `save` wrote into the given objects; a missing file means a fresh start.

    Moments that the file does not hold begin anew. Random numbers go on where they were only on the kind of device that
    saved them. Raises DataError where the file is not the state of such objects, UsageError as `require_vae`.
    """
    if not path.is_file():
        return Progress()
    infos, metadata = read_header(path, max_bytes=MAX_STATE)
    require_vae(path, metadata, vae)
    progress = check_record(parse_json(metadata.get("progress", "null").encode(), path), Progress, path)
    if not any(key.startswith(f"module/{MOMENTS}/") for key in infos):
        modules = {name: module for name, module in modules.items() if name != MOMENTS}
    specs = {f"module/{n}/{key}": spec for n, m in modules.items() for key, spec in specs_of(m).items()}
    if RANDOM in infos:
        specs[RANDOM] = TensorSpec(torch.uint8, (None,))
    for name, optimizer in optimizers.items():
        specs |= _moments(path, f"optimizer/{name}/", optimizer, infos)
    tensors, _ = read_tensors(path, specs, max_bytes=MAX_STATE)
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
    if random is not None and RANDOM in tensors and tensors[RANDOM].shape == random.get().shape:
        random.set(tensors[RANDOM])
    return progress


def metadata_of(path: Path) -> dict[str, str] | None:
    """Of a file that a stage left; None where it cannot be read, so that it is made again."""
    try:
        return dict(read_header(path, max_bytes=MAX_CACHE)[1])
    except DataError:
        return None


def require_vae(path: Path, metadata: Mapping[str, str], vae: str | None) -> None:
    """Raise UsageError where weights learned the latents of another autoencoder than that of hash `vae`.

    Weights of earlier versions, and those that `--start-from` laid down, do not say whose latents they learned.
    """
    if vae is not None and metadata.get(VAE, vae) != vae:
        raise UsageError(
            f"{path}: learned the latents of another autoencoder than the one that is there now (stage vae has trained "
            "it on since). Delete it to learn anew, or give another --out and begin there with --start-from mini or a "
            "folder exported before: then the denoiser follows the latents."
        )


def _moments(path: Path, prefix: str, optimizer: Optimizer, infos: dict[str, TensorInfo]) -> dict[str, TensorSpec]:
    """What the file may hold of an optimizer: numbers, and moments in the shape of their parameter."""
    shapes = [tuple(parameter.shape) for group in optimizer.param_groups for parameter in group["params"]]
    specs = {}
    for key, info in infos.items():
        if key.startswith(prefix):
            index, _, moment = key.removeprefix(prefix).partition("/")
            known = index.isdecimal() and len(index) < 7 and int(index) < len(shapes)
            if not known or not moment or "/" in moment or info.shape not in ((), shapes[int(index)]):
                raise DataError(f"{path}: {key!r} is no moment of this optimizer; delete the file to begin anew.")
            specs[key] = TensorSpec((*FLOATS, torch.int64, torch.bool), info.shape)
    return specs
