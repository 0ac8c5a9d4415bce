"""The parts of `run.json` about the synthetic images themselves: labels that were judged, strengths, growth, counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired


class JudgeRecord(TypedDict):
    """How judges of labels do on real images that they never saw; rates in [0, 1]."""

    images: int
    folds: int
    accuracy: float
    calibration_error: float
    failed: float  # share that fails by the rule that synthetic images are judged by


class FidelityClassRecord(TypedDict):
    class_name: str
    judged: int
    failed: int


class FidelitySourceRecord(FidelityClassRecord):
    file: str


class FidelitySubgroupRecord(TypedDict):
    """Images whose sources have one value of the attribute; the interval is of the share that fails."""

    value: str
    judged: int
    failed: int
    low: float
    high: float


class FailedRecord(TypedDict):
    """A synthetic image that shows another class than its label; probabilities are the judge's."""

    file: str
    source: str
    class_name: str
    confidence: float  # in the label
    shows: str
    rival_confidence: float
    passed_again: bool | None  # whether its last drawing passes; None where it was not drawn again


class FidelityRecord(TypedDict):
    """Whether synthetic images show their class (run/fidelity/)."""

    filter: str  # drop, redraw or soft
    images: int
    judged: int  # of them; the others have no judge
    failed: int  # of these: show another class
    drawn_again: int
    left: int  # that still fail after it
    unfit: list[str]  # classes of which every image does: they keep them
    judge: JudgeRecord
    classes: list[FidelityClassRecord]
    sources: list[FidelitySourceRecord]  # those whose variants fail most often
    attribute: NotRequired[str]  # where one is given that training images have, too
    subgroups: NotRequired[list[FidelitySubgroupRecord]]
    examples: list[FailedRecord]  # the clearest
    seconds: float


class StrengthClassRecord(TypedDict):
    """The noise strengths that were found for the images of a class."""

    class_name: str
    counts: list[int]  # of images at each level of the ladder
    median: float | None  # lambda; None where none was judged


class StrengthImageRecord(TypedDict):
    """An image that bears little noise, or much."""

    file: str
    class_name: str
    strength: float  # lambda
    level: float  # the same as a share of its vector's root mean square
    kept: int  # probes at it that show their class
    copies: int  # probes at it that copy a training image


class StrengthsRecord(TypedDict):
    """How much noise each image bears (run/strengths.py)."""

    images: int
    judged: int
    probes: int  # of each image at each level that was tried
    ladder: list[float]  # the levels, as shares of a vector's root mean square
    never: int  # images whose probes miss their class without noise
    copies: int  # images whose probes copy training images at their strength
    classes: list[StrengthClassRecord]
    lowest: list[StrengthImageRecord]
    highest: list[StrengthImageRecord]


class GrownPart(TypedDict):
    """Images of a class that have one value of an attribute."""

    class_name: str
    value: str
    error: float  # on held-out training images, before a round, in [0, 1]
    added: int


class GrowthRecord(TypedDict):
    """What `dinv grow` added, and what more would bring (run/grow.py); shares in [0, 1]."""

    reason: str  # why it ended
    added: int
    images: int  # training images, each held out once
    synthetic: list[int]  # images that were trained on, in each round and in the end
    accuracies: list[float]  # of held-out training images, then
    wanted: list[int]  # images that each class got, in the order of the classes
    kept: int  # of all that were added, that kept their label as candidates
    gain: list[float]  # in the end over the first round, low, high
    sentence: str
    attribute: NotRequired[str]  # where images went to subgroups by their error
    subgroups: NotRequired[list[GrownPart]]  # with the error before the first round, and all that was added


class BalancedPart(TypedDict):
    """Images of a class, of a value of the attribute, or of both."""

    class_name: str | None
    value: str | None
    real: int
    synthetic: int


class BalanceRecord(TypedDict):
    """What stage 2 made of the counts of images."""

    of: str  # the setting
    attribute: str | None
    parts: list[BalancedPart]
    uneven: str | None  # what stays uneven, in a sentence
