"""Whether synthetic images helped: what is compared, in which measure, and what a gain in it hides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .evaluation import (
    BASELINE,
    CONFIDENCE,
    MIN_UNITS,
    OWN_SIZE,
    SMALLEST_EFFECT,
    Comparison,
    Outcome,
    compare,
    half_width,
)

# Test classes are uneven where the largest has this many times the images of the smallest: always naming one class of
# two is then right in 60 % and more. Below it accuracy and balanced accuracy say the same.
UNEVEN = 1.5
MOST_NAMED = 3  # classes in a headline
VISIBLE = 0.05  # a gain that a test set should be large enough to show: five points
# What is assumed of two arms before they are trained: the share of test images that only one of them recognises at one
# seed, and how much of it is the same at every seed. docs/method.md has what was measured.
DISAGREEMENT, LASTING = 0.2, 0.5


@dataclass(frozen=True)
class Fall:
    """A class of which an arm finds fewer than the baseline, beyond the interval of its recall."""

    class_name: str
    comparison: Comparison  # of the recall of this class; all classes and arms hold together


@dataclass(frozen=True)
class Verdict:
    """Whether synthetic images helped, and what that rests on."""

    outcome: Outcome
    reason: str
    comparisons: tuple[Comparison, ...]
    measure: str = "accuracy"  # or "balanced accuracy", where the test classes are uneven
    arm: str | None = None  # the one that the outcome rests on
    falls: tuple[Fall, ...] = ()  # of every arm
    beside: tuple[Comparison, ...] = ()  # with the real images at the generator's side, where they are not the baseline
    shrinking: Comparison | None = None  # what the real images' own side is worth: own side minus the generator's

    @property
    def fewer(self) -> tuple[str, ...]:
        """The classes of which the arm that the outcome rests on finds fewer."""
        return tuple(fall.class_name for fall in self.falls if fall.comparison.arm == self.arm)

    @property
    def headline(self) -> str:
        """The outcome, with the classes that a gain is paid for with."""
        if self.outcome != "helps" or not self.fewer:
            return self.outcome
        return f"{self.outcome}, but finds fewer {_named(self.fewer)}"

    @property
    def too_coarse(self) -> bool:
        """Whether the real images alone lose more at the generator's side than chance explains."""
        return self.shrinking is not None and self.shrinking.outcome() == "helps"


@dataclass(frozen=True)
class Majority:
    """What always answering the most frequent class of the test images scores; rates in [0, 1]."""

    label: int
    accuracy: float
    balanced_accuracy: float


def majority(labels: Tensor) -> Majority:
    """The constant answer that is right most often on test images of these classes (n,); of equals the first."""
    counts = labels.bincount()
    label = int(counts.argmax())
    return Majority(label, int(counts[label]) / len(labels), 1 / int((counts > 0).sum()))


def is_uneven(labels: Tensor) -> bool:
    """Whether the classes of the test images (n,) are uneven, so that their balanced accuracy counts (`UNEVEN`)."""
    counts = labels.bincount()
    counts = counts[counts > 0]
    return bool(counts.max() >= UNEVEN * counts.min())


