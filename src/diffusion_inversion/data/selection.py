"""Which rows of a source are used: stratified subsets, hold-outs, classes that agree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import DataError, UsageError
from .dealing import FREE, deal
from .groups import refuse_one_group, with_groups
from .listed import Source, with_licence
from .naming import class_folder
from .sources import BUILTINS, open_data

HOLDOUT = 0.2
How = Literal["own", "given", "holdout"]


@dataclass(frozen=True)
class Chosen:
    """Ids that an earlier call trained and tested on, which keep their part, and the rule by which others join them.

    Where a part of DATA is held out and DATA grew, so many of the images that came since are held out too that the
    share of each class is tested on again; all others are to train on.

    balanced: a limit takes as many of every class, as far as they go; else classes keep their proportions.
    per_class: at most so many training images of each class.
    """

    train: frozenset[str] = frozenset()
    test: frozenset[str] = frozenset()
    balanced: bool = False
    per_class: int | None = None


@dataclass(frozen=True)
class Selection:
    """Listed, not decoded: what to train and to test on. Labels of the two may be numbered differently."""

    train: Source
    train_rows: Sequence[int]
    test: Source
    test_rows: Sequence[int]
    how: How
    published: bool  # one data set that others report figures on: its near-duplicates are part of it


def select(
    data: str | Path,
    test: str | Path | None,
    *,
    limit: int | None,
    test_limit: int | None,
    holdout: float,
    seed: int,
    root: Path,
    chosen: Chosen | None = None,
    groups: str | None = None,
    licence: str | None = None,
) -> Selection:
    """Open DATA and the test DATA and choose their rows, as `datasets.load_splits` describes.

    Rows that were `chosen` before keep their part, so that DATA may grow under a run. Test images keep the proportions
    of the classes, whatever is trained on.
    """
    chosen = chosen or Chosen()
    check_arguments(None, holdout, limit=limit, test_limit=test_limit, per_class=chosen.per_class)
    if chosen.balanced and limit is None and not chosen.train:  # what was begun so goes on
        raise UsageError("--balanced: evens the subset of --limit; give that too, or --per-class N")
    train, own_test = open_data(data, root)
    train = train if licence is None else with_licence(train, licence)
    if groups is not None:
        train = with_groups(train, groups)
        refuse_one_group(train)
    train_rows: Sequence[int] = range(len(train.ids))
    how: How
    if test is not None:
        whole, part = open_data(test, root, "test")
        if part is None and _same(data, test):
            raise UsageError(f"--test {test} is DATA itself; leave --test out to hold a part of it out")
        how, tested = "given", part or whole
        test_rows: Sequence[int] = range(len(tested.ids))
    elif own_test is not None:
        how, tested, test_rows = "own", own_test, range(len(own_test.ids))
    else:
        train_rows, test_rows = hold_out(train, holdout, seed, chosen)
        how, tested = "holdout", replace(train, problems=())  # they ride with the training images
    if groups is not None and how != "holdout":
        tested = with_groups(tested, groups)
    train_rows = first_of_classes(train, chosen.per_class, seed, train_rows, chosen.train)
    published = how != "given" and (data in BUILTINS or (how == "own" and str(data).startswith("hf:")))
    return Selection(
        train,
        stratified(train, limit, seed, train_rows, chosen.train, balanced=chosen.balanced),
        tested,
        stratified(tested, test_limit, seed, test_rows, chosen.test),
        how,
        published,
    )


def check_arguments(size: int | None, holdout: float, **limits: int | None) -> None:
    """Raise UsageError for a size, limit or share that means nothing."""
    for name, value in {"size": size, **limits}.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: give at least 1")
    if not 0 < holdout < 1:
        raise UsageError(f"holdout={holdout}: give a share between 0 and 1, both excluded")


def _same(data: str | Path, test: str | Path) -> bool:
    return str(data) == str(test) or (Path(data).exists() and Path(data).resolve() == Path(test).resolve())


def _rank(seed: int, purpose: str, image_id: str) -> bytes:
    """A place in a random order that depends on the seed and the image's id alone."""
    return hashlib.sha256(f"{seed}/{purpose}/{image_id}".encode()).digest()


def _ranked_by_class(
    source: Source, rows: Sequence[int], seed: int, purpose: str, first: frozenset[str] = frozenset()
) -> list[list[int]]:
    ranked: list[list[int]] = [[] for _ in source.class_names]
    for row in rows:
        ranked[source.labels[row]].append(row)
    for members in ranked:
        members.sort(key=lambda row: (source.ids[row] not in first, _rank(seed, purpose, source.ids[row])))
    return ranked


def stratified(
    source: Source,
    limit: int | None,
    seed: int,
    rows: Sequence[int] | None = None,
    chosen: frozenset[str] = frozenset(),
    *,
    balanced: bool = False,
) -> list[int]:
    """At most `limit` of the rows, in their order, every class among them; larger limits contain smaller ones.

    Classes keep their proportions: after one of each, the next place goes to the class whose share of the rows it
    fits best (Sainte-Lague). `balanced`: the first of every class's ranking, then the second, ... Ids in `chosen` are
    taken before any other. Raises UsageError where that leaves nothing for a class, or the limit is below their number.
    """
    rows = range(len(source.ids)) if rows is None else rows
    if limit is None or limit >= len(rows):
        return list(rows)
    ranked = _ranked_by_class(source, rows, seed, "limit", chosen)
    used = sum(1 for members in ranked if members)
    if limit < used:
        raise UsageError(f"limit={limit}: fewer than the {used} classes of {source.name}; give at least {used}")

    def turn(place: int, members: list[int]) -> Fraction:
        return Fraction(place) if balanced or not place else Fraction(2 * place + 1, 2 * len(members))

    turns = [
        (source.ids[row] not in chosen, bool(place), turn(place, members), label, row)
        for label, members in enumerate(ranked)
        for place, row in enumerate(members)
    ]
    taken = sorted(turns)[:limit]
    *_, labels, rows_taken = zip(*taken, strict=True)
    without = sorted({label for label, members in enumerate(ranked) if members} - set(labels))
    if without:
        names = ", ".join(source.class_names[label] for label in without)
        raise UsageError(
            f"limit={limit}: the images that were chosen before leave no room for {names}; give at least "
            f"{limit + len(without)}"
        )
    return sorted(rows_taken)


