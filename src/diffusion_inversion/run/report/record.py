"""The schema of `run.json`, which is JSON data alone: what a run did, measured and concluded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired

    from ...train.choosing import ChoiceRecord
    from .image_records import BalanceRecord, FidelityRecord, GrowthRecord, StrengthsRecord


class ProblemRecord(TypedDict):
    """A file that was left out (`fatal`) or used with a remark."""

    file: str
    cause: str
    remedy: str
    fatal: bool


class DataRecord(TypedDict):
    name: str
    n_train: int
    n_test: int
    how: str  # where the test images come from: own, given or holdout
    class_names: list[str]
    licence: str  # "" where the data set names none
    near_duplicates: NotRequired[int]  # test images that nearly equal a training image and were kept
    conflicting_labels: NotRequired[int]  # images whose label an equal or nearly equal one contradicts
    problems: list[ProblemRecord]


class GeneratorRecord(TypedDict):
    name: str
    hash: str  # SHA-256 of the weights in hex
    resolution: int  # side in px
    prediction_type: str  # epsilon or v_prediction


class InvertRecord(TypedDict):
    seconds: float
    loss_initial: float  # mean over images on the fixed evaluation bank, before the first step
    loss_final: float
    null_loss: NotRequired[float]  # the same with the empty prompt
    ended: NotRequired[dict[str, int]]  # where images ended early: how many at which step


class SampleRecord(TypedDict):
    seconds: float
    images: int
    grown: NotRequired[int]  # those that `dinv grow` added beside them


class TrainRecord(TypedDict):
    seconds: float  # all arms and seeds


class StagesRecord(TypedDict):
    invert: NotRequired[InvertRecord]
    sample: SampleRecord
    train: TrainRecord


class CurveRecord(TypedDict):
    """Loss of stage 1 over the images at every measured step; all lists have one length."""

    steps: list[int]
    mean: list[float]
    p10: list[float]  # 10th percentile over images
    p90: list[float]


class MeasureRecord(TypedDict):
    """Another measure than accuracy, in [0, 1], over the same seeds or replicates."""

    values: list[float]
    mean: float
    std: float | None


class ArmRecord(TypedDict):
    """Test accuracies in [0, 1], one per seed; where there are replicates one for each, the mean over its seeds."""

    accuracies: list[float]
    mean: float
    std: float | None  # over these, n - 1 in the denominator; None with one
    n: int  # seeds, or replicates
    balanced_accuracy: NotRequired[MeasureRecord]  # mean over classes of `recall`
    auroc: NotRequired[MeasureRecord]  # where there are two classes
    recall: NotRequired[list[float | None]]  # of each class, mean over seeds or replicates; None without test images


class ComparisonRecord(TypedDict):
    """An arm minus the baseline, in the verdict's measure (0.01 = one point), with the interval that it reads."""

    arm: str
    baseline: NotRequired[str]  # "real", or "real (own size)" where that arm was trained
    difference: float
    low: float | None  # None where it cannot be computed (one seed)
    high: float | None
    confidence: NotRequired[float]  # of the interval, in (0, 1)
    outcome: NotRequired[str]  # of this arm alone, in the words of the verdict


class FallRecord(TypedDict):
    """A class of which an arm finds fewer than the baseline, beyond the interval of its recall."""

    arm: str
    class_name: str
    difference: float  # of the recall, negative
    low: float
    high: float
    confidence: float


class MajorityRecord(TypedDict):
    """What always answering the most frequent class of the test images scores."""

    class_name: str
    accuracy: float
    balanced_accuracy: float


class CoarsenessRecord(TypedDict):
    """What a probe lost by the generator's autoencoder on training images, before the work (`run.coarseness`)."""

    generator: str
    resolution: int  # px at which images went through the autoencoder
    own: int  # px of the images as they are
    used: int  # px at which classifiers see them
    images: int
    classes: int
    measure: str  # accuracy, or balanced accuracy
    plain: float  # learned and tested on images as they are
    through: float  # learned after the autoencoder, tested on images as they are
    within: float  # learned and tested after the autoencoder
    loss: float  # plain - through, with its interval
    low: float
    high: float
    too_coarse: bool
    sentence: str
    seconds: float


class VerdictRecord(TypedDict):
    outcome: Literal["helps", "harms", "does not help", "not enough evidence"]
    sentence: str  # one plain sentence with numbers and n
    comparisons: list[ComparisonRecord]
    scope: NotRequired[str]  # what the intervals speak of, a sentence
    headline: NotRequired[str]  # the outcome, with the classes that a gain is paid for with
    measure: NotRequired[str]  # what is compared: accuracy, or balanced accuracy where the test classes are uneven
    arm: NotRequired[str]  # the one that the outcome rests on
    falls: NotRequired[list[FallRecord]]
    # Where "real (own size)" is the baseline: the same arms against `real`, and that baseline against `real`.
    beside: NotRequired[list[ComparisonRecord]]
    shrinking: NotRequired[ComparisonRecord]
    too_coarse: NotRequired[bool]  # the generator: shrunk to its size real images lose more than chance explains
    coarseness: NotRequired[CoarsenessRecord]
    majority: NotRequired[MajorityRecord]
    visible: NotRequired[float | None]  # gain from which on it could be seen, known before the work; None: never
    too_few: NotRequired[str]  # a sentence where that is more than five points


class SidesRecord(TypedDict):
    """Sides of the images in px."""

    native: int  # of the real images as they are stored
    used: int  # of what every arm but "real (own size)" sees
    own: int | None  # of that arm, where it was trained
    limit: int  # that it never exceeds


