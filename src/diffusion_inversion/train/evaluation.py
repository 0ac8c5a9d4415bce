"""How good a classifier is on real images, and how much better or worse than another, with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.images import LabelledImages
from ..errors import DataError, DinvError, UsageError
from .classifiers import Classifier

Outcome = Literal["helps", "harms", "does not help", "not enough evidence"]
BASELINE = "real"
OWN_SIZE = "real (own size)"  # the same images at the side they have without us
SMALLEST_EFFECT = 0.005  # in accuracy: gains below it count as no help
MIN_UNITS = 3  # seeds or replicates that a verdict needs
CONFIDENCE = 0.95  # with which all intervals of a family hold
ECE_BINS = 15
_DIGITS = 4  # decimal places of a confidence


@dataclass(frozen=True)
class Evaluation:
    """A classifier's result on n test images; every rate is in [0, 1].

    Attributes:
        n: Number of test images.
        accuracy: Share of them that were recognised.
        balanced_accuracy: Mean of `per_class` over the classes that the test images have.
        per_class: Share of each class's images that were recognised; None where it has none.
        confusion: (classes, classes) int64, row = true class, column = predicted class.
        predictions: (n,) int64, in the order of the test images.
        confidences: (n,) float64, probability of each predicted class, to 4 decimals; None: not measured.
        ece: Expected calibration error, see `calibration_error`; None without confidences.
        auroc: Area under the ROC curve; None without confidences, or unless there are two classes.
    """

    n: int
    accuracy: float
    balanced_accuracy: float
    per_class: tuple[float | None, ...]
    confusion: Tensor
    predictions: Tensor
    confidences: Tensor | None
    ece: float | None
    auroc: float | None = None


def score(
    labels: Tensor, predictions: Tensor, classes: int, confidences: Tensor | None = None, auroc: float | None = None
) -> Evaluation:
    """Compare predicted with true classes, both (n,) int64 in 0..classes-1, and the confidences (n,) with both.

    auroc: what was measured before the confidences were rounded; without it it is found from them. Raises DataError
    when n is 0 or differs.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix

    if len(labels) == 0 or len(labels) != len(predictions):
        raise DataError(f"{len(labels)} labels, {len(predictions)} predictions: give as many of both, at least one.")
    if confidences is not None and len(confidences) != len(labels):
        raise DataError(f"{len(labels)} labels, {len(confidences)} confidences: give as many of both.")
    confusion = torch.from_numpy(confusion_matrix(labels.numpy(), predictions.numpy(), labels=range(classes)))
    per_class = [int(row[k]) / int(row.sum()) if row.sum() else None for k, row in enumerate(confusion)]
    present = [rate for rate in per_class if rate is not None]
    if auroc is None and confidences is not None and classes == 2:
        auroc = area_under_roc(labels, predictions, confidences)
    return Evaluation(
        n=len(labels),
        accuracy=float(accuracy_score(labels.numpy(), predictions.numpy())),
        balanced_accuracy=math.fsum(present) / len(present),
        per_class=tuple(per_class),
        confusion=confusion,
        predictions=predictions,
        confidences=confidences,
        ece=None if confidences is None else calibration_error(confidences, predictions == labels),
        auroc=auroc,
    )


def area_under_roc(labels: Tensor, predictions: Tensor, confidences: Tensor) -> float | None:
    """Area under the ROC curve of two classes, ties counted half; None where the labels (n,) are all of one.

    From the probability of class 1, which the confidence of the predicted class gives; it is the same for class 0.
    """
    probability = torch.where(predictions == 1, confidences.double(), 1 - confidences.double())
    return _area(labels, probability.round(decimals=_DIGITS))


def _area(labels: Tensor, scores: Tensor) -> float | None:
    """The same from any scores (n,) float64 that are larger the surer class 1 is."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels.numpy(), scores.numpy())) if len(labels.unique()) == 2 else None


def calibration_error(confidences: Tensor, correct: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3) of confidences (n,) in [0, 1] and correct (n,) bool.

    15 bins of equal width, each with its lower edge, the last with both: the mean over images of the gap between
    mean confidence and accuracy in their bin. In [0, 1], 0 = calibrated. With few images in a bin it is biased upwards.
    Guo et al. give a bin its upper edge; torchmetrics its lower one, as here.
    """
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=torch.float64)
    place = (torch.bucketize(confidences.double(), edges, right=True) - 1).clamp(0, ECE_BINS - 1)
    # |accuracy - confidence| of a bin, times its share of the images
    gaps = torch.zeros(ECE_BINS, dtype=torch.float64).index_add_(0, place, correct.double() - confidences.double())
    return float(gaps.abs().sum()) / len(confidences)


