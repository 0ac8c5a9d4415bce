"""The safety checker that comes with a checkpoint: what it would blank is drawn again, never kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..data.images import to_uint8
from ..engine.hashing import sha256_of_all
from ..engine.untrusted import TensorSpec, check_record, specs_of
from ..errors import PartialError, UsageError
from .checkpoints import as_usage, building, check_weights, read_config, read_weights, weight_names
from .generator import Generator
from .networks import quiet

PARTS = ("safety_checker", "feature_extractor")
ATTEMPTS = 5  # drawings of one image before the stage gives up on it
CHECKED_AT_ONCE = 32  # images
Item = TypeVar("Item")


class _Vision(BaseModel):
    """CLIP's image encoder (arXiv 2103.00020) in sane ranges; SD's checker is ViT-L/14: 1,024 wide, 24 layers."""

    model_config = ConfigDict(extra="ignore")

    hidden_size: int = Field(768, ge=1, le=8192)
    intermediate_size: int = Field(3072, ge=1, le=32768)
    num_hidden_layers: int = Field(12, ge=1, le=64)
    num_attention_heads: int = Field(12, ge=1, le=128)
    num_channels: int = Field(3, ge=3, le=3)
    image_size: int = Field(224, ge=1, le=1024)
    patch_size: int = Field(32, ge=1, le=1024)
    hidden_act: str = Field("quick_gelu", pattern=r"^[a-z_]{1,30}$")
    layer_norm_eps: float = Field(1e-5, gt=0, le=1)


class _Checker(BaseModel):
    model_config = ConfigDict(extra="ignore")

    projection_dim: int = Field(512, ge=1, le=8192)
    vision_config: _Vision


class _Extractor(BaseModel):
    """How images become the encoder's input; older files give one number for a side."""

    model_config = ConfigDict(extra="ignore")

    size: int | dict[str, int]
    crop_size: int | dict[str, int]
    image_mean: list[float] = Field(min_length=3, max_length=3)
    image_std: list[float] = Field(min_length=3, max_length=3)


class SafetyChecker:
    """StableDiffusionSafetyChecker and its feature extractor. Attributes: hash (sha256 of both parts' files)."""

    def __init__(self, network: Any, extractor: Any, files_hash: str, device: torch.device) -> None:
        self._network, self._extractor = network.eval().requires_grad_(False).to(device), extractor
        self._device, self.hash = device, files_hash

    @torch.no_grad()
    def flagged(self, images: Float[Tensor, "batch 3 height width"]) -> Bool[Tensor, " batch"]:
        """Which images (B, 3, H, W) in [-1, 1] the pipeline would blank: (B,) on the CPU."""
        found: list[bool] = []
        with _without_advice():
            for chunk in to_uint8(images).split(CHECKED_AT_ONCE):
                pixels = self._extractor(images=list(chunk), return_tensors="pt").pixel_values
                blank = torch.zeros(len(chunk), 1)  # what the network would blank; the images themselves stay whole
                found += self._network(clip_input=pixels.to(self._device), images=blank)[1]
        return torch.tensor(found, dtype=torch.bool)


def load_safety_checker(generator: Generator) -> SafetyChecker | None:
    """The checker in the folder of a generator; None where it has none.

    Raises UsageError where it is a pickle, or its files do not fit each other.
    """
    return read_safety_checker(generator.folder, generator.device)


def check_safety_checker(generator: Generator) -> None:
    """Raise what `load_safety_checker` raises for files that do not fit each other, without reading the weights."""
    if (found := _examine(generator.folder)) is not None:
        check_weights(found.weights, found.names, found.wanted)


def read_safety_checker(folder: Path, device: torch.device) -> SafetyChecker | None:
    """The checker below a checkpoint's folder; see `load_safety_checker`."""
    if (found := _examine(folder)) is None:
        return None
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    part, other = (folder / name for name in PARTS)
    tensors = read_weights(found.weights, found.names, found.wanted)
    with building(part), quiet():
        network = StableDiffusionSafetyChecker.from_pretrained(
            None, config=found.clip, state_dict=tensors, dtype=torch.float32
        )
    return SafetyChecker(network, found.processor, _hash(part, other), device)