class FarRecord(TypedDict):
    """A training image and how far its reconstruction is from it."""

    file: str
    distance: float


class LikenessRecord(TypedDict):
    """Distance of sources to their reconstructions in Lite0 features; 1 = as far as two different sources are."""

    n: int
    mean: float
    median: float
    p90: float  # 90th percentile
    sources: int  # between how many the unit was measured
    worst: list[FarRecord]  # the farthest; likeness.json has all


class FoundRecord(TypedDict):
    """What was retrieved from a pool."""

    pool: str
    pool_images: int
    pool_sha256: str  # over all ids and pixels
    k: int
    extractor: str
    images: int
    asked_for: int  # k for each training image: one that is near to several is there once
    left_out: dict[str, int]  # of the pool, by reason
    classes: dict[str, int]  # images of each class
    licences: dict[str, int]  # images of each licence; "" where none is named
    similarity: dict[str, float]  # least and mean cosine to the training image that an image was found for


class ToldRecord(TypedDict):
    """How well training images are told from held-out ones by a score; every figure in [0, 1], intervals at 95 %."""

    of: str  # what an adversary has: vectors, say
    by: str  # what the score is
    calibrated_by: str
    auc: float
    auc_low: float
    auc_high: float
    true_positives: float
    true_low: float
    true_high: float
    false_positives: float  # the rate at which they are, on average
    false_at_most: float  # the same with 95 % confidence
    members: int
    others: int


class MembershipRecord(TypedDict):
    members: int
    held_out: int
    references: int  # held-out images that distances were calibrated by
    false_positives: float  # the rate that was asked for
    figures: list[ToldRecord]
    control: ToldRecord  # what tells them apart without the run
    notes: list[str]


class ReplicateRecord(TypedDict):
    """One replicate: where it is, what was its own, and every accuracy."""

    number: int
    folder: str  # relative to the run folder, "." for the run itself
    seeds: dict[str, int]  # data, invert, sample
    classifier_seeds: list[int]
    n_train: int
    n_test: int
    arms: dict[str, list[float]]  # test accuracies in [0, 1], in the order of the seeds
    chosen: NotRequired[dict[str, Any]]  # setting => value, where some were chosen on folds


class ComponentsRecord(TypedDict):
    """Standard deviations: between replicates apart from what their seeds explain, between seeds of a replicate."""

    between: float | None
    within: float | None


class EstimateRecord(TypedDict):
    """A mean in [0, 1] over seeds or replicates, and its 95 % interval; None with one of them."""

    mean: float
    low: float | None
    high: float | None


class SubgroupRecord(TypedDict):
    """What each arm does on the test images with one value of an attribute."""

    value: str
    images: int
    accuracy: dict[str, EstimateRecord]  # of each arm
    ece: dict[str, EstimateRecord]  # expected calibration error, of the arms where it was measured
    comparisons: list[ComparisonRecord]  # of other arms with the baseline, in accuracy; all parts hold together


class SubgroupsRecord(TypedDict):
    attribute: str
    baseline: str | None  # arm of real images alone
    worst: str | None  # value of the part of which the baseline recognises least
    lowered_by: list[str]  # arms that recognise less of that part, beyond the interval
    parts: list[SubgroupRecord]


class TimeLimitRecord(TypedDict):
    """What a run left out to end in time (plan/time_limit.py)."""

    seconds: float
    cut: list[str]  # such as "variants 10 -> 4"; empty where all fitted


class RunRecord(TypedDict):
    """All of `run.json`."""

    name: str
    created: str  # ISO 8601
    command: str  # the command that makes this run again
    versions: dict[str, str]  # package to version
    data: DataRecord
    images: NotRequired[str]  # what those beside the real ones are called where no vectors made them: retrieved, say
    generator: NotRequired[GeneratorRecord]  # not where images were found; with a curve where vectors made them
    found: NotRequired[FoundRecord]  # where they were retrieved
    licences: NotRequired[list[str]]  # lines about what the images were made with; not in records of earlier versions
    settings: dict[str, dict[str, Any]]  # invert, sample, train: the settings models as JSON
    stages: StagesRecord
    inversion_curve: NotRequired[CurveRecord]
    arms: dict[str, ArmRecord]  # in the order in which they are shown
    # By arm, over all seeds and replicates: (classes, classes) test images, row = true, column = predicted class.
    confusion: NotRequired[dict[str, list[list[int]]]]
    verdict: VerdictRecord
    balance: NotRequired[BalanceRecord]  # where stage 2 evens counts; of replicate 0
    subgroups: NotRequired[SubgroupsRecord]  # where an attribute of the test images was given
    sides: NotRequired[SidesRecord]
    likeness: NotRequired[LikenessRecord]
    fidelity: NotRequired[FidelityRecord]  # where `--filter` asked for it
    growth: NotRequired[GrowthRecord]  # where `dinv grow` added images
    strengths: NotRequired[StrengthsRecord]  # where noise_strength was auto
    # What `CopyAudit.record` has, of the pairs those that the report shows; `redrawn`: see fidelity/copies_record.py.
    copies: NotRequired[dict[str, Any]]
    membership: NotRequired[MembershipRecord]  # where `dinv membership` measured it, of replicate 0
    chosen: NotRequired[list[ChoiceRecord]]  # settings that were chosen on folds of the training images, in order
    time_limit: NotRequired[TimeLimitRecord]
    # Where there are several replicates; `data`, `settings`, the losses and the pictures are of replicate 0.
    replicates: NotRequired[list[ReplicateRecord]]
    components: NotRequired[dict[str, ComponentsRecord]]  # of each arm, then of each "<arm> - <baseline>"