def predict(classifier: Classifier, images: LabelledImages, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Predicted classes (N,) int64 and their probabilities (N,) float64, rounded to 4 decimals, on the CPU.

    Computed in float32 on the classifier's device, in eval mode. Raises DinvError for logits that are not finite.
    """
    return _read(_logits(classifier, images, batch_size))


def _read(logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits.argmax(1), logits.softmax(1).amax(1).double().round(decimals=_DIGITS)


@torch.inference_mode()
def _logits(classifier: Classifier, images: LabelledImages, batch_size: int) -> Tensor:
    device = next(classifier.parameters()).device
    was_training = classifier.training
    classifier.eval()
    try:
        logits = torch.cat([classifier(batch.to(device)).cpu() for batch in images.images.split(batch_size)])
    finally:
        classifier.train(was_training)
    if lost := int((~logits.isfinite()).any(1).sum()):
        raise DinvError(
            f"{images.name}: the classifier's answers to {lost} of {len(images)} images are not finite: its training "
            "diverged. Train again with a lower --learning-rate."
        )
    return logits


def evaluate(classifier: Classifier, images: LabelledImages, batch_size: int = 500) -> Evaluation:
    """Measure a classifier on labelled images of its own side. `batch_size` sets memory, not results.

    Raises DataError when there are no images or their classes are not the classifier's, UsageError when their
    side is another, DinvError for logits that are not finite.
    """
    if len(images) == 0:
        raise DataError(f"{images.name}: no images to evaluate on; give a test set with at least one.")
    if classifier.class_names != images.class_names:
        raise DataError(
            f"{images.name}: its classes are {list(images.class_names)}, "
            f"the classifier's are {list(classifier.class_names)}. Give images of the same classes in the same order."
        )
    logits = _logits(classifier, images, batch_size)
    # Probabilities of a sure classifier round to 1 and would tie; the margin between its two logits does not.
    area = _area(images.labels, logits[:, 1].double() - logits[:, 0].double()) if logits.shape[1] == 2 else None
    predictions, confidences = _read(logits)
    return score(images.labels, predictions, len(images.class_names), confidences, area)


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline: differences are arm minus baseline, in accuracy (0.01 = one point).

    Intervals are cut to what a difference of accuracies can be, [-1, 1]; errors are not.
    """

    arm: str
    baseline: str
    unit: str  # what was repeated: "seeds" or "replicates"
    differences: tuple[float, ...]  # one per unit
    difference: float  # their mean
    unit_error: float | None  # standard error from the spread over units, None with one unit
    test_error: float | None  # standard error from the choice of test images, None where it was not measured
    interval: tuple[float, float] | None  # both errors, at `simultaneous_confidence`: what the verdict reads
    simultaneous_confidence: float
    test_images: float | None = None  # that `test_error` is estimated from; a fraction where they do not count alike

    @property
    def summary(self) -> str:
        """One line with the mean difference and the interval that the verdict reads, in points."""
        return f"{self.arm} - {self.baseline}: {self.points} (n={len(self.differences)} {self.unit})"

    @property
    def points(self) -> str:
        """The difference and its interval alone."""
        text = f"{100 * self.difference:+.2f} points"
        if self.interval is not None:
            low, high = (f"{100 * bound:+.2f}" for bound in self.interval)
            text += f", {100 * self.simultaneous_confidence:.4g} % interval [{low}, {high}]"
        return text

    def outcome(self) -> Outcome:
        """What the interval says of this arm alone, in the words of `verdict`."""
        if self.interval is None or len(self.differences) < MIN_UNITS:
            return "not enough evidence"
        low, high = self.interval
        if low > 0:
            return "helps"
        if high < 0:
            return "harms"
        return "does not help" if high < SMALLEST_EFFECT else "not enough evidence"


def half_width(unit_variance: Any, test_variance: Any, units: int, images: float, confidence: Any) -> Any:
    """Half the interval of a mean whose variance is the sum of two, each estimated; numbers or arrays of them.

        sqrt(t(level, units - 1)^2 unit_variance + t(level, images - 1)^2 test_variance)

    Each error has its own quantile, so the interval does not narrow where a small sample of units happens to agree, as
    it does under Welch-Satterthwaite's degrees of freedom, which grow then; nor do two or three units widen an error
    that thousands of test images measured well. benchmarks/interval_coverage.py has the coverage of each.
    """
    import numpy as np
    from scipy.stats import t

    place = 0.5 + confidence / 2
    of_units, of_images = t.ppf(place, units - 1), t.ppf(place, max(images - 1, 1))
    return np.sqrt(of_units**2 * unit_variance + of_images**2 * test_variance)


def compare(
    arm: str,
    accuracies: Mapping[str, Sequence[float]],
    *,
    correct: Mapping[str, Tensor] | None = None,
    labels: Tensor | None = None,
    baseline: str = BASELINE,
    comparisons: int = 1,
    unit: str = "seeds",
) -> Comparison:
    """Compare an arm with the baseline, paired over n units (same position = same unit): seeds, or replicates.

    With d_s the difference of the two accuracies in unit s, and, from `correct` (arm to (n, images), the share in
    [0, 1] of a unit's classifiers that recognised each test image, NaN where the unit was not tested on it), e_i = mean
    over s of (correct_arm[s, i] - correct_baseline[s, i]):

        variance over units  = var_s(d_s) / n
        variance over images = var_i(e_i) / n_test
        interval             = mean_s(d_s) -+ `half_width` of the two

    with unbiased variances and level = 1 - 5 % / comparisons (Bonferroni). The noise of single
    predictions is in both terms, so the interval errs on the wide side; so does it where units have test images of
    their own. As in McNemar's test the second term comes from the images on which the arms disagree; it is never taken
    below that of one such image, 1 / n_test^2. Without `correct` it is left out, and the interval speaks of these test
    images alone.

    Raises UsageError for a missing arm, lists of different length, or no unit.
    """
    ours, theirs = _paired(arm, baseline, accuracies, unit)
    n = len(ours)
    differences = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    mean = float(differences.mean())
    simultaneous = 1 - (1 - CONFIDENCE) / comparisons

    test_variance: float | None = None
    images = 2.0
    if correct is not None:
        per_image = _image_differences(arm, baseline, correct, n, unit)
        test_variance, images = _test_variance(per_image) if labels is None else balanced_variance(per_image, labels)
    unit_variance = interval = None
    if n > 1:
        unit_variance = float(differences.var(correction=1)) / n
        half = float(half_width(unit_variance, test_variance or 0.0, n, images, simultaneous))
        interval = (max(mean - half, -1.0), min(mean + half, 1.0))
    return Comparison(
        arm=arm,
        baseline=baseline,
        unit=unit,
        differences=tuple(differences.tolist()),
        difference=mean,
        unit_error=None if unit_variance is None else math.sqrt(unit_variance),
        test_error=None if test_variance is None else math.sqrt(test_variance),
        interval=interval,
        simultaneous_confidence=simultaneous,
        test_images=None if test_variance is None else images,
    )


def _paired(
    arm: str, baseline: str, accuracies: Mapping[str, Sequence[float]], unit: str
) -> tuple[Sequence[float], Sequence[float]]:
    missing = [name for name in (arm, baseline) if name not in accuracies]
    if missing:
        raise UsageError(
            f"accuracies: no arm {', '.join(missing)}; it has {', '.join(accuracies) or 'none'}. Train the missing arm."
        )
    ours, theirs = accuracies[arm], accuracies[baseline]
    if len(ours) != len(theirs) or not ours:
        raise UsageError(
            f"accuracies: {len(ours)} {unit} of {arm}, {len(theirs)} of {baseline}. "
            f"The comparison is paired: give the same {unit}, at least one."
        )
    return ours, theirs


def _image_differences(arm: str, baseline: str, correct: Mapping[str, Tensor], units: int, unit: str) -> Tensor:
    """What the arm recognised more than the baseline: (units, images) float64, NaN where a unit was not tested."""
    if arm not in correct or baseline not in correct:
        raise UsageError(f"correct: has {', '.join(correct) or 'no arm'}; {arm} and {baseline} are needed.")
    ours, theirs = correct[arm].double(), correct[baseline].double()
    if ours.shape != theirs.shape or ours.ndim != 2 or ours.shape[0] != units:
        raise UsageError(
            f"correct: {arm} has shape {tuple(ours.shape)}, {baseline} {tuple(theirs.shape)}; "
            f"both must be ({units} {unit}, test images)."
        )
    return ours - theirs


def _test_variance(differences: Tensor) -> tuple[float, float]:
    """Return var_i(e_i) / n_test and n_test, in the words of `compare`.

    Where units were tested on different images, an image counts by its share w_i in the mean difference: the variance
    is that of a weighted mean, and n_test = 1 / sum(w_i^2).
    """
    differences = differences[(~differences.isnan()).any(1)]
    tested = ~differences.isnan()
    shares = tested / tested.sum(1, keepdim=True) / len(tested)  # of each prediction in the mean; they add up to 1
    seen = tested.any(0)
    weights = shares.sum(0)[seen]
    per_image = (shares * differences.nan_to_num())[:, seen].sum(0) / weights
    n_test = 1 / float(weights.square().sum())
    variance = float((weights * (per_image - (weights * per_image).sum())).square().sum())
    variance *= n_test / (n_test - 1) if n_test > 1 + 1e-9 else 0.0
    return max(variance, float(weights.max()) ** 2), n_test


def balanced_variance(differences: Tensor, labels: Tensor) -> tuple[float, float]:
    """The same of a mean over the classes of `labels` (images,): variance, and the images that stand behind it."""
    present = [k for k in labels.unique().tolist() if not differences[:, labels == k].isnan().all()]
    parts = [_test_variance(differences[:, labels == k]) for k in present]
    sizes = [size for _, size in parts]
    # A class of one image has the largest variance there can be, which needs no estimate.
    lost = math.fsum(1 / size**2 / (size - 1) for size in sizes if size > 1 + 1e-9)
    freedom = math.fsum(1 / size for size in sizes) ** 2 / lost if lost else math.inf
    return math.fsum(variance for variance, _ in parts) / len(parts) ** 2, freedom + 1
