"""What a gain in accuracy hides: uneven classes, classes that are found less often, tests too small to tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from diffusion_inversion.train.evaluation import OWN_SIZE, area_under_roc, balanced_variance, compare, score
from diffusion_inversion.train.verdict import UNEVEN, Verdict, is_uneven, majority, recalls, smallest_visible, verdict

# As the demo's test set: 672 functional cells, 328 defective ones.
DEMO = torch.tensor([0] * 672 + [1] * 328)
NAMES = ("functional", "defective")


def recognised(rates: list[list[float]], labels: Tensor = DEMO) -> Tensor:
    """(seeds, images): of each class the first images, as many as the seed's rate says."""
    hits = torch.zeros(len(rates), len(labels), dtype=torch.bool)
    for row, seed in zip(hits, rates, strict=True):
        for label, rate in enumerate(seed):
            of_class = (labels == label).nonzero()[:, 0]
            row[of_class[: round(rate * len(of_class))]] = True
    return hits


def judged(arms: dict[str, list[list[float]]], labels: Tensor = DEMO, names: tuple[str, ...] = NAMES) -> Verdict:
    correct = {arm: recognised(rates, labels) for arm, rates in arms.items()}
    accuracies = {arm: hits.double().mean(1).tolist() for arm, hits in correct.items()}
    return verdict(accuracies, correct=correct, labels=labels, class_names=names)


# --- measures ---------------------------------------------------------------------------------------------------------


def test_area_under_roc_equals_torchmetrics() -> None:
    from torchmetrics.functional.classification import binary_auroc

    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(400, generator=generator) < 0.3).long()
    for sharpness in (0.0, 0.5, 3.0):
        ahead = (sharpness * labels + torch.randn(400, generator=generator)).sigmoid().double().round(decimals=4)
        predictions = (ahead > 0.5).long()
        confidences = torch.where(predictions == 1, ahead, 1 - ahead)
        ours = area_under_roc(labels, predictions, confidences)
        assert ours == pytest.approx(binary_auroc(ahead.float(), labels, thresholds=None).item(), abs=1e-6)
        assert score(labels, predictions, 2, confidences).auroc == ours
        other = area_under_roc(1 - labels, 1 - predictions, confidences)
        assert ours == pytest.approx(other), "the same, whichever of the two classes is looked for"
    assert ours is not None and ours > 0.95


def test_area_under_roc_by_hand() -> None:
    # Of the two of class 1 and the two of class 0: 0.9 is above both, 0.4 above one and level with the other.
    labels, predictions = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 0, 0])
    confidences = torch.tensor([0.9, 0.6, 0.6, 0.8], dtype=torch.float64)
    assert area_under_roc(labels, predictions, confidences) == pytest.approx((2 + 1.5) / 4)
    always = area_under_roc(labels, torch.zeros(4, dtype=torch.int64), torch.full((4,), 0.7))
    assert always == 0.5, "one answer to everything tells nothing"
    assert area_under_roc(torch.ones(4, dtype=torch.int64), predictions, confidences) is None
    assert score(labels, predictions, 3, confidences).auroc is None and score(labels, predictions, 2).auroc is None


def test_the_majority_line_is_what_one_answer_to_everything_scores() -> None:
    line = majority(DEMO)
    always = score(DEMO, torch.zeros(1000, dtype=torch.int64), 2)
    assert (line.label, line.accuracy, line.balanced_accuracy) == (0, always.accuracy, always.balanced_accuracy)
    assert (line.accuracy, line.balanced_accuracy) == (0.672, 0.5)
    assert majority(torch.tensor([2, 2, 0])).balanced_accuracy == 0.5, "class 1 has no test images"


def test_what_uneven_means() -> None:
    assert is_uneven(DEMO) and not is_uneven(torch.arange(100) % 4)
    assert is_uneven(torch.tensor([0] * 30 + [2] * 20)) == (UNEVEN <= 1.5)
    assert not is_uneven(torch.tensor([0] * 29 + [2] * 20)), "a class without test images is no class"


