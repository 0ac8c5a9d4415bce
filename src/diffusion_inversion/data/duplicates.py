"""Images that occur twice, exactly or nearly: within a part, and across train and test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..engine.memory import large_array
from ..engine.text import shown
from ..errors import DataError
from .images import LabelledImages, content_hash
from .near_duplicates import NearTo, near_pairs, thumbnail
from .problems import Problem

_SHOWN_PAIRS = 5
_AT_ONCE = 256  # images whose thumbnails are made, or compared, together
_NEAR_TRAINING, _LEFT_OUT, _CONFLICT = "near-duplicate of training image ", ", left out of test", "conflicting labels: "


@dataclass(frozen=True)
class Part:
    """What the search needs to know of N decoded images."""

    ids: Sequence[str]
    hashes: Sequence[str]
    labels: Sequence[int]  # numbered alike in all parts
    thumbnails: Tensor  # (N, 3, 32, 32) uint8


@dataclass(frozen=True)
class Shared:
    """A test image that is a training image too; near: the same picture with other pixels."""

    row: int  # in the test part
    twin: str  # id of the training image
    near: bool


@dataclass(frozen=True)
class Duplicates:
    """What was found: problems of each part for itself, and what crosses the split."""

    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    shared: tuple[Shared, ...]


def find_duplicates(train: Part, test: Part | None, class_names: Sequence[str]) -> Duplicates:
    """Search both parts at once. Every repeated image is named once in its part, twice if labels conflict too."""
    import torch

    parts = (train,) if test is None else (train, test)
    ids = [id_ for part in parts for id_ in part.ids]
    hashes = [digest for part in parts for digest in part.hashes]
    labels = [label for part in parts for label in part.labels]
    border = len(train.ids)
    first: dict[str, int] = {}
    for row, digest in enumerate(hashes):
        first.setdefault(digest, row)
    rows = sorted(first.values())  # one of each content, training images before test images
    thumbnails = train.thumbnails
    if test is not None:
        thumbnails = torch.from_numpy(large_array((len(hashes), *thumbnails.shape[1:])))
        torch.cat([part.thumbnails for part in parts], out=thumbnails)
    pairs = near_pairs(thumbnails if len(rows) == len(thumbnails) else thumbnails[rows])

    alike: dict[int, list[int]] = defaultdict(list)  # row => earlier rows that show the same picture
    for before, after in pairs:
        alike[rows[after]].append(rows[before])
    problems: tuple[list[Problem], list[Problem]] = ([], [])
    shared: list[Shared] = []
    first_in_test: dict[str, int] = {}
    for row, digest in enumerate(hashes):
        tested = row >= border
        exact = (first_in_test if tested else first).setdefault(digest, row)
        if exact != row:
            problems[tested].append(_repeats(ids, labels, row, exact, "same pixels as", class_names))
        if tested and first[digest] < border:
            shared.append(Shared(row - border, ids[first[digest]], near=False))
            continue
        others = alike.get(first[digest], ())
        if tested and any(other < border for other in others):
            shared.append(Shared(row - border, ids[min(others)], near=True))
        if exact != row:
            continue
        here = [other for other in others if (other >= border) == tested]
        conflicts = [other for other in here if labels[other] != labels[row]]
        for other in {*here[:1], *conflicts[:1]}:
            problems[tested].append(_repeats(ids, labels, row, other, "near-duplicate of", class_names))
    return Duplicates(tuple(problems[0]), tuple(problems[1]), tuple(shared))


def _repeats(
    ids: Sequence[str], labels: Sequence[int], row: int, other: int, what: str, class_names: Sequence[str]
) -> Problem:
    cause = f"{what} {ids[other]}"
    if labels[row] == labels[other]:
        return Problem(ids[row], cause, "delete one of them", fatal=False)
    labelled = f"{class_names[labels[other]]}, this is labelled {class_names[labels[row]]}"
    return Problem(ids[row], f"{_CONFLICT}{cause}, labelled {labelled}", "correct a label", fatal=False)


def shared_problems(test: Part, shared: Sequence[Shared], *, drop: bool, allow_near: bool) -> list[Problem]:
    """One problem for each test image that is in train too; fatal unless it is dropped, or near and allowed."""
    found = []
    for item in shared:
        cause = f"{_NEAR_TRAINING if item.near else 'same pixels as training image '}{item.twin}"
        tolerated = item.near and allow_near
        if drop and not tolerated:
            found.append(Problem(test.ids[item.row], f"{cause}{_LEFT_OUT}", "delete it", fatal=False))
        else:
            remedy = "delete one of them, or leave it out with --drop-test-duplicates"
            if item.near and not tolerated:
                remedy += ", or keep it with --allow-near-duplicates"
            found.append(Problem(test.ids[item.row], cause, remedy, fatal=not tolerated))
    return found


def doubts(problems: Sequence[Problem]) -> tuple[int, int]:
    """How many test images near a training image were kept, and how many images have labels in conflict."""
    near = {p.file for p in problems if p.cause.startswith(_NEAR_TRAINING) and not p.cause.endswith(_LEFT_OUT)}
    return len(near), len({p.file for p in problems if p.cause.startswith(_CONFLICT)})


def refuse_shared(train: str, test: str, part: Part, shared: Sequence[Shared], *, allow_near: bool) -> None:
    """Raise DataError that names the first pairs, where a test image is in train too (nearly: unless allowed)."""
    text = []
    exact = [item for item in shared if not item.near]
    near = [] if allow_near else [item for item in shared if item.near]
    if exact:
        text.append(f"{len(exact)} test image(s) have exactly the pixels of a training image:")
        text += _listed(train, test, part, exact, "=")
    if near:
        what = "a training image encoded, scaled, brightened or cropped anew"
        text.append(f"{len(near)} test image(s) are near-duplicates, as of {what}:")
        text += _listed(train, test, part, near, "~")
    if text:
        remedy = "Remove one of each pair, or leave the test images out with --drop-test-duplicates"
        keep = (
            ", or give --groups where they show one part or scene (a hold-out keeps these on one side), or keep the "
            "near-duplicates with --allow-near-duplicates (the test then measures memory too)"
        )
        raise DataError("\n".join([*text, f"{remedy}{keep if near else ''}."]))


def same_pixels(images: LabelledImages, known: LabelledImages) -> dict[int, str]:
    """Row => id of the image of `known` that has its pixels: as they were stored, or at the side of both."""
    of_stored = dict(zip(known.hashes, known.ids, strict=True))
    of_shown = dict(zip(_pixels(known), known.ids, strict=True))
    pairs = zip(images.hashes, _pixels(images), strict=True)
    twins = enumerate(of_stored.get(stored, of_shown.get(shown)) for stored, shown in pairs)
    return {row: twin for row, twin in twins if twin is not None}


def _pixels(images: LabelledImages) -> list[str]:
    return [content_hash(image.permute(1, 2, 0).numpy()) for image in images.images]


def test_images(
    images: LabelledImages,
    train: LabelledImages,
    test: LabelledImages,
    copied: Collection[int],
    *,
    drop: bool,
    allow_near: bool,
) -> set[int]:
    """Rows of images beside DATA that are test images, exactly or, unless that is allowed, nearly: to be left out.

    How close alike objects come is measured among DATA's images, as for a pool. Rows in `copied` have the pixels of a
    training image, which DATA itself has told apart. Raises DataError, which names the first, unless `drop` is given.
    """
    exact = same_pixels(images, test)
    near = {} if allow_near else _near(images, train, test)
    near = {row: twin for row, twin in near.items() if row not in exact and row not in copied}
    rows = sorted({*exact, *near})
    if rows and not drop:
        twins = [shown(exact[row]) if row in exact else f"nearly {shown(near[row])}" for row in rows[:_SHOWN_PAIRS]]
        named = ", ".join(f"{shown(images.ids[row])} is {twin}" for row, twin in zip(rows, twins, strict=False))
        more = f" and {len(rows) - len(twins)} more" if len(rows) > len(twins) else ""
        keep = ", or keep the near ones with --allow-near-duplicates" if near else ""
        raise DataError(
            f"{images.name}: {len(rows)} of its images are test images of {test.name}: {named}{more}. Take them out, "
            f"or leave them out with --drop-test-duplicates{keep}."
        )
    return set(rows)


def _near(images: LabelledImages, train: LabelledImages, test: LabelledImages) -> dict[int, str]:
    """Row => id of the test image that it nearly equals."""
    import torch

    near_to = NearTo(torch.cat([thumbnail(block) for part in (train, test) for block in part.images.split(_AT_ONCE)]))
    found: dict[int, str] = {}
    for number, block in enumerate(images.images.split(_AT_ONCE)):
        for known, place in near_to.pairs(thumbnail(block)):
            if known >= len(train):
                found.setdefault(number * _AT_ONCE + place, test.ids[known - len(train)])
    return found


def _listed(train: str, test: str, part: Part, shared: Sequence[Shared], sign: str) -> list[str]:
    lines = [
        f"  {shown(test)}: {shown(part.ids[item.row])}  {sign}  {shown(train)}: {shown(item.twin)}"
        for item in shared[:_SHOWN_PAIRS]
    ]
    return lines + ([f"  ... and {len(shared) - _SHOWN_PAIRS} more"] if len(shared) > _SHOWN_PAIRS else [])
