"""A network's weights in half precision, in files small enough for any way of moving them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..engine.store import commit_file
from ..engine.untrusted import TensorSpec, read_header, read_tensors, specs_of
from ..errors import DataError
from .checkpoint import VAE, require_vae

PART_BYTES = 15_000_000
MAX_PART = 2**30  # bytes that a file is read to


def half(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, floats as float16 on the CPU."""
    return {
        key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in module.state_dict().items()
    }


def write_parts(module: nn.Module, folder: Path, vae: str | None = None) -> None:
    """Write the module's state as folder/part-0.safetensors and so on, each below 16 MB; each replaced whole.

    Every part says which save it is of, so that parts of two saves are never mixed, and the hash of the autoencoder
    whose latents it learned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in half(module).items():
        if parts[-1] and size + value.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][key] = value
        size += value.nbytes
    metadata = {"save": _stamp(parts), "parts": str(len(parts))} | ({VAE: vae} if vae is not None else {})
    for index, tensors in enumerate(parts):

        def write(partial: Path, tensors: dict[str, Tensor] = tensors) -> None:
            save_file(tensors, partial, metadata=metadata)

        commit_file(folder / f"part-{index}.safetensors", write)


def read_parts(module: nn.Module, folder: Path, vae: str | None = None) -> None:
    """Fill a module from what `write_parts` wrote.

    Raises DataError where a part is missing or of another save, UsageError where it learned the latents of another
    autoencoder than that of hash `vae`.
    """
    wanted = specs_of(module)
    found: dict[str, Tensor] = {}
    stamps = set()
    paths = sorted(folder.glob("part-*.safetensors"))
    for path in paths:
        infos, metadata = read_header(path, max_bytes=MAX_PART)
        require_vae(path, metadata, vae)
        stamps.add((metadata.get("save"), metadata.get("parts")))
        if not set(infos) <= set(wanted):
            raise DataError(f"{path}: holds {sorted(set(infos) - set(wanted))[0]!r}, not of this network.")
        specs = {
            key: TensorSpec(torch.float16 if wanted[key].dtype == torch.float32 else wanted[key].dtype, info.shape)
            for key, info in infos.items()
        }
        found |= read_tensors(path, specs, max_bytes=MAX_PART)[0]
    if len(stamps) != 1 or {str(len(paths))} != {parts for _, parts in stamps} or set(found) != set(wanted):
        raise DataError(f"{folder}: {len(paths)} files that are not one whole save. Run the stage unet again.")
    try:
        module.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in found.items()})
    except RuntimeError as error:
        raise DataError(f"{folder}: the weights are of another architecture. Give another --out.") from error


def _stamp(parts: list[dict[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for tensors in parts:
        for key, value in tensors.items():
            digest.update(key.encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
