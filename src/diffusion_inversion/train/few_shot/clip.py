"""CLIP (arXiv 2103.00020) in transformers' format, frozen: features of images and of texts, some of them learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...generator.checkpoints import building
from .clip_files import check_files, hash_files, known_words, locate, normalisation, read_config_of, read_weights_of

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer


@dataclass(frozen=True, eq=False)
class Clip:
    """A frozen CLIP in float32 on `device`. Make one with `Clip.load`."""

    name: str
    hash: str  # sha256 hex over weights, config and tokenizer
    model: CLIPModel
    tokenizer: CLIPTokenizer
    mean: tuple[float, ...]  # of pixels in [0, 1], by channel
    std: tuple[float, ...]
    device: torch.device
    words: frozenset[str] | None = None  # all that it was taught; None: it is not said

    @classmethod
    def load(cls, source: str, device: torch.device, revision: str | None = None) -> Clip:
        """Load `mini-clip`, a local folder or a hub id (downloaded; safetensors only; pin it by `revision`).

        Raises UsageError where it is not there, cannot be fetched, is a pickle, or is no CLIP.
        """
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

        folder = locate(source, revision)
        check_files(folder)
        config = read_config_of(folder)
        with building(folder), torch.device("meta"):
            model = CLIPModel(CLIPConfig(**config))
        model.load_state_dict(read_weights_of(folder, model), strict=False, assign=True)
        with building(folder):
            _fill_buffers(model)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        text = model.config.text_config
        if len(tokenizer) > text.vocab_size or tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise UsageError(
                f"{folder}: the tokenizer has {len(tokenizer):,} tokens, the text encoder {text.vocab_size:,}, or no "
                "tokens of start and end. Use the tokenizer of the original."
            )
        mean, std = normalisation(folder)
        model = model.to(device=device, dtype=torch.float32).eval().requires_grad_(False)
        name = folder.resolve().name if Path(source).is_dir() else source
        return cls(name, hash_files(folder), model, tokenizer, mean, std, device, known_words(folder))

    @property
    def scale(self) -> float:
        """exp(logit_scale): what cosines are multiplied by; 100 for OpenAI's."""
        return float(self.model.logit_scale.exp())

    @property
    def image_size(self) -> int:
        """Side in px of the images that it sees."""
        return int(self.model.config.vision_config.image_size)

    @property
    def width(self) -> int:
        """Numbers in a feature of an image or a text."""
        return int(self.model.config.projection_dim)

    @property
    def text_width(self) -> int:
        """Numbers in the embedding of a token."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def most_tokens(self) -> int:
        """The longest text, start and end included."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def start_token(self) -> int:
        return int(self.tokenizer.bos_token_id)

    @property
    def end_token(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Projected features (B, D) float32, of any length, of normalised pixels (B, 3, image_size, image_size)."""
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    def text_features(self, ids: Tensor, context: Tensor | None = None) -> Tensor:
        """Projected features (B, D) float32, of any length, of token ids (B, L) int64.

        context: vectors (M, text_width) that stand in the places 1 to M of every text, instead of its tokens; gradients
        flow to them.
        """
        if context is None:
            return _pooled(self.model.get_text_features(input_ids=ids.to(self.device)))

        def put_in(module: Any, inputs: Any, embedded: Tensor) -> Tensor:
            rows = context.expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :1], rows, embedded[:, 1 + len(context) :]], dim=1)

        # Masks, positions and the place of the end token stay transformers' own business.
        hook = self.model.text_model.embeddings.token_embedding.register_forward_hook(put_in)
        try:
            return _pooled(self.model.get_text_features(input_ids=ids.to(self.device)))
        finally:
            hook.remove()


def _fill_buffers(model: CLIPModel) -> None:
    """Give the position ids, which no file has, their values: the model was made without storage."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name != "position_ids":
                raise ValueError(f"a buffer {name} that is not in the weights")
            module.register_buffer(name, torch.arange(buffer.shape[-1]).expand(1, -1), persistent=False)


def _pooled(found: Any) -> Tensor:
    """The projected features: transformers returns them alone, or, from 5.0 on, beside the hidden states."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features
