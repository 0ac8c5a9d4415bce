"""What can be said of a run before its work: what its test set cannot show, and what its images lose."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..config.training import TrainSettings
from ..data.datasets import Splits
from ..data.groups import suggested
from ..train.evaluation import MIN_UNITS
from ..train.own_size import own_side
from ..train.verdict import VISIBLE, is_uneven, smallest_visible


def visible_gain(labels: Tensor, settings: TrainSettings, replicates: int = 1) -> float | None:
    """The gain in the verdict's measure from which on it can be seen (`verdict.smallest_visible`); None: no verdict."""
    arms = len([arm for arm in settings.arms if arm != "real"])
    if "real" not in settings.arms or not arms:
        return None
    seeds = len(settings.seeds)
    units, each = (seeds, 1) if replicates == 1 else (replicates, seeds)
    found = smallest_visible(labels, units, each, arms)
    return None if math.isinf(found) else found


def too_few(labels: Tensor, settings: TrainSettings, replicates: int = 1) -> str | None:
    """A sentence where a gain of five points is not to be seen with these test images and seeds; None where it is."""
    if "real" not in settings.arms or set(settings.arms) == {"real"}:
        return None
    units, unit = (len(settings.seeds), "seeds") if replicates == 1 else (replicates, "replicates")
    if units < MIN_UNITS:
        return f"There will be no verdict: it takes at least {MIN_UNITS} {unit}, and this run has {units}."
    found = visible_gain(labels, settings, replicates)
    if found is None or found <= VISIBLE:
        return None
    counts = labels.bincount()
    rarest = f" ({int(counts[counts > 0].min())} of the rarest class)" if is_uneven(labels) else ""
    return (
        f"{len(labels)} test images{rarest} and {units} {unit} are too few to see a gain of {100 * VISIBLE:g} points: "
        f"expect to see one of about {100 * found:.0f} points and more. More test images show smaller ones."
    )


def forewarnings(
    splits: Splits, settings: TrainSettings, used: int, *, replicates: int = 1, own_size: bool = True
) -> Sequence[str]:
    """What a user should know before the work, a sentence each; classifiers see images of `used` px."""
    notes = []
    native = splits.train.native_size
    own = own_side(splits.train, used) if own_size and "real" in settings.arms else None
    if native > used:
        beside = "what more px would give is not measured" if own is None else f"real ones are tried at {own} px too"
        notes.append(f"The images have {native} px and are shrunk to {used} px; {beside}.")
    train, tested = splits.train, splits.test
    if splits.how == "holdout" and not train.groups:
        found = suggested(train.ids, train.labels.tolist(), tested.ids)
        if found is not None and found.across:
            notes.append(
                f"File names suggest {found.groups} groups, {found.across} of them in train and test: if each is one "
                f"picture, patient, part or scene, give --groups '{found.pattern}', which holds out whole ones."
            )
    few = too_few(splits.test.labels, settings, replicates)
    return notes if few is None else [*notes, few]