def recalls(correct: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Share of each class's images that were recognised: (units, classes) float64, NaN where a unit has none.

    correct: (units, images) bool, or shares in [0, 1] with NaN where a unit was not tested on an image.
    """
    found = [correct[:, labels == k].double().nanmean(1) for k in range(classes)]
    return torch.stack(found, 1)


def measured(
    accuracies: Mapping[str, Sequence[float]], correct: Mapping[str, Tensor], labels: Tensor
) -> tuple[str, Tensor | None, Mapping[str, Sequence[float]]]:
    """What arms are judged by, `labels` for `compare` where that is balanced accuracy, and each arm's by unit."""
    if not is_uneven(labels):
        return "accuracy", None, accuracies
    classes = int(labels.max()) + 1
    found = {arm: recalls(correct[arm], labels, classes).nanmean(1).tolist() for arm in accuracies}
    return "balanced accuracy", labels, found


def _named(names: Sequence[str]) -> str:
    shown = list(names[:MOST_NAMED]) + ([f"{len(names) - MOST_NAMED} more"] if names[MOST_NAMED:] else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def verdict(
    accuracies: Mapping[str, Sequence[float]],
    *,
    correct: Mapping[str, Tensor] | None = None,
    labels: Tensor | None = None,
    class_names: Sequence[str] = (),
    unit: str = "seeds",
) -> Verdict:
    """Say whether synthetic images helped: every arm with them is compared with the baseline, paired over the units.

    `accuracies` maps arms to accuracies in [0, 1] in the order of the units (seeds or replicates); `correct` maps them
    to (units, images). The intervals are those of `compare`, Bonferroni-corrected over the arms compared: all hold
    together at 95 %. The baseline is the arm "real (own size)" where there is one, else "real".

    - "helps": some arm's lower bound is above 0;
    - "harms": every arm's upper bound is below 0;
    - "does not help": every arm's upper bound is below half a point (`SMALLEST_EFFECT`);
    - "not enough evidence": anything else, and always with fewer than 3 units or nothing to compare.

    With `labels` (images,), the true classes, named by `class_names`, balanced accuracy decides where the classes are
    uneven, and the recall of every class is compared in the same way, corrected over arms and classes: `falls` are the
    classes of which an arm finds fewer.
    """
    baseline = OWN_SIZE if OWN_SIZE in accuracies else BASELINE
    arms = [name for name in accuracies if name not in (BASELINE, OWN_SIZE)]
    measure, stratified = "accuracy", None
    if correct is not None and labels is not None:
        measure, stratified, accuracies = measured(accuracies, correct, labels)

    def against(base: str, names: Sequence[str]) -> tuple[Comparison, ...]:
        return tuple(
            compare(
                name, accuracies, correct=correct, labels=stratified, baseline=base, comparisons=len(names), unit=unit
            )
            for name in names
        )

    shrunk = baseline == OWN_SIZE and BASELINE in accuracies
    shrinking = against(BASELINE, [OWN_SIZE])[0] if shrunk else None
    if not arms or baseline not in accuracies:
        reason = f"only {', '.join(accuracies) or 'nothing'} was trained: nothing to compare"
        return Verdict("not enough evidence", reason, (), measure, shrinking=shrinking)
    comparisons = against(baseline, arms)
    beside = against(BASELINE, arms) if shrunk else ()
    falls: tuple[Fall, ...] = ()
    if correct is not None and labels is not None:
        falls = _falls(arms, correct, labels, class_names, baseline, unit)

    def found(outcome: Outcome, reason: str, arm: str | None = None) -> Verdict:
        return Verdict(outcome, reason, comparisons, measure, arm, falls, beside, shrinking)

    units = len(accuracies[baseline])
    if units < MIN_UNITS:
        return found("not enough evidence", f"{units} of the at least {MIN_UNITS} {unit} that a verdict needs")
    bounds = [(c, *c.interval) for c in comparisons if c.interval is not None]
    losing = {fall.comparison.arm for fall in falls}
    helping = [c for c, low, _ in bounds if low > 0]
    widest, _, high = max(bounds, key=lambda b: b[2])
    effect = f"{100 * SMALLEST_EFFECT:g} points"
    outcome: Outcome
    if helping:
        # Of arms that help, one that loses no class, then the one that is surest to.
        named = max(helping, key=lambda c: (c.arm not in losing, c.interval))
        outcome, reason = "helps", f"the interval is above zero: {named.summary}"
    elif high < 0:
        outcome, reason, named = "harms", f"the interval is below zero for every arm: {widest.summary}", widest
    elif high < SMALLEST_EFFECT:
        outcome, reason = "does not help", f"a gain of {effect} is ruled out for every arm: {widest.summary}"
        named = widest
    else:
        outcome, named = "not enough evidence", widest
        reason = f"both no gain and a gain of {effect} are still possible: {widest.summary}"
    if measure != "accuracy":
        reason = f"in {measure}, since the test classes are uneven, {reason}"
    for arm in dict.fromkeys(fall.comparison.arm for fall in falls):
        lost = [fall for fall in falls if fall.comparison.arm == arm]
        rates = "; ".join(f"{_named([one.class_name])} {one.comparison.points}" for one in lost[:MOST_NAMED])
        reason += f"; {arm} finds fewer {_named([one.class_name for one in lost])} (recall: {rates})"
    if correct is None:
        reason += "; on these test images alone"
    return found(outcome, reason, named.arm)


def _falls(
    arms: Sequence[str],
    correct: Mapping[str, Tensor],
    labels: Tensor,
    class_names: Sequence[str],
    baseline: str,
    unit: str,
) -> tuple[Fall, ...]:
    present = labels.unique().tolist()
    found = []
    for arm in arms:
        for label in present:
            of_class = {name: correct[name][:, labels == label].double() for name in (arm, baseline)}
            tested = ~of_class[arm].isnan().all(1)  # replicates may have test images of their own
            if int(tested.sum()) < MIN_UNITS:
                continue
            of_class = {name: hits[tested] for name, hits in of_class.items()}
            compared = compare(
                arm,
                {name: hits.nanmean(1).tolist() for name, hits in of_class.items()},
                correct=of_class,
                baseline=baseline,
                comparisons=len(arms) * len(present),
                unit=unit,
            )
            if compared.outcome() == "harms":
                found.append(Fall(class_names[label] if class_names else f"class {label}", compared))
    return tuple(found)


def smallest_visible(labels: Tensor, units: int, seeds: int = 1, arms: int = 2) -> float:
    """The gain in accuracy (0.01 = one point) from which on a verdict can see it, before anything is trained.

    Half the interval that `verdict` would have of `units` units, each the mean of `seeds` classifiers, on test images
    of these classes (n,), in balanced accuracy where they are uneven, for arms that differ as `DISAGREEMENT` and
    `LASTING` say: on a share q of the images only one of the two is right, of which r is the same at every seed.

        variance over units  = q (1 - r) / (seeds n) / units
        variance over images = q (r + (1 - r) / (seeds units)) / n

    Infinite with fewer units than a verdict needs.
    """
    if units < MIN_UNITS:
        return math.inf
    counts = labels.bincount()
    counts = counts[counts > 0].double()
    # Of a mean over classes n is what gives its variance: K^2 / sum(1 / n_k), which is n where they are even.
    images = float(len(counts) ** 2 / (1 / counts).sum()) if is_uneven(labels) else float(len(labels))
    single = DISAGREEMENT * (1 - LASTING) / images / seeds
    of_images = DISAGREEMENT * LASTING / images + single / units
    return float(half_width(single / units, of_images, units, images, 1 - (1 - CONFIDENCE) / arms))