def test_recalls_by_hand() -> None:
    shares = torch.tensor([[1.0, 0.0, 0.5, torch.nan], [torch.nan, torch.nan, 1.0, 1.0]])
    found = recalls(shares, torch.tensor([0, 0, 1, 1]), 2)
    assert found[0].tolist() == [0.5, 0.5] and found[1].isnan().tolist() == [True, False] and found[1, 1] == 1


# --- intervals of balanced accuracy -----------------------------------------------------------------------------------


def test_the_balanced_interval_is_that_of_a_mean_over_classes() -> None:
    rng = np.random.default_rng(0)
    correct = {arm: torch.from_numpy(rng.uniform(size=(4, 1000)) < rate) for arm, rate in (("real", 0.6), ("s", 0.7))}
    balanced = {arm: recalls(hits, DEMO, 2).mean(1).tolist() for arm, hits in correct.items()}
    c = compare("s", balanced, correct=correct, labels=DEMO)
    e = (correct["s"].double() - correct["real"].double()).mean(0)
    parts = [(float(e[k == DEMO].var()) / size, size) for k, size in ((0, 672), (1, 328))]
    assert c.test_error == pytest.approx((sum(v for v, _ in parts) / 4) ** 0.5)
    ours, theirs = (np.array(balanced[arm]) for arm in ("s", "real"))
    assert c.difference == pytest.approx((ours - theirs).mean())
    freedom = (1 / 672 + 1 / 328) ** 2 / (1 / 672**2 / 671 + 1 / 328**2 / 327)
    of_units = stats.t.ppf(0.975, 3) * (ours - theirs).std(ddof=1) / 2
    half = (of_units**2 + (stats.t.ppf(0.975, freedom) * (c.test_error or 0)) ** 2) ** 0.5
    assert c.interval == pytest.approx((c.difference - half, c.difference + half))


def test_on_even_classes_the_balanced_interval_is_the_plain_one() -> None:
    rng, labels = np.random.default_rng(1), torch.arange(600) % 3
    correct = {arm: torch.from_numpy(rng.uniform(size=(5, 600)) < rate) for arm, rate in (("real", 0.6), ("s", 0.6))}
    plain = {arm: hits.double().mean(1).tolist() for arm, hits in correct.items()}
    one, other = (compare("s", plain, correct=correct, labels=given) for given in (labels, None))
    assert one.interval == pytest.approx(other.interval, abs=1e-4) and one.interval != other.interval
    assert one.difference == other.difference


def test_a_class_of_one_image_counts_as_one_that_nothing_is_known_of() -> None:
    labels = torch.tensor([0] * 400 + [1])
    hits = torch.ones(3, 401, dtype=torch.bool)
    c = compare("s", {"real": [1.0] * 3, "s": [1.0] * 3}, correct={"real": hits, "s": hits}, labels=labels)
    assert c.test_error == pytest.approx((1 + 1 / 400**2) ** 0.5 / 2)


@pytest.mark.parametrize("sizes", [(300, 100), (200, 60, 20)])
def test_balanced_intervals_hold_the_true_difference_as_often_as_they_say(sizes: tuple[int, ...]) -> None:
    rng, n, held = np.random.default_rng(3), 400, 0
    labels = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
    gains = np.linspace(-0.05, 0.15, len(sizes))[labels.numpy()]
    truth = float(np.linspace(-0.05, 0.15, len(sizes)).mean())
    for _ in range(n):
        hard = rng.uniform(0.2, 0.7, len(labels))
        wobble = rng.uniform(-0.02, 0.02, (2, 3, 1))
        ours = torch.from_numpy(rng.uniform(size=(3, len(labels))) < hard + gains + wobble[0])
        theirs = torch.from_numpy(rng.uniform(size=(3, len(labels))) < hard + wobble[1])
        correct = {"real": theirs, "s": ours}
        balanced = {arm: recalls(hits, labels, len(sizes)).mean(1).tolist() for arm, hits in correct.items()}
        c = compare("s", balanced, correct=correct, labels=labels)
        assert c.interval is not None
        held += c.interval[0] < truth < c.interval[1]
    assert held / n > 0.95 - 3 * (0.95 * 0.05 / n) ** 0.5


# --- verdict ----------------------------------------------------------------------------------------------------------

REAL = [[0.70, 0.64], [0.71, 0.65], [0.70, 0.63], [0.69, 0.64], [0.70, 0.64]]


