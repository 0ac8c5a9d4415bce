"""Hypernyms of class names, from the dictionary files of WordNet 3.0 (Debian's wordnet-base); formats: wndb(5WN)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError, UsageError

_FILES = ("index.noun", "data.noun")


def hypernyms(names: Iterable[str], folder: Path) -> dict[str, tuple[str, ...]]:
    """Synonyms of each name in its first sense, then what it is a kind of, up to the root, in lower case.

    Parts of a name between commas count each; a name that WordNet has not gets none. Raises UsageError where the files
    are not there, DataError where they are none of WordNet's.
    """
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise UsageError(f"--wordnet {folder}: no {missing[0]}. Give the folder that holds {' and '.join(_FILES)}.")
    wanted = {name: [part.strip().lower().replace(" ", "_") for part in name.split(",") if part] for name in names}
    try:
        senses = _first_senses(folder / "index.noun", {part for parts in wanted.values() for part in parts})
        with (folder / "data.noun").open("rb") as file:
            return {
                name: _above(file, [senses[part] for part in parts if part in senses]) for name, parts in wanted.items()
            }
    except (ValueError, IndexError, OSError) as error:
        raise DataError(f"{folder}: not WordNet's noun files ({error}). Give those of wordnet-base.") from error


def _first_senses(path: Path, lemmas: set[str]) -> dict[str, int]:
    """Where data.noun has the most frequent sense of each lemma."""
    found: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            lemma, *fields = line.split(" ")
            if lemma in lemmas:  # pos, senses, pointers, that many symbols, senses, tagged senses, offsets
                found[lemma] = int(fields[3 + int(fields[2]) + 2])
    return found


def _above(file: BinaryIO, offsets: list[int]) -> tuple[str, ...]:
    """The words of these synsets and of all above them, the nearest first."""
    words: dict[str, None] = {}
    seen: set[int] = set()
    while offsets:
        above: list[int] = []
        for offset in offsets:
            if offset in seen:
                continue
            seen.add(offset)
            file.seek(offset)
            fields = file.readline().decode().partition("|")[0].split()
            if int(fields[0]) != offset:
                raise ValueError(f"no entry at byte {offset} of data.noun")
            count = int(fields[3], 16)
            words |= dict.fromkeys(word.replace("_", " ").lower() for word in fields[4 : 4 + 2 * count : 2])
            pointers = fields[5 + 2 * count :]
            above += [int(pointers[row + 1]) for row in range(0, len(pointers) - 3, 4) if pointers[row] in ("@", "@i")]
        offsets = above
    return tuple(words)
