"""`timm:<model>`: any image model of timm without its classifier, pretrained from the hub or from a local file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.hub import hub_reachable
from ...errors import UsageError
from .extractor import Extractor, Preprocessing, weights_digest


def open_timm(name: str, device: torch.device, weights: str | Path | None = None) -> Extractor:
    """Pooled features before the classifier, at the size, interpolation, mean and std of the model's own config.

    name: as timm.list_models(). weights: a .safetensors of that model; its classifier is left out. Raises UsageError:
    unknown model, weights that cannot be had or do not fit.
    """
    import timm

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:5])
        raise UsageError(f"--extractor timm:{name}: timm has no such model{f'; it has {near}, ...' if near else ''}.")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    _fill(
        model,
        model.pretrained_cfg,
        name,
        Path(weights) if weights is not None else _downloaded(model.pretrained_cfg, name),
    )
    model.eval().requires_grad_(False)
    config = timm.data.resolve_data_config({}, model=model)
    mode = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    prepare = Preprocessing(config["input_size"][-1], mode, config["mean"], config["std"])
    digest = weights_digest(model)
    model.to(device)

    def embed(images: Tensor) -> Tensor:
        features: Tensor = model(prepare(images))
        return features

    with torch.inference_mode():
        dim = embed(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=device)).shape[1]
    return Extractor(f"timm:{name}", f"_{name}", dim, str(prepare), digest, device, embed)


def _downloaded(config: dict[str, Any], name: str) -> Path:
    """The safetensors weights of the hub's own copy of the model, in the hub's cache."""
    from huggingface_hub import hf_hub_download

    repository = config.get("hf_hub_id")
    if not repository:
        raise UsageError(f"--extractor timm:{name}: timm names no hub weights for it; give a local file as --weights.")
    try:
        return Path(hf_hub_download(repository, "model.safetensors", local_files_only=not hub_reachable()))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--extractor timm:{name}: model.safetensors of {repository} is not in the hub's cache and cannot be "
            f"fetched ({type(error).__name__}). Check the network, give a local file as --weights, or use "
            "--extractor lite0."
        ) from error


def _fill(model: torch.nn.Module, config: dict[str, Any], name: str, path: Path) -> None:
    """Load a state dict; only the classifier's tensors may be left over."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file; give a state dict of timm's {name}.")
    try:
        state = load_file(path)
        missing, left_over = model.load_state_dict(state, strict=False)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UsageError(f"--weights {path}: not a state dict of timm's {name} as .safetensors ({error}).") from error
    classifiers = config.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    left_over = [key for key in left_over if not key.startswith(tuple(f"{c}." for c in classifiers))]
    if missing or left_over:
        raise UsageError(
            f"--weights {path}: not timm's {name}: {len(missing)} tensors missing, {len(left_over)} unknown "
            f"({', '.join([*missing, *left_over][:3])}, ...)."
        )
