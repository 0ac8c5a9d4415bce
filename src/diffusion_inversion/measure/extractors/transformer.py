"""`dinov2` and `clip`: image encoders of transformers, from the hub or a local folder, safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.hub import hub_reachable
from ...errors import UsageError
from .extractor import Extractor, Preprocessing, weights_digest

# What FD-DINOv2 (arXiv 2306.04675) and CMMD (arXiv 2401.09603) are defined on.
DINOV2 = "facebook/dinov2-large"
CLIP = "openai/clip-vit-large-patch14-336"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def open_dinov2(device: torch.device, weights: str | Path | None = None) -> Extractor:
    """The class token of the last layer at 224 px, after its normalisation (1,024 numbers for DINOv2 ViT-L/14)."""
    from transformers import Dinov2Model

    model = _load(Dinov2Model, "dinov2", weights or DINOV2)
    digest = weights_digest(model)
    prepare = Preprocessing(224, "bicubic", *_IMAGENET)
    model.to(device)

    def embed(images: Tensor) -> Tensor:
        features: Tensor = model(pixel_values=prepare(images)).pooler_output
        return features

    return Extractor("dinov2", "_dinov2", model.config.hidden_size, str(prepare), digest, device, embed)


def open_clip(device: torch.device, weights: str | Path | None = None) -> Extractor:
    """The projected image embedding, not normalised, at the model's own size (768 numbers, 336 px for ViT-L/14).

    CMMD divides it by its length itself; precision, recall and the rest see it as it is.
    """
    from transformers import CLIPVisionModelWithProjection

    model = _load(CLIPVisionModelWithProjection, "clip", weights or CLIP)
    digest = weights_digest(model)
    prepare = Preprocessing(model.config.image_size, "bicubic", *_CLIP)
    model.to(device)

    def embed(images: Tensor) -> Tensor:
        features: Tensor = model(pixel_values=prepare(images)).image_embeds
        return features

    return Extractor("clip", "_clip", model.config.projection_dim, str(prepare), digest, device, embed)


def _load(model_class: Any, name: str, source: str | Path) -> Any:
    """A frozen float32 model on the CPU. Raises UsageError where the source has no complete safetensors weights."""
    from safetensors import SafetensorError

    folder = Path(source)
    if not folder.is_dir() and not _is_hub_id(str(source)):
        raise UsageError(f"--weights {source}: no such folder, and not a hub id (owner/name).")
    local = folder.is_dir() or not hub_reachable()
    try:
        model, found = model_class.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True, local_files_only=local
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "Give a transformers folder" if folder.is_dir() else "Check the network, or give a local folder"
        raise UsageError(
            f"--extractor {name}: {source} cannot be loaded ({first_line}). {remedy} with config.json and "
            "model.safetensors as --weights (pickles are never loaded), or use --extractor lite0."
        ) from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise UsageError(
            f"--weights {source}: not a {model_class.__name__}, {len(missing)} tensors are missing ({missing[0]}, ...)."
        )
    return model.eval().requires_grad_(False)


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))
