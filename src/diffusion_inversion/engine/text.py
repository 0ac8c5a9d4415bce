"""Text of others that is safe to show: what a terminal obeys, hides or turns around is written out."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 2000  # characters of one text in a report; the run's files have it whole
# Controls, format characters (bidirectional overrides, zero width), surrogates, private use, unassigned, separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Of the format characters, those that join letters or emoji are part of words: the others hide or turn text around.
_JOINERS = "\u200c\u200d"


def escaped(text: str, *, keep: str = "", also: str = "") -> str:
    """`text` with every hidden character but those in `keep`, and those in `also`, as Python writes it: \\u202e."""
    if text.isascii() and text.isprintable() and not any(character in text for character in also):
        return text
    return "".join(
        c.encode("unicode_escape", "backslashreplace").decode("ascii")
        if c in also or (unicodedata.category(c) in _HIDDEN and c not in keep)
        else c
        for c in text
    )


def shown(text: str) -> str:
    """For a line of a terminal or a table: line breaks and backslashes are escaped too, so it reads back as it was."""
    return escaped(text, also="\\")


def cut(text: str, most: int) -> str:
    """`text`, which ends in an ellipsis where it is longer than `most` characters, that among them."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def cut_inside(text: str, most: int) -> str:
    """As `cut`, with the ellipsis in the middle: names that differ at their end still do."""
    end = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def visible(text: str) -> str:
    """For a page: line breaks, tabs and joiners of letters stay. Longer than 2,000 characters ends in an ellipsis."""
    return escaped(cut(text, LONGEST), keep=f"\n\t{_JOINERS}")


def visible_values(value: Any) -> Any:
    """JSON data with every text in it, keys too, made `visible`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible_values(key): visible_values(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [visible_values(child) for child in value]
    return value


def did_you_mean(text: str, names: Iterable[str]) -> str:
    """`; did you mean NAME?` for the name that a mistyped text is nearest to; empty where none is near."""
    near = difflib.get_close_matches(text, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
