"""Sentences of a class: our frames, and what a toy T5 says of a word."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from diffusion_inversion.errors import UsageError
from diffusion_inversion.run.lecf.frames import FRAMES
from diffusion_inversion.run.lecf.sentences import Language, sentences_of_frames


def test_frames_name_the_class_early_and_follow_from_the_seed() -> None:
    assert len(FRAMES) == len(set(FRAMES)) == 60
    names = ("sea_lake", "crane")
    found = sentences_of_frames(names, 7, seed=3)
    assert found == sentences_of_frames(names, 7, seed=3) and found[7:] == sentences_of_frames(names[1:], 7, seed=3)
    assert found != sentences_of_frames(names, 7, seed=4)
    assert Counter(prompt.class_name for prompt in found) == dict.fromkeys(names, 7)
    everything = sentences_of_frames(names, None, seed=0)
    assert len(set(everything)) == 120
    for prompt in everything:
        words = "sea lake" if prompt.class_name == "sea_lake" else "crane"
        assert words in " ".join(prompt.text.split()[:4]) and "{" not in prompt.text


def build_t5(folder: Path) -> Path:
    """A T5 of some 10,000 random parameters, whose words are those of a short list."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
    from transformers.utils import logging

    said = ["a", "the", "cat", "dog", "runs", "sits", "on", "under", "grass", "snow", "tree", "big", "small"]
    words = ["<pad>", "</s>", "<unk>", *said]
    backend = Tokenizer(WordLevel({word: row for row, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    logging.disable_progress_bar()
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_t5_says_different_sentences_that_follow_from_seed_and_word(tmp_path: Path) -> None:
    language = Language.load(str(build_t5(tmp_path / "t5")))
    state = torch.get_rng_state()
    found = language.sentences(("cat", "big_dog"), 5, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's draws are touched"
    assert Counter(prompt.class_name for prompt in found) == {"cat": 5, "big_dog": 5} and len(set(found)) == 10
    assert all("<" not in prompt.text and prompt.text.strip() for prompt in found)
    assert language.sentences(("big_dog",), 5, seed=1) == found[5:]
    assert language.sentences(("cat",), 5, seed=2) != found[:5]
    many = language.sentences(("cat",), 3, seed=1)
    assert many == found[:3], "fewer are the first of more"


def test_a_language_model_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    lacking = build_t5(tmp_path / "lacking")
    (lacking / "model.safetensors").write_bytes(b"no weights")
    for source, message in (
        ("nobody/t5-that-is-not-here", "neither here nor to be fetched from the hub"),
        (str(tmp_path / "none"), "no such folder, and not a hub id"),
        (str(tmp_path / "pickled"), "pickles are never loaded"),
        (str(lacking), "cannot be loaded"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            Language.load(source)
        assert "\n" not in str(caught.value)
