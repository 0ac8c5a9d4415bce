"""The networks of the recipe, made and read: where their config files lie, and what the stages leave of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..engine.store import commit_file
from ..errors import UsageError
from ..generator.adapter import Adapter
from ..generator.device import bfloat16_is_fast
from ..generator.generator import initialise, use_plain_attention
from . import parts
from .tokenizer import train_tokenizer
from .unet import prompt_texts

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

ARCHITECTURES = Path(__file__).parent / "architecture"
NORMALISED_VAE = "vae.safetensors"
REFINED_VAE = "vae-refined.safetensors"  # the same encoder
TOKENIZER = "tokenizer"  # that of the weights that were gone on from


@dataclass(frozen=True)
class Setting:
    """Where and how the networks of one size are trained."""

    size: int
    folder: Path
    device: torch.device
    batch_size: int  # of the denoiser and of mini-clip
    vae_batch_size: int
    seed: int = 0
    part_ends: float | None = None  # time.monotonic() at which this call saves and ends

    @property
    def architecture(self) -> Path:
        """The folder of the networks' config files."""
        return ARCHITECTURES / str(self.size)

    @property
    def dtype(self) -> torch.dtype:
        """What the networks compute in; weights, moments and losses are float32."""
        return torch.bfloat16 if bfloat16_is_fast(self.device) else torch.float32


def new_denoiser(setting: Setting) -> nn.ModuleDict:
    """unet, text_encoder and adapter with random weights, in eval mode: nothing in them has dropout."""
    modules = initialise(setting.architecture, setting.seed)
    width = json.loads((setting.architecture / "unet" / "config.json").read_text())["cross_attention_dim"]
    torch.manual_seed(setting.seed)
    return nn.ModuleDict(
        {"unet": modules["unet"], "text_encoder": modules["text_encoder"], "adapter": Adapter(width=width)}
    ).eval()


def load_vae(setting: Setting, name: str = NORMALISED_VAE) -> nn.Module:
    """An autoencoder that a stage saved, float32, frozen. Raises UsageError where there is none."""
    path = setting.folder / name
    if not path.is_file():
        raise UsageError(f"{path}: missing. Run the stage vae first.")
    vae = initialise(setting.architecture, seed=0)["vae"]
    try:
        vae.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    except RuntimeError as error:
        raise UsageError(f"{path}: an autoencoder of another shape. Give another --size or --out.") from error
    use_plain_attention(vae)
    return vae.eval().requires_grad_(False)


def load_tokenizer(names: tuple[str, ...], setting: Setting) -> CLIPTokenizer:
    """What the text encoder reads prompts with: laid down with its weights, else learned from the class names."""
    from transformers import CLIPTokenizer

    kept = setting.folder / TOKENIZER
    return CLIPTokenizer.from_pretrained(kept) if kept.is_dir() else train_tokenizer(prompt_texts(names))


def save_vae(vae: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write an autoencoder in the half precision that it ships in."""
    commit_file(path, lambda partial: save_file(parts.half(vae), partial, metadata=metadata))


def require_same_encoder(path: Path, refined: nn.Module, normalised: nn.Module) -> None:
    """Raise UsageError where the autoencoder read from `path` has another encoder than the normalised one."""
    wanted = normalised.state_dict()
    for key, value in refined.state_dict().items():
        if key.startswith(("encoder.", "quant_conv.")) and not torch.equal(value, wanted[key]):
            raise UsageError(
                f"{path}: sharpened for another encoder than that of {NORMALISED_VAE} (stage vae has trained it on "
                "since). Delete it to export the plain decoder, and decoder.state.safetensors too to sharpen this one."
            )
