"""Features kept on disk by what they were computed from, so that no image goes through a network twice."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...engine.store import commit_file
from ...errors import DiskError
from .extractor import Extractor, extract


def cached_features(
    extractor: Extractor,
    images: Tensor,
    folder: Path | None,
    *,
    batch_size: int = 64,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """Features (N, dim) float32 on the CPU of uint8 images (N, 3, S, S), read from `folder` where they are there.

    The key is the SHA-256 of the extractor's name, weights, preprocessing and kind of device, and of the pixels in
    their order. A file that does not hold what its own header says is computed again. None keeps nothing.
    Where the folder cannot be written they are not kept, with a warning on stderr. Raises DataError as `extract`.
    """
    if folder is None:
        return extract(extractor, images, batch_size=batch_size, advance=advance)
    made_from = {
        "extractor": extractor.name,
        "weights": extractor.weights_sha256,
        "preprocessing": extractor.preprocessing,
        "device": extractor.device.type,
        "images": f"{tuple(images.shape)} {_digest(images)}",
    }
    path = folder / f"{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()}.safetensors"
    found = _read(path, made_from, (len(images), extractor.dim))
    if found is not None:
        if advance:
            advance(len(images))
        return found
    features = extract(extractor, images, batch_size=batch_size, advance=advance)

    def write(partial: Path) -> None:
        from safetensors.torch import save_file

        save_file({"features": features}, partial, made_from | {"sha256": _digest(features)})

    try:
        commit_file(path, write)
    except DiskError as error:  # a cache saves time, it is no result
        print(f"warning: features are not kept: {str(error).partition(';')[0]}", file=sys.stderr, flush=True)
    return features


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _read(path: Path, made_from: dict[str, str], shape: tuple[int, int]) -> Tensor | None:
    """The features of a whole, undamaged file; None where there is none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            features: Tensor = file.get_tensor("features")
    except SafetensorError:
        return None
    whole = features.shape == shape and features.dtype == torch.float32
    return features if whole and header == made_from | {"sha256": _digest(features)} else None
