"""The tokenizer of `mini`: CLIP's byte-level BPE with a small vocabulary learned from class names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 16


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> CLIPTokenizer:
    """Learn merges on `texts`; every byte, alone and at a word's end, is in the vocabulary, so no text is unknown."""
    from tokenizers import pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = [BOS, EOS, *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    # The same normaliser and splitter as CLIP's; only the merges are learned.
    backend = CLIPTokenizer({BOS: 0, EOS: 1}, []).backend_tokenizer
    backend.model = BPE(end_of_word_suffix="</w>")
    backend.train_from_iterator(
        texts,
        # Letters at a word's end are named too: the trainer numbers those that it finds itself in the order of a hash
        # map, and breaks ties between merges by number, so that no two calls learned the same.
        BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=alphabet,
            special_tokens=base[2:],
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]][: vocab_size - len(base)]
    vocab = {token: index for index, token in enumerate([*base, *("".join(pair) for pair in merges)])}
    return CLIPTokenizer(
        vocab, merges, unk_token=EOS, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=MAX_LENGTH
    )
