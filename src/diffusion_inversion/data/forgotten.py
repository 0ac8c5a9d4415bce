"""What a run must never use again: hashes of ids and pixels, in a file that verify and repair look after."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from typing_extensions import TypedDict

from ..engine.ledger import Ledger
from ..engine.untrusted import check_record
from .images import LabelledImages
from .problems import Problem
from .sources import Role

FORGOTTEN_FILE = "forgotten.json"


class Marks(TypedDict):
    """Content of the file; every entry is `hashed`."""

    never_again: list[str]  # ids (`id_marks`) and pixel hashes
    pending: list[str]  # ids whose deletion has begun
    keep_averages: bool  # of that deletion


def read_marks(run: Path) -> Marks:
    """The marks of a run. Raises DataError where the file was damaged or is missing: nothing may be learned then."""
    found = Ledger(run).read_json(FORGOTTEN_FILE)
    if found is None:
        return Marks(never_again=[], pending=[], keep_averages=False)
    return check_record(found, Marks, run / FORGOTTEN_FILE)


def write_marks(run: Path, marks: Marks) -> None:
    """Replace the marks; a copy goes into the ledger's record, from which `dinv repair` restores a damaged file."""
    Ledger(run).commit_json(FORGOTTEN_FILE, marks, copied=True)


def hashed(text: str) -> str:
    """What is kept of an id or a pixel hash: it can be recognised but not read."""
    return hashlib.sha256(f"forgotten {text}".encode("utf-8", "surrogatepass")).hexdigest()


def id_marks(part: Role, image_id: str) -> tuple[str, str]:
    """What may be kept of an id: for whatever part has it, and for one part, where the other may use the same ids."""
    return hashed(image_id), hashed(f"{part}:{image_id}")


def is_marked(marks: AbstractSet[str], part: Role, image_id: str) -> bool:
    """Whether an image of a part is meant by its id."""
    return not marks.isdisjoint(id_marks(part, image_id))


def forgotten_rows(images: LabelledImages, run: Path, part: Role) -> list[int]:
    """Rows of the images of a part that the run must never use again, by id or by pixels."""
    never = set(read_marks(run)["never_again"])
    if not never:
        return []
    pairs = enumerate(zip(images.ids, images.hashes, strict=True))
    return [row for row, (i, pixels) in pairs if hashed(pixels) in never or is_marked(never, part, i)]


def without_mention(problems: Sequence[Problem], ids: Collection[str]) -> tuple[Problem, ...]:
    """The problems that name none of these images."""
    return tuple(p for p in problems if not any(image_id in p.file or image_id in p.cause for image_id in ids))