def by(functional: float, defective: float) -> list[list[float]]:
    return [[a + functional, b + defective] for a, b in REAL]


def test_a_classifier_that_always_says_functional_does_not_help() -> None:
    # 67.2 % against 61.5 %: more images are right, no defect is found.
    poor = [[0.61 + 0.002 * k, 0.62] for k in range(5)]
    found = judged({"real": poor, "synthetic": [[1.0, 0.0]] * 5})
    assert found.outcome == "harms" and found.measure == "balanced accuracy"
    assert found.comparisons[0].difference == pytest.approx(0.5 - 0.617, abs=2e-3)
    assert "in balanced accuracy" in found.reason and "finds fewer defective" in found.reason
    plain = {"real": [0.615] * 5, "synthetic": [0.672] * 5}
    assert verdict(plain).outcome == "helps", "which is what plain accuracy says"


def test_a_gain_that_is_paid_for_with_a_class_says_so_in_the_headline() -> None:
    found = judged({"real": REAL, "synthetic": by(0.2, -0.12), "real+synthetic": by(0.0, 0.0)})
    assert found.outcome == "helps" and found.headline == "helps, but finds fewer defective"
    assert [(fall.class_name, fall.comparison.arm) for fall in found.falls] == [("defective", "synthetic")]
    fall = found.falls[0].comparison
    assert fall.difference == pytest.approx(-0.12, abs=2e-3) and fall.interval is not None and fall.interval[1] < 0
    assert fall.simultaneous_confidence == pytest.approx(1 - 0.05 / 4), "two arms, two classes"
    assert "synthetic finds fewer defective (recall: defective -1" in found.reason


def test_of_two_arms_that_help_the_one_that_loses_no_class_is_named() -> None:
    found = judged({"real": REAL, "synthetic": by(0.25, -0.1), "real+synthetic": by(0.04, 0.02)})
    assert found.headline == "helps" and found.arm == "real+synthetic"
    assert "real+synthetic - real" in found.reason and "synthetic finds fewer defective" in found.reason


def test_a_class_that_falls_within_its_interval_is_not_called_fewer() -> None:
    noisy = [[a + 0.2, b + e] for (a, b), e in zip(REAL, (-0.1, 0.05, -0.06, 0.04, -0.08), strict=True)]
    found = judged({"real": REAL, "synthetic": noisy})
    assert found.headline == "helps" and found.falls == ()


def test_on_even_classes_accuracy_decides_and_falls_are_still_named() -> None:
    labels = torch.arange(1000) % 2
    found = judged({"real": REAL, "synthetic": by(0.2, -0.12)}, labels)
    assert found.measure == "accuracy" and "balanced" not in found.reason
    assert found.headline == "helps, but finds fewer defective"


def test_where_arms_are_alike_a_class_is_seldom_called_fewer_and_help_seldom_claimed() -> None:
    rng, n, fewer, helped = np.random.default_rng(11), 300, 0, 0
    for _ in range(n):
        hard = rng.uniform(0.3, 0.9, len(DEMO))
        wobble = rng.uniform(-0.04, 0.04, (3, 3, 1))
        correct = {
            arm: torch.from_numpy(rng.uniform(size=(3, len(DEMO))) < hard + part)
            for arm, part in zip(("real", "synthetic", "real+synthetic"), wobble, strict=True)
        }
        found = verdict(
            {arm: hits.double().mean(1).tolist() for arm, hits in correct.items()}, correct=correct, labels=DEMO
        )
        fewer += bool(found.falls)
        helped += found.outcome == "helps"
    # Promised: at most 2.5 % each, both sides of 5 %; 3 standard errors of the count are allowed.
    most = 0.025 + 3 * (0.025 * 0.975 / n) ** 0.5
    assert fewer / n < most and helped / n < most


def test_many_classes_that_fall_are_counted_not_listed() -> None:
    labels = torch.arange(1500) % 6
    rates = [[0.9, 0.9, 0.9, 0.9, 0.1, 0.1]] * 3
    lost = [[0.7, 0.7, 0.7, 0.7, 0.9, 0.9]] * 3
    found = judged({"real": rates, "synthetic": lost}, labels, tuple("abcdef"))
    assert found.headline == "helps, but finds fewer a, b, c and 1 more"
    assert len(found.falls) == 4


