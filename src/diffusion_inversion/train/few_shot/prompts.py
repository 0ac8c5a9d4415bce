"""Class names as CLIP reads them: prompts and their tokens, refused where a name says nothing or too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...config.few_shot import CLASS
from ...engine.untrusted import shown
from ...errors import UsageError
from .clip_files import words_of

if TYPE_CHECKING:
    from .clip import Clip


def spoken(class_name: str) -> str:
    """The name of a class in a sentence: underscores are spaces."""
    return " ".join(class_name.replace("_", " ").split())


def filled(templates: Sequence[str], class_name: str) -> list[str]:
    """The prompts of a class."""
    return [template.replace(CLASS, spoken(class_name)) for template in templates]


def token_ids(clip: Clip, text: str) -> list[int]:
    """What a text tokenises to, without the tokens of start and end."""
    found: list[int] = clip.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return found


def padded(clip: Clip, rows: Sequence[Sequence[int]]) -> Tensor:
    """[start] row [end] of every row as (B, L) int64, filled up with the end token to the longest.

    The text encoder looks back only, so what follows the first end token changes nothing.
    """
    start, end = clip.start_token, clip.end_token
    longest = max(map(len, rows)) + 2
    return torch.tensor([[start, *row, *[end] * (longest - 1 - len(row))] for row in rows])


def prompts_with_context(clip: Clip, class_names: Sequence[str], learned_tokens: int) -> Tensor:
    """[start] v_1 ... v_M [class] . [end] of every class, (C, L) int64; the start token holds the places of the v."""
    return padded(clip, [[*[clip.start_token] * learned_tokens, *_ending(clip, name)] for name in class_names])


def _ending(clip: Clip, class_name: str) -> list[int]:
    return token_ids(clip, f"{spoken(class_name)}.")


def check_classes(
    clip: Clip, class_names: Sequence[str], templates: Sequence[str], learned_tokens: int | None = None
) -> None:
    """Raise UsageError for classes that this CLIP cannot read, or cannot tell apart by their names.

    learned_tokens: vectors that stand before each name where CoOp learns some.
    """
    if clip.words is not None:
        unknown = {word: None for name in class_names for word in words_of(name) if word not in clip.words}
        if unknown:
            raise UsageError(
                f"{clip.name}: was never taught the words {', '.join(map(shown, unknown))}, so it cannot tell these "
                "classes. Give another --clip, or one trained with these words."
            )
    read: dict[tuple[int, ...], str] = {}
    for name in class_names:
        ids = tuple(token_ids(clip, spoken(name)))
        if not ids or {clip.start_token, clip.end_token} & {*ids}:
            raise UsageError(
                f"class {shown(repr(name))}: {clip.name} reads no words in it; give the class another name."
            )
        if ids in read:
            raise UsageError(
                f"classes {shown(repr(read[ids]))} and {shown(repr(name))}: {clip.name} reads the same in both; give "
                "one of them another name."
            )
        read[ids] = name
        lengths = {"its longest prompt": max(len(token_ids(clip, text)) for text in filled(templates, name)) + 2}
        if learned_tokens is not None:
            lengths[f"its prompt with {learned_tokens} learned vectors"] = learned_tokens + len(_ending(clip, name)) + 2
        for what, length in lengths.items():
            if length > clip.most_tokens:
                raise UsageError(
                    f"class {shown(repr(name))}: {what} has {length} tokens, {clip.name} reads {clip.most_tokens}; "
                    "shorten the name or --template, or give fewer --coop-tokens."
                )
