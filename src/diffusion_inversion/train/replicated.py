"""What several replicates say together: each is one unit; the spread between them apart from that between seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .arms import ArmResults
from .evaluation import BASELINE, OWN_SIZE
from .own_size import Sides
from .verdict import Verdict, verdict


@dataclass(frozen=True)
class Replicated:
    """A replicate that is done."""

    folder: Path
    results: ArmResults
    train_ids: tuple[str, ...]
    test_ids: tuple[str, ...]  # in the order of the results' labels
    sides: Sides | None = None


@dataclass(frozen=True)
class Components:
    """Standard deviations of an accuracy, or of a difference of two, in [0, 1]."""

    between: float | None  # of replicates, apart from what their seeds explain; None with one of either
    within: float | None  # of classifier seeds within a replicate; None with one seed


def components(values: Sequence[Sequence[float]]) -> Components:
    """Variance components of values by replicate and seed (one-way random effects, ANOVA).

    within^2 = pooled variance over the seeds of a replicate; between^2 = variance of the replicates' means - within^2
    times the mean of 1 / seeds, 0 where that is negative.
    """
    freedom = sum(len(one) - 1 for one in values)
    if freedom == 0:
        return Components(None, None)
    within = sum((len(one) - 1) * statistics.variance(one) for one in values if len(one) > 1) / freedom
    if len(values) < 2:
        return Components(None, within**0.5)
    means = [statistics.fmean(one) for one in values]
    between = statistics.variance(means) - within * statistics.fmean(1 / len(one) for one in values)
    return Components(max(between, 0.0) ** 0.5, within**0.5)


def by_replicate(replicates: Sequence[Replicated]) -> dict[str, list[tuple[float, ...]]]:
    """Test accuracies of each arm that all replicates have: one tuple for each replicate, in the order of its seeds."""
    found = [replicate.results.accuracies() for replicate in replicates]
    return {
        arm: [accuracies[arm] for accuracies in found]
        for arm in found[0]
        if all(arm in one for one in found)  # where images vary in size, so may what the own size is
    }


def spread(replicates: Sequence[Replicated]) -> dict[str, Components]:
    """Components of each arm's accuracy, then of each arm's difference to the baseline, paired over seeds."""
    arms = by_replicate(replicates)
    baseline = OWN_SIZE if OWN_SIZE in arms else BASELINE
    found = {arm: components(values) for arm, values in arms.items()}
    for arm in arms:
        if arm != baseline and baseline in arms:
            pairs = zip(arms[arm], arms[baseline], strict=True)
            paired = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]
            found[f"{arm} - {baseline}"] = components(paired)
    return found


def recognised(rows: Sequence[Tensor], ids: Sequence[Sequence[str]]) -> Tensor:
    """(replicates, images) over all test images of any: the share of its classifiers that recognised each, else NaN.

    rows: of each replicate (seeds, its test images) bool. ids: of each replicate, its test images.
    """
    place = _columns(ids)
    found = torch.full((len(rows), len(place)), torch.nan, dtype=torch.float64)
    for replicate, (correct, own) in enumerate(zip(rows, ids, strict=True)):
        found[replicate, [place[image_id] for image_id in own]] = correct.double().mean(0)
    return found


def _columns(ids: Sequence[Sequence[str]]) -> dict[str, int]:
    """The column of each test image of any replicate."""
    return {image_id: column for column, image_id in enumerate(dict.fromkeys(i for own in ids for i in own))}


def tested_ids(replicates: Sequence[Replicated]) -> tuple[str, ...]:
    """The test images of any replicate, in the order of the columns of `correct_of`."""
    return tuple(_columns([replicate.test_ids for replicate in replicates]))


def true_labels(replicates: Sequence[Replicated]) -> Tensor:
    """The true class of each test image of any replicate (n,), in the order of `recognised`'s columns."""
    place = _columns([replicate.test_ids for replicate in replicates])
    labels = torch.empty(len(place), dtype=torch.int64)
    for replicate in replicates:
        labels[[place[image_id] for image_id in replicate.test_ids]] = replicate.results.labels
    return labels


def correct_of(replicates: Sequence[Replicated]) -> dict[str, Tensor]:
    """By arm, what the verdict's units recognised of all test images: seeds of one replicate, else the replicates."""
    correct = [replicate.results.correct() for replicate in replicates]
    if len(replicates) == 1:
        return correct[0]
    ids = [replicate.test_ids for replicate in replicates]
    return {arm: recognised([part[arm] for part in correct], ids) for arm in by_replicate(replicates)}


def sides_of(replicates: Sequence[Replicated]) -> Sides | None:
    """The sides of the images; no own size unless all replicates have that arm."""
    sides = replicates[0].sides
    return sides if sides is None or OWN_SIZE in by_replicate(replicates) else replace(sides, own=None)


def verdict_over(replicates: Sequence[Replicated]) -> Verdict:
    """The verdict of one replicate over its seeds, of several over the replicates, each averaged over its seeds.

    Where images were shrunk, its sentence says to how many px.
    """
    if len(replicates) == 1:
        found = replicates[0].results.verdict()
    else:
        found = verdict(
            {arm: [statistics.fmean(values) for values in arms] for arm, arms in by_replicate(replicates).items()},
            correct=correct_of(replicates),
            labels=true_labels(replicates),
            class_names=replicates[0].results.class_names,
            unit="replicates",
        )
    sides = sides_of(replicates)
    return replace(found, reason=f"{found.reason}; {sides.sentence}") if sides and sides.sentence else found


def scope(replicates: Sequence[Replicated]) -> str:
    """What the verdict's interval speaks of, in a sentence."""
    images = replicates[0].sides.images if replicates[0].sides is not None else "synthetic"
    if len(replicates) == 1:
        return (
            f"The interval is of one subset of the training images and one draw of the {images} ones: it counts the "
            "classifiers' seeds and the choice of test images, not what another subset or draw would give."
            + (" `dinv run` with --replicates 5 counts that too." if images == "synthetic" else "")
        )
    subsets = len({frozenset(replicate.train_ids) for replicate in replicates}) > 1
    tests = len({frozenset(replicate.test_ids) for replicate in replicates}) > 1
    own = ["vectors", "synthetic images", "classifiers"]
    own = ["subset of the training images"] * subsets + ["test images"] * tests + own
    same = "" if subsets else ", and all the same training images"
    return (
        f"The interval is over {len(replicates)} replicates, each with its own {', '.join(own[:-1])} and {own[-1]}"
        f"{same}. It counts the choice of test images too."
    )
