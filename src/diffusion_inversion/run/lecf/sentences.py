"""Language enhancement (He et al. 2022, section 3.2.1): many sentences about each class, for the generator to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...engine.hashing import sha256_of_all
from ...engine.hub import model_folder
from ...engine.untrusted import shown
from ...errors import UsageError
from ...randomness import generator_for
from ...sample.prompting import Prompt
from ...train.few_shot.prompts import filled, spoken
from .frames import FRAMES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

T5_SENTENCES = 200  # a class (He)
_DRAWS = 1.25  # draws for each sentence that is kept: they repeat themselves (He: 250 for 200)
_LONGEST = 32  # tokens of a sentence
_AT_ONCE = 50  # sentences that are written side by side
_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "tokenizer*",
    "spiece.model",
    "special_tokens_map.json",
)


def sentences_of_frames(class_names: Sequence[str], count: int | None, seed: int) -> tuple[Prompt, ...]:
    """`count` sentences of every class, each class's own draw from the bank of frames; None: all.

    Raises UsageError for more than the bank has.
    """
    if count is not None and count > len(FRAMES):
        raise UsageError(f"--sentences {count}: there are {len(FRAMES)} frames. Give fewer, or a --language model.")
    found = []
    for name in class_names:
        order = torch.randperm(len(FRAMES), generator=generator_for(seed, "frames", name)).tolist()
        found += [Prompt(name, text) for row in order[:count] for text in filled((FRAMES[row],), name)]
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Language:
    """A T5 that makes sentences of words, in float32 on the CPU, where the same seed gives the same sentences."""

    name: str
    hash: str  # sha256 hex over its files
    model: T5ForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, source: str) -> Language:
        """Load a local folder or a hub id, such as mrm8488/t5-base-finetuned-common_gen; safetensors only.

        Raises UsageError where it is not there, cannot be fetched, is a pickle, or is no T5.
        """
        from transformers import AutoTokenizer, T5ForConditionalGeneration

        folder = model_folder("--language", source, _FILES, "give a local folder, or leave it out for sentence frames")
        try:
            model, found = T5ForConditionalGeneration.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # files that describe no model make transformers raise nearly any type
            cause = shown(str(error).strip().partition("\n")[0] or type(error).__name__)
            raise UsageError(
                f"--language {shown(source)}: cannot be loaded ({cause}). Give a transformers folder of a T5 with "
                "model.safetensors (pickles are never loaded) and its tokenizer, or leave it out for sentence frames."
            ) from error
        if found["missing_keys"]:
            lacking = sorted(found["missing_keys"])
            raise UsageError(
                f"--language {shown(source)}: no T5, {len(lacking)} tensors are missing ({lacking[0]}, ...)."
            )
        return cls(source, _hash(folder), model.eval().requires_grad_(False), tokenizer)

    @torch.no_grad()
    def sentences(self, class_names: Sequence[str], count: int | None, seed: int) -> tuple[Prompt, ...]:
        """`count` different sentences of every class (None: 200), fewer where the model repeats itself.

        A class's depend on (seed, its name) alone. Raises UsageError for a class about which nothing is said.
        """
        found: list[Prompt] = []
        wanted = T5_SENTENCES if count is None else count
        for name in class_names:
            ids = self.tokenizer(spoken(name), return_tensors="pt").input_ids
            texts: dict[str, None] = {}
            draws = round(_DRAWS * wanted)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator_for(seed, "language", name).initial_seed())
                while draws > 0 and len(texts) < wanted:
                    draws -= _AT_ONCE
                    written = self.model.generate(
                        input_ids=ids, do_sample=True, max_new_tokens=_LONGEST, num_return_sequences=_AT_ONCE
                    )
                    said = self.tokenizer.batch_decode(written, skip_special_tokens=True)
                    texts |= dict.fromkeys(text for one in said if (text := " ".join(one.split())))
            if not texts:
                raise UsageError(f"--language {shown(self.name)}: says nothing about {shown(repr(name))}.")
            found += [Prompt(name, text) for text in list(texts)[:wanted]]
        return tuple(found)


def _hash(folder: Path) -> str:
    files = sorted({path for pattern in _FILES for path in folder.glob(pattern)})
    return sha256_of_all((path.name, path) for path in files)
