"""The networks of a diffusers-format folder, read from their configs and weights and no other file."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..engine.untrusted import specs_of
from ..errors import UsageError
from .checkpoints import TEXT_KEYS, WEIGHT_FILES, building, network_config, read_weights, text_weights, weight_names

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


def read_network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A diffusers model of class `kind` in `dtype`, from its config and its weights and no other file of `folder`.

    Built without storage first, so that a config that does not fit the weights costs nothing. Raises UsageError.
    """
    from diffusers.models.modeling_utils import no_init_weights

    weights = folder / WEIGHT_FILES["unet"]
    names = weight_names(weights)
    config = network_config(folder / "config.json", tuple(inspect.signature(kind.__init__).parameters), len(names))
    with building(folder), no_init_weights(), torch.device("meta"):
        network = kind.from_config(config)
    wanted = specs_of(network, any_precision=True)
    tensors = read_weights(weights, names, wanted)
    for name in tensors:  # one by one: two whole copies of a large UNet would be the peak of the memory
        tensors[name] = tensors[name].to(dtype)
    network.load_state_dict(tensors, assign=True)
    return network


def read_text_encoder(folder: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text encoder in float32 and its tokenizer. Raises UsageError where they do not fit each other."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    part, weights = folder / "text_encoder", folder / "text_encoder" / WEIGHT_FILES["text_encoder"]
    names = weight_names(weights)
    entries = network_config(part / "config.json", TEXT_KEYS, len(names))
    with building(part):
        config = CLIPTextConfig(**entries)
        wanted = text_weights(config)
    tensors = read_weights(weights, names, wanted)
    with building(part), quiet():
        # Neither a folder nor a name: nothing but these tensors can be read.
        text = CLIPTextModel.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32)
    with building(folder / "tokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    if tokenizer.model_max_length > config.max_position_embeddings or len(tokenizer) > config.vocab_size:
        raise UsageError(
            f"{folder / 'tokenizer'}: {len(tokenizer):,} tokens, texts of {tokenizer.model_max_length:,}, but the text "
            f"encoder knows {config.vocab_size:,} and {config.max_position_embeddings:,}. Use the original's tokenizer."
        )
    return text, tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the loading bars of transformers off stderr, where our own progress is shown."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
