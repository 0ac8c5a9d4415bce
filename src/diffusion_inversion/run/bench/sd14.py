"""Stable Diffusion 1.4 without its weights: the published configs, random numbers in the published shapes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...generator.checkpoints import PARTS
from ...generator.generator import initialise

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# The configs of CompVis/stable-diffusion-v1-4, without file names and version marks.
ARCHITECTURE = Path(__file__).parent / "sd14"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
VOCABULARY, MAX_LENGTH = 49_408, 77


def default_folder() -> Path:
    """Where the checkpoint lies unless another folder is named: 4.3 GB."""
    return Path.home() / ".cache" / "diffusion-inversion" / "sd14-random"


def build_sd14(folder: Path, architecture: Path = ARCHITECTURE, seed: int = 0) -> Path:
    """Write a diffusers folder of this architecture with random float32 weights, unless `folder` holds one; return it.

    The weights are each layer's own initialisation, so activations and gradients are of ordinary size: good for time,
    memory and equality, never for quality. Raises UsageError where `folder` holds something else.
    """
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    if all((folder / part).is_dir() for part in PARTS):
        return folder
    if folder.exists():
        raise UsageError(f"{folder}: exists, and is no checkpoint made here. Delete it or name another folder.")
    half = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(half, ignore_errors=True)
    half.parent.mkdir(parents=True, exist_ok=True)
    networks = initialise(architecture, seed)
    StableDiffusionPipeline(
        vae=networks["vae"],
        unet=networks["unet"],
        text_encoder=networks["text_encoder"],
        tokenizer=byte_tokenizer(),
        scheduler=PNDMScheduler.from_pretrained(architecture / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(half, safe_serialization=True)
    half.rename(folder)
    return folder


def byte_tokenizer(vocabulary: int = VOCABULARY, max_length: int = MAX_LENGTH) -> CLIPTokenizer:
    """A tokenizer of CLIP's size and special tokens whose merges are missing: a prompt becomes its bytes, padded."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    words += [f"<unused {index}>" for index in range(vocabulary - len(words) - 2)]
    vocab = {token: index for index, token in enumerate([*words, BOS, EOS])}
    return CLIPTokenizer(
        vocab, [], unk_token=EOS, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=max_length
    )