@dataclass(frozen=True)
class _Examined:
    """What a checker is made of, by its configs and the header of its weights."""

    clip: Any  # CLIPConfig
    processor: Any  # CLIPImageProcessor
    weights: Path
    names: tuple[str, ...]
    wanted: dict[str, TensorSpec]


def _examine(folder: Path) -> _Examined | None:
    """Look at the checker below a checkpoint's folder without reading its weights; None where there is none."""
    part, other = (folder / name for name in PARTS)
    if not part.is_dir():
        return None
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    weights = part / "model.safetensors"
    if not weights.is_file() or not other.is_dir():
        lacking = "feature_extractor" if weights.is_file() else "safety_checker/model.safetensors"
        raise UsageError(
            f"{folder}: has a safety checker, but {lacking} is missing (pickles are never loaded). Convert it: "
            "`StableDiffusionPipeline.from_pretrained(...).save_pretrained(folder, safe_serialization=True)`, or give "
            "--no-safety-checker."
        )
    config = _checked(part / "config.json", _Checker)
    extractor = _checked(other / "preprocessor_config.json", _Extractor)
    sides = [side for value in (extractor.size, extractor.crop_size) for side in _sides(value)]
    if not all(1 <= side <= 1024 for side in sides) or not all(value > 0 for value in extractor.image_std):
        raise UsageError(
            f"{other / 'preprocessor_config.json'}: sides {sides} or image_std cannot be. Use the original."
        )
    names = weight_names(weights)
    with building(part), torch.device("meta"):
        clip = CLIPConfig(projection_dim=config.projection_dim, vision_config=config.vision_config.model_dump())
        wanted = specs_of(StableDiffusionSafetyChecker(clip), any_precision=True)
    with building(other):
        processor = CLIPImageProcessor(**extractor.model_dump(), resample=3)
    return _Examined(clip, processor, weights, names, wanted)


def draw_safely(
    plan: Callable[[int, int], Item],
    draw: Callable[[list[Item]], Float[Tensor, "batch 3 height width"]],
    names: Sequence[str],
    checker: SafetyChecker | None,
    *,
    white: bool = False,
) -> tuple[list[Item], Float[Tensor, "batch 3 height width"], int]:
    """Draw one image for every name; what `checker` flags is drawn again, from its plan of the next attempt.

    `plan(place, attempt)` gives what `draw` draws; attempt counts from 0. Returns the plans and images that are kept,
    in the order of the names, and how many were blanked. Raises PartialError after 5 attempts, naming the image, or,
    where `white`, gives a white image in its place.
    """
    plans = [plan(place, 0) for place in range(len(names))]
    images = draw(plans)
    if checker is None:
        return plans, images, 0
    blanked = 0
    left = torch.arange(len(names))
    for attempt in range(1, ATTEMPTS + 1):
        left = left[checker.flagged(images[left])]
        blanked += len(left)
        if not len(left):
            return plans, images, blanked
        if attempt == ATTEMPTS:
            break
        again = [plan(place, attempt) for place in left.tolist()]
        images[left] = draw(again)
        for place, item in zip(left.tolist(), again, strict=True):
            plans[place] = item
    if white:
        images[left] = 1.0
        return plans, images, blanked
    raise PartialError(
        f"{names[int(left[0])]}: the safety checker blanked all {ATTEMPTS} drawings of it (and of {len(left) - 1} more "
        "in its batch). What is committed is kept. Leave the source out, draw with other settings, or, if you know "
        "what it shows, give --no-safety-checker."
    )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep diffusers' warning out of the progress: it says that black images are returned, and they are not."""
    logger = logging.getLogger("diffusers.pipelines.stable_diffusion.safety_checker")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def attempt_identity(attempt: int) -> tuple[int | str, ...]:
    """What an attempt adds to the identity of a random stream: nothing for the first."""
    return ("attempt", attempt) if attempt else ()


def _checked(path: Path, kind: Any) -> Any:
    """A config as `kind`, its numbers in range. Raises UsageError."""
    with as_usage():
        return check_record(read_config(path), kind, path)


def _sides(value: int | dict[str, int]) -> list[int]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _hash(*folders: Path) -> str:
    files = (path for folder in folders for path in sorted(folder.iterdir()))
    read = (path for path in files if path.suffix == ".json" or path.name == "model.safetensors")
    return sha256_of_all((f"{path.parent.name}/{path.name}", path) for path in read)
