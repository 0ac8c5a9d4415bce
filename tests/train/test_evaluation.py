"""Rates against scikit-learn, intervals against SciPy, and a verdict whose sign can be trusted."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score
from torch import Tensor

from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.errors import DataError, DinvError, UsageError
from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.evaluation import calibration_error, compare, evaluate, predict, score
from diffusion_inversion.train.verdict import verdict

CLASSES = ("a", "b", "c", "d")
ROOT = Path(__file__).parents[2]


def some_images(n: int, size: int = 8) -> LabelledImages:
    generator = torch.Generator().manual_seed(n)
    ids = tuple(f"test/{i:06d}" for i in range(n))
    return LabelledImages(
        name="some",
        ids=ids,
        hashes=ids,
        labels=torch.randint(0, 3, (n,), generator=generator),
        class_names=CLASSES,
        images=torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator),
        native_size=size,
    )


def test_rates_by_hand() -> None:
    result = score(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 0, 3]), 4)
    assert result.n == 6
    assert result.accuracy == 3 / 6
    assert result.per_class == (2 / 3, 1 / 2, 0.0, None), "no image is of class d"
    assert result.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # Rows are the true classes: the image of class c was taken for d.
    assert result.confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_rates_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    result = score(torch.from_numpy(labels), torch.from_numpy(predictions), 4)
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert result.per_class == pytest.approx(tuple(recall_score(labels, predictions, average=None)))
    assert result.accuracy == pytest.approx((labels == predictions).mean())


def test_evaluate_measures_the_classifier_in_eval_mode() -> None:
    images = some_images(30)
    torch.manual_seed(0)
    classifier = Classifier("resnet20", CLASSES, 8)
    classifier(images.images)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    whole, pieces = evaluate(classifier, images), evaluate(classifier, images, batch_size=7)
    assert classifier.training, "its mode is given back"
    assert all(torch.equal(before[k], v) for k, v in classifier.state_dict().items()), "batch statistics stay"
    assert torch.equal(whole.predictions, pieces.predictions)
    with torch.no_grad():
        probabilities = classifier.eval()(images.images).softmax(1)
    assert torch.equal(whole.predictions, probabilities.argmax(1))
    assert whole.confidences is not None
    assert whole.confidences.tolist() == pytest.approx(probabilities.amax(1).tolist(), abs=5.1e-5)
    assert whole.ece == calibration_error(whole.confidences, whole.predictions == images.labels)
    assert whole.accuracy == (whole.predictions == images.labels).double().mean().item()


def scaled(factor: float) -> tuple[Classifier, LabelledImages]:
    """A classifier of two classes whose logits are `factor` times those of a random one, and images of both."""
    images = some_images(60)
    images = replace(images, labels=images.labels % 2, class_names=("a", "b"))
    torch.manual_seed(0)
    classifier = Classifier("resnet20", ("a", "b"), 8).eval()
    with torch.no_grad():
        for parameter in classifier.network.get_submodule("fc").parameters():
            parameter.mul_(factor)
    return classifier, images


def test_area_under_roc_is_of_what_the_classifier_says_before_it_is_rounded() -> None:
    classifier, images = scaled(1e6)
    with torch.no_grad():
        margins = classifier(images.images).double().diff(dim=1)[:, 0]
    found = evaluate(classifier, images)
    assert found.confidences is not None and (found.confidences == 1).all(), "saturated: rounded, all of them tie"
    assert found.auroc == pytest.approx(roc_auc_score(images.labels, margins))
    assert found.auroc != score(images.labels, found.predictions, 2, found.confidences).auroc
    mild = evaluate(scaled(1.0)[0], images)
    assert mild.auroc == pytest.approx(found.auroc), "the order of images is the same"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_no_answers(bad: float) -> None:
    classifier, images = scaled(bad)
    for measure in (predict, evaluate):
        with pytest.raises(DinvError, match=r"some: .* 60 of 60 images are not finite.*diverged.*--learning-rate"):
            measure(classifier, images)


def test_calibration_error_by_hand() -> None:
    # 15 bins of 1/15: 0.62 and 0.65 share [9/15, 10/15), 0.97 is alone in the last one, and so is 1.
    confidences = torch.tensor([0.62, 0.65, 0.97, 1.0], dtype=torch.float64)
    correct = torch.tensor([True, False, False, True])
    assert calibration_error(confidences, correct) == pytest.approx((abs(1 - 1.27) + abs(1 - 1.97)) / 4)
    sure = torch.ones(10, dtype=torch.float64)
    assert calibration_error(sure, torch.ones(10, dtype=torch.bool)) == 0
    assert calibration_error(sure, torch.zeros(10, dtype=torch.bool)) == 1


def test_calibration_error_equals_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    generator = torch.Generator().manual_seed(0)
    for sharpness in (0.5, 2.0, 8.0):
        probabilities = (sharpness * torch.randn(500, 4, generator=generator)).softmax(1)
        labels = torch.multinomial(probabilities.sqrt(), 1, generator=generator)[:, 0]
        ours = calibration_error(probabilities.amax(1), probabilities.argmax(1) == labels)
        theirs = multiclass_calibration_error(probabilities, labels, num_classes=4, n_bins=15, norm="l1")
        assert ours == pytest.approx(theirs.item(), abs=1e-6) and ours > 0.01


def test_evaluate_refuses_what_does_not_fit() -> None:
    images = some_images(5)
    with pytest.raises(DataError, match="same order"):
        evaluate(Classifier("resnet20", CLASSES[::-1], 8), images)
    with pytest.raises(UsageError, match="resized"):
        evaluate(Classifier("resnet20", CLASSES, 16), images)
    with pytest.raises(DataError, match="no images"):
        evaluate(Classifier("resnet20", CLASSES, 8), images.subset([]))
    with pytest.raises(DataError, match="0 labels"):
        score(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 2)
    with pytest.raises(DataError, match="2 confidences"):
        score(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 2, torch.ones(2))


def test_interval_over_units_equals_scipys_paired_t_test() -> None:
    ours, theirs = [0.61, 0.64, 0.60, 0.66, 0.63], [0.58, 0.60, 0.59, 0.60, 0.62]
    c = compare("synthetic", {"real": theirs, "synthetic": ours})
    reference = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert c.difference == pytest.approx(0.03)
    assert c.interval == pytest.approx((reference.low, reference.high)) and c.test_error is None
    wider = compare("synthetic", {"real": theirs, "synthetic": ours}, comparisons=2)
    reference = stats.ttest_rel(ours, theirs).confidence_interval(0.975)
    assert wider.interval == pytest.approx((reference.low, reference.high)), "Bonferroni"


def test_test_error_is_mcnemars_with_one_prediction_per_image() -> None:
    # b images only the arm recognises, c only the baseline: Var(b - c) / n^2 = (b + c - (b - c)^2 / n) / n^2.
    n, b, c = 500, 40, 25
    arm, base = torch.zeros(3, n, dtype=torch.bool), torch.zeros(3, n, dtype=torch.bool)
    arm[:, :b] = True
    base[:, b : b + c] = True
    correct = {"real": base, "synthetic": arm}
    result = compare("synthetic", accuracies(correct), correct=correct)
    assert result.unit_error == 0
    assert result.difference == pytest.approx((b - c) / n)
    assert result.test_error == pytest.approx(((b + c - (b - c) ** 2 / n) / n / (n - 1)) ** 0.5)
    half = stats.t.ppf(0.975, n - 1) * result.test_error
    assert result.interval == pytest.approx((result.difference - half, result.difference + half))


def test_each_error_has_its_own_quantile() -> None:
    correct = simulated(np.random.default_rng(3), seeds=4, n_test=200, gain=0.05, spread=0.03)
    c = compare("synthetic", accuracies(correct), correct=correct)
    assert c.unit_error and c.test_error and c.interval
    half = ((stats.t.ppf(0.975, 3) * c.unit_error) ** 2 + (stats.t.ppf(0.975, 199) * c.test_error) ** 2) ** 0.5
    assert c.interval == pytest.approx((c.difference - half, c.difference + half))
    per_image = (correct["synthetic"].double() - correct["real"].double()).mean(0)
    assert c.test_error == pytest.approx(float(per_image.std()) / 200**0.5)


def test_a_comparison_says_at_which_levels_and_from_what_it_was_made() -> None:
    hits = {"real": torch.tensor([[1, 0, 1, 0]] * 3).bool(), "both": torch.tensor([[1, 1, 1, 0]] * 3).bool()}
    found = compare("both", accuracies(hits), correct=hits, comparisons=2)
    assert (found.simultaneous_confidence, found.unit) == (pytest.approx(0.975), "seeds")
    assert found.test_images == pytest.approx(4)
    assert compare("both", accuracies(hits)).test_images is None


def test_units_with_test_images_of_their_own_count_each_image_by_its_share() -> None:
    rng = np.random.default_rng(5)
    whole = simulated(rng, seeds=3, n_test=120, gain=0.05, spread=0.03)
    apart = {arm: torch.full((3, 360), torch.nan, dtype=torch.float64) for arm in whole}
    for arm, hits in whole.items():
        for unit in range(3):
            apart[arm][unit, 120 * unit : 120 * (unit + 1)] = hits[unit].double()
    c = compare("synthetic", accuracies(whole), correct=apart, unit="replicates")
    # No image is shared: 360 images with a weight of 1/360 each.
    d = torch.cat([whole["synthetic"][unit].double() - whole["real"][unit].double() for unit in range(3)])
    assert c.test_error == pytest.approx(float(d.std()) / 360**0.5)
    assert "(n=3 replicates)" in c.summary
    half = ((stats.t.ppf(0.975, 2) * (c.unit_error or 0)) ** 2 + (stats.t.ppf(0.975, 359) * c.test_error) ** 2) ** 0.5
    assert c.interval == pytest.approx((c.difference - half, c.difference + half))
    # Images that nobody was tested on change nothing; shared ones give what the whole matrix gives.
    padded = {arm: torch.cat([hits.double(), torch.full((3, 7), torch.nan)], 1) for arm, hits in whole.items()}
    shared, plain = (compare("synthetic", accuracies(whole), correct=given) for given in (padded, whole))
    assert shared.interval == pytest.approx(plain.interval)


def test_intervals_never_leave_what_a_difference_can_be() -> None:
    c = compare("synthetic", {"real": [0.1, 0.9], "synthetic": [0.9, 0.6]})
    assert c.interval == (-1.0, 1.0)
    assert c.unit_error == pytest.approx(0.55), "the error is not cut"


def accuracies(correct: dict[str, Tensor]) -> dict[str, list[float]]:
    return {arm: hits.double().mean(1).tolist() for arm, hits in correct.items()}


def simulated(
    rng: np.random.Generator, *, seeds: int, n_test: int, gain: float, spread: float, arm: str = "synthetic"
) -> dict[str, Tensor]:
    """Draw test images of differing difficulty, and classifiers whose quality differs between seeds.

    The arm's accuracy over all images and seeds exceeds the baseline's by `gain`; what it gains differs from image to
    image.
    """
    difficulty = rng.uniform(0.2, 0.7, n_test)
    gains = gain + rng.uniform(-0.1, 0.1, n_test)
    base_seed, arm_seed = rng.uniform(-spread, spread, (2, seeds, 1))
    base = rng.uniform(size=(seeds, n_test)) < difficulty + base_seed
    ours = rng.uniform(size=(seeds, n_test)) < difficulty + gains + arm_seed
    return {"real": torch.from_numpy(base), arm: torch.from_numpy(ours)}


@pytest.mark.parametrize(("seeds", "n_test", "spread"), [(3, 300, 0.02), (5, 1000, 0.05)])
def test_intervals_hold_the_true_difference_as_often_as_they_say(seeds: int, n_test: int, spread: float) -> None:
    rng, n, gain = np.random.default_rng(7), 400, 0.05
    held = 0
    for _ in range(n):
        correct = simulated(rng, seeds=seeds, n_test=n_test, gain=gain, spread=spread)
        c = compare("synthetic", accuracies(correct), correct=correct)
        assert c.interval is not None
        held += c.interval[0] < gain < c.interval[1]
    # 95 % promised; 3 standard errors of the count itself below it are allowed.
    assert held / n > 0.95 - 3 * (0.95 * 0.05 / n) ** 0.5


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("ratio", [1 / 16, 1 / 4, 1, 4, 16])
def test_intervals_of_few_units_are_wide_enough_whichever_error_is_the_larger(n: int, ratio: float) -> None:
    """In closed form: the variance is that of the units plus that of the images, each estimated (97.5 %, two arms)."""
    bench = runpy.run_path(str(ROOT / "benchmarks" / "interval_coverage.py"))
    coverage, null, power = bench["closed"](bench["used"], n, ratio)
    assert coverage > 0.975 - 0.001 and null < 0.025 + 0.001  # 3 standard errors of the simulation itself
    before = bench["closed"](bench["welch"], n, ratio)
    assert before[0] < coverage
    assert power > bench["closed"](bench["pooled"], n, ratio)[2], "the images' error is not widened by few units"
    assert (n, ratio) != (3, 16) or before[1] > 0.05, "the fault that this replaces"


def test_ignoring_the_test_sample_would_promise_too_much() -> None:
    # Seeds that agree on every image: all the uncertainty is in which images were tested.
    rng, n, held = np.random.default_rng(1), 200, {"seeds": 0, "both": 0}
    for _ in range(n):
        base = torch.from_numpy(rng.uniform(size=400) < 0.5).repeat(3, 1)
        ours = torch.from_numpy(rng.uniform(size=400) < 0.55).repeat(3, 1)
        correct = {"real": base, "synthetic": ours}
        for which, hits in (("seeds", None), ("both", correct)):
            c = compare("synthetic", accuracies(correct), correct=hits)
            assert c.interval
            held[which] += c.interval[0] < 0.05 < c.interval[1]
    assert held["seeds"] < 0.2 * n and held["both"] > 0.9 * n


REAL = [0.600, 0.603, 0.598, 0.601, 0.602]


def shifted(by: float, noise: Sequence[float] = (0.001, -0.001, 0.0, 0.001, -0.001)) -> list[float]:
    return [r + by + e for r, e in zip(REAL, noise, strict=True)]


def test_a_clear_gain_helps_and_swapping_the_arms_flips_it() -> None:
    gain = verdict({"real": REAL, "synthetic": shifted(0.05)})
    loss = verdict({"real": shifted(0.05), "synthetic": REAL})
    assert (gain.outcome, loss.outcome) == ("helps", "harms")
    ours, theirs = gain.comparisons[0], loss.comparisons[0]
    assert ours.difference == pytest.approx(0.05) and theirs.difference == pytest.approx(-0.05)
    assert (
        ours.interval and theirs.interval and ours.interval == pytest.approx((-theirs.interval[1], -theirs.interval[0]))
    )
    assert "+5.00 points" in gain.reason and "-5.00 points" in loss.reason


def test_one_arm_that_helps_is_enough_and_is_the_one_named() -> None:
    result = verdict({"synthetic": shifted(-0.1), "real": REAL, "real+synthetic": shifted(0.02)})
    assert result.outcome == "helps" and "real+synthetic - real" in result.reason
    assert [c.arm for c in result.comparisons] == ["synthetic", "real+synthetic"]
    assert all(c.simultaneous_confidence == pytest.approx(0.975) for c in result.comparisons)


def test_no_help_is_claimed_only_when_every_gain_worth_having_is_excluded() -> None:
    assert verdict({"real": REAL, "synthetic": shifted(0.0)}).outcome == "does not help"
    assert (
        verdict({"real": REAL, "synthetic": shifted(0.0), "real+synthetic": shifted(-0.1)}).outcome == "does not help"
    )
    arms = {"real": REAL, "synthetic": shifted(-0.1), "real+synthetic": shifted(0.0, (0.02, -0.02, 0.01, -0.02, 0.01))}
    assert verdict(arms).outcome == "not enough evidence", "the second arm is undecided"
    outcomes = set()
    for spread in (0.001, 0.003, 0.004, 0.005, 0.01):
        found = verdict({"real": REAL, "synthetic": shifted(0.0, (spread, -spread, 0.0, spread, -spread))})
        (compared,) = found.comparisons
        assert compared.interval is not None and compared.interval[0] < 0
        expected = "does not help" if compared.interval[1] < 0.005 else "not enough evidence"
        assert found.outcome == compared.outcome() == expected
        outcomes.add(expected)
    assert len(outcomes) == 2, "the bound lies among them"


def test_harm_is_claimed_only_when_every_arm_harms_and_each_arm_has_its_own_outcome() -> None:
    wide = (0.02, -0.02, 0.01, -0.02, 0.01)
    for other, expected in (
        (shifted(-0.02), "harms"), (shifted(0.0), "does not help"), (shifted(0.0, wide), "not enough evidence"),
        (shifted(0.02), "helps"),
    ):  # fmt: skip
        found = verdict({"real": REAL, "synthetic": shifted(-0.1), "real+synthetic": other})
        assert found.outcome == expected
        assert [c.outcome() for c in found.comparisons] == ["harms", expected]
    harm = verdict({"real": REAL, "synthetic": shifted(-0.1), "real+synthetic": shifted(-0.02)})
    assert "below zero for every arm: real+synthetic - real: -2.00 points" in harm.reason


def test_two_comparisons_need_more_than_one() -> None:
    # A gain that one comparison shows at 95 % and a family of two does not.
    gain = shifted(0.011, (0.009, -0.009, 0.006, -0.003, -0.003))
    assert verdict({"real": REAL, "synthetic": gain}).outcome == "helps"
    result = verdict({"real": REAL, "synthetic": gain, "real+synthetic": gain})
    assert result.outcome == "not enough evidence"


def test_a_few_test_images_are_not_enough_however_the_seeds_agree() -> None:
    right, wrong = torch.ones(3, 20, dtype=torch.bool), torch.ones(3, 20, dtype=torch.bool)
    wrong[:, :1] = False
    for correct in ({"real": wrong, "synthetic": right}, {"real": right, "synthetic": right}):
        assert verdict(accuracies(correct), correct=correct).outcome == "not enough evidence"
    many = torch.ones(3, 2000, dtype=torch.bool)
    correct = {"real": many, "synthetic": many}
    assert verdict(accuracies(correct), correct=correct).outcome == "does not help"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_never_enough(seeds: int) -> None:
    result = verdict({"real": REAL[:seeds], "synthetic": shifted(0.3)[:seeds]})
    assert result.outcome == "not enough evidence" and "3 seeds" in result.reason
    assert result.comparisons[0].difference == pytest.approx(0.3, abs=2e-3), "what was measured is still shown"
    assert (result.comparisons[0].interval is None) == (seeds == 1)


def test_without_two_arms_there_is_nothing_to_compare() -> None:
    for arms in ({"real": REAL}, {"synthetic": REAL}, {}):
        assert verdict(arms).outcome == "not enough evidence"


def test_unpaired_input_is_refused() -> None:
    with pytest.raises(UsageError, match="paired"):
        verdict({"real": REAL, "synthetic": REAL[:3]})
    with pytest.raises(UsageError, match="synthetic"):
        compare("synthetic", {"real": REAL})
    hits = torch.ones(5, 10, dtype=torch.bool)
    with pytest.raises(UsageError, match="needed"):
        verdict({"real": REAL, "synthetic": REAL}, correct={"real": hits})
    with pytest.raises(UsageError, match="5 seeds"):
        verdict({"real": REAL, "synthetic": REAL}, correct={"real": hits, "synthetic": hits[:, :9]})


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=3, max_size=6),
    st.permutations(["real", "synthetic", "real+synthetic"]),
)
def test_a_verdict_does_not_depend_on_the_order_of_seeds_or_arms(
    rows: list[tuple[float, ...]], order: list[str]
) -> None:
    arms = dict(zip(("real", "synthetic", "real+synthetic"), map(list, zip(*rows, strict=True)), strict=True))
    shuffled = {name: arms[name][::-1] for name in order}
    first, second = verdict(arms), verdict(shuffled)
    intervals = [{c.arm: pytest.approx(c.interval, abs=1e-9) for c in v.comparisons} for v in (first, second)]
    assert {c.arm: c.interval for c in second.comparisons} == intervals[0]
    bounds = [b for c in first.comparisons if c.interval for b in c.interval]
    if all(min(abs(b), abs(b - 0.005)) > 1e-9 for b in bounds):
        assert first.outcome == second.outcome