def test_the_images_own_size_is_the_baseline_and_shrinking_them_is_judged_apart() -> None:
    labels = torch.arange(1000) % 2
    arms = {"real": REAL, "synthetic": by(0.1, 0.1), "real+synthetic": by(0.1, 0.1), OWN_SIZE: by(0.2, 0.2)}
    found = judged(arms, labels)
    assert found.outcome == "harms" and [c.baseline for c in found.comparisons] == [OWN_SIZE] * 2
    assert [c.arm for c in found.comparisons] == ["synthetic", "real+synthetic"], "real is no way to help"
    assert [(c.arm, c.baseline, c.outcome()) for c in found.beside] == [
        ("synthetic", "real", "helps"), ("real+synthetic", "real", "helps"),
    ]  # fmt: skip
    assert found.too_coarse and found.shrinking is not None
    assert found.shrinking.difference == pytest.approx(0.2) and found.shrinking.baseline == "real"
    fine = judged(arms | {OWN_SIZE: REAL}, labels)
    assert fine.outcome == "helps" and not fine.too_coarse
    del arms[OWN_SIZE]
    plain = judged(arms, labels)
    assert plain.outcome == "helps" and plain.beside == () and plain.shrinking is None and not plain.too_coarse


# --- before the work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "seeds"), [(torch.arange(400) % 2, 5), (DEMO, 3)])
def test_the_gain_that_can_be_seen_is_the_interval_that_such_arms_have(labels: Tensor, seeds: int) -> None:
    """Two arms: one of them alone is right on a fifth of the images, on half of these the same one at every seed."""
    rng, halves = np.random.default_rng(0), []
    n = len(labels)
    for _ in range(300):
        lasting, apart = rng.uniform(size=n) < 0.1, rng.uniform(size=(seeds, n)) < 1 / 9
        side = np.where(lasting, rng.uniform(size=n) < 0.5, rng.uniform(size=(seeds, n)) < 0.5)
        differ = lasting | apart
        ours, theirs = torch.from_numpy(differ & side), torch.from_numpy(differ & ~side)
        correct = {"real": theirs, "s": ours}
        stratified = labels if is_uneven(labels) else None
        accuracies = {arm: recalls(hits, labels, 2).mean(1).tolist() for arm, hits in correct.items()}
        c = compare("s", accuracies, correct=correct, labels=stratified, comparisons=2)
        assert c.interval is not None
        halves.append((c.interval[1] - c.interval[0]) / 2)
    # Its square is what the variances add up to.
    assert smallest_visible(labels, seeds) == pytest.approx(np.mean(np.square(halves)) ** 0.5, rel=0.05)


def test_more_images_and_more_seeds_see_more_and_two_seeds_nothing() -> None:
    labels = torch.arange(1000) % 2
    assert smallest_visible(labels, 2) == math.inf
    assert smallest_visible(labels, 3) > smallest_visible(labels, 5) > smallest_visible(labels, 10)
    assert smallest_visible(labels[:250], 5) == pytest.approx(2 * smallest_visible(labels, 5), rel=0.01)
    assert smallest_visible(labels, 5) < 0.05 < smallest_visible(labels[:200], 5)
    rare = torch.tensor([0] * 980 + [1] * 20)
    assert smallest_visible(rare, 5) > 2 * smallest_visible(labels, 5), "20 of a class are few"


def test_a_balanced_mean_has_the_degrees_of_freedom_of_its_classes() -> None:
    """Welch and Satterthwaite: (sum 1/n)^2 / sum(1/n^2 / (n - 1)); below, one image adds nothing, two images do."""
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    differences = torch.tensor([[1.0, 0.0, -1.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    variance, images = balanced_variance(differences, labels)
    assert images == pytest.approx((1 + 1 / 2 + 1 / 3) ** 2 / (1 / 4 / 1 + 1 / 9 / 2) + 1)
    # of each class the unbiased variance over its size, 1/2 / 2 and 1 / 3; of one image the largest there is, 1
    assert variance == pytest.approx((1 + 1 / 4 + 1 / 3) / 9)
