"""Names from data as text that is safe to show: what is invisible or turns text around is written out."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

LONGEST = 2000  # characters of one name; the run's files have it whole
# Of the format characters, those that join letters or emoji are part of words: the others hide or turn text around.
_JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    """`text` with control and direction characters and halves of surrogate pairs as \\u202e and the like.

    Line breaks and tabs stay. Longer text than 2,000 characters is cut, ending in an ellipsis.
    """
    short = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    if short.isascii() and short.isprintable():
        return short
    return "".join(_escape(character) if _hides(character) else character for character in short)


def visible_values(value: Any) -> Any:
    """JSON data with every text in it, keys too, made `visible`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible_values(key): visible_values(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [visible_values(child) for child in value]
    return value


def _hides(character: str) -> bool:
    # Cc control, Cf format, Cs surrogate, Cn unassigned (U+FFFF and the like), Zl and Zp line separators
    return (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp") and character not in f"\n\t{_JOINERS}"
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