def first_of_classes(
    source: Source, count: int | None, seed: int, rows: Sequence[int], chosen: frozenset[str] = frozenset()
) -> Sequence[int]:
    """At most `count` of the rows of each class, in their order: the first of its ranking, as in `stratified`."""
    if count is None:
        return rows
    ranked = _ranked_by_class(source, rows, seed, "limit", chosen)
    return sorted(row for members in ranked for row in members[:count])


def hold_out(source: Source, share: float, seed: int, chosen: Chosen | None = None) -> tuple[list[int], list[int]]:
    """Rows to train and to test on. Every class with two images or more is in both, one with one image in train.

    Rows that were `chosen` before stay where they were; where others came, so many of these are held out that the share
    holds again, so the test grows too. Groups are held out whole, and then every class of two groups
    or more is in both. Raises DataError where no such hold-out is found.
    """
    chosen = chosen or Chosen()
    if source.groups:
        return _hold_out_groups(source, share, seed, chosen)
    test: set[int] = set()
    for members in _ranked_by_class(source, range(len(source.ids)), seed, "holdout", chosen.test):
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        tested = [row for row in members if source.ids[row] not in chosen.train][: max(count, 0)]
        test.update(tested, (row for row in members if source.ids[row] in chosen.test))
    return [row for row in range(len(source.ids)) if row not in test], sorted(test)


def _hold_out_groups(source: Source, share: float, seed: int, chosen: Chosen) -> tuple[list[int], list[int]]:
    groups = sorted({*source.groups}, key=lambda group: _rank(seed, "holdout group", group))
    number = {group: place for place, group in enumerate(groups)}
    counts = np.zeros((len(groups), len(source.class_names)), np.int64)
    kept = np.full(len(groups), FREE)
    parted = set()  # classes of which images were chosen before
    for image_id, label, group in zip(source.ids, source.labels, source.groups, strict=True):
        counts[number[group], label] += 1
        if image_id in chosen.train or image_id in chosen.test:
            kept[number[group]] = image_id in chosen.test
            parted.add(label)
    part = deal(counts, (1 - share, share))
    if ((kept != FREE) & (kept != part)).any():  # DATA grew, else what was chosen is dealt again as it was
        part = deal(counts, (1 - share, share), kept)
    for label, name in enumerate(source.class_names):
        having = np.flatnonzero(counts[:, label])
        if label not in parted and len({*part[having].tolist()}) == 1:
            of = f"one group, {groups[having[0]]}" if len(having) == 1 else f"{len(having)} groups that stay together"
            raise DataError(
                f"{source.name}: class {name}: its {counts[:, label].sum()} images are of {of}, so none can be held "
                "out to test on; give images of other groups, test images apart (--test), or leave the class out"
            )
    tested = [
        image_id in chosen.test or (image_id not in chosen.train and part[number[group]] == 1)
        for image_id, group in zip(source.ids, source.groups, strict=True)
    ]
    return [row for row, test in enumerate(tested) if not test], [row for row, test in enumerate(tested) if test]


def check_classes(train: Source) -> None:
    """Raise DataError for one class: nothing can be told apart."""
    if len(train.class_names) == 1:
        raise DataError(
            f"{train.name}: one class, {train.class_names[0]}, and a classifier needs two; add a folder for each other "
            "class, or give the table (.csv, .tsv, .jsonl) that says what each image is"
        )


def refuse_shared_groups(chosen: Selection) -> None:
    """Raise DataError, with a name, for groups that are in train and test."""
    train, test = chosen.train, chosen.test
    if not train.groups:
        return
    tested = {test.groups[row]: test.ids[row] for row in reversed(chosen.test_rows)}
    shared = {g: train.ids[row] for row in reversed(chosen.train_rows) if (g := train.groups[row]) in tested}
    if not shared:
        return
    group = min(shared)
    remedy = (
        "the run was parted by other groups: restore those, or choose another run folder"
        if chosen.how == "holdout"
        else "leave its images out of one of them, or give all images as DATA, of which whole groups are held out"
    )
    raise DataError(
        f"{len(shared)} group(s) in train and test, such as {group} ({train.name}: {shared[group]}; {test.name}: "
        f"{tested[group]}): the test would measure what was learned of it by heart; {remedy}"
    )


def with_classes(test: Source, train: Source) -> Source:
    """The test source with its labels numbered as the training classes are. Raises DataError where they differ."""
    label_of = {class_folder(name): label for label, name in enumerate(train.class_names)}  # as it may be on disk
    named = [class_folder(name) for name in test.class_names]
    if {*named} != {*label_of}:
        if not named:
            raise DataError(f"{test.name}: no test images; give --test a folder of class folders that hold images")
        raise DataError(
            f"classes of train and test differ: {train.name} trains on {', '.join(train.class_names) or 'none'}; "
            f"{test.name} tests on {', '.join(test.class_names) or 'none'}; give both the same classes"
        )
    labels = tuple(label_of[named[label]] for label in test.labels)
    return replace(test, labels=labels, class_names=train.class_names)
