"""How well members are told: closed forms, scikit-learn's curve, coverage of the intervals, calibration."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from diffusion_inversion.measure.membership import calibrated, log_odds, told


def normal(count: int, seed: int, mean: float = 0.0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


@pytest.mark.parametrize("rounded", [False, True])
def test_area_and_true_positives_are_those_of_scikit_learns_curve(rounded: bool) -> None:
    members, others = normal(130, 1, 0.7), normal(230, 2)
    if rounded:  # ties
        members, others = members.round(), others.round()
    found = told(members, others, 0.03)
    truth, scores = [1] * 130 + [0] * 230, torch.cat([members, others])
    assert found.auc == pytest.approx(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found.true_positives == pytest.approx(max(true[false <= 5 / 230]))  # of 231, 6 are 3 %: 5 beside a new one
    assert found.false_positives == 0.03 < found.false_at_most
    assert found.auc_low < found.auc < found.auc_high and found.true_low <= found.true_positives <= found.true_high


def test_true_positives_by_hand() -> None:
    others = torch.arange(100.0)
    members = torch.tensor([99.5] * 7 + [98.5] * 5 + [0.0] * 8)
    assert told(members, others, 0.01).true_positives == 7 / 20  # above all of 100
    assert told(members, others, 0.02).true_positives == 12 / 20  # above all but one
    few = told(members + 200, others[:50], 0.01)  # 50 images hold no rate of 1 %
    assert (few.true_positives, few.false_positives) == (1.0, 1 / 51)


def test_what_is_known_by_heart_is_told_and_what_is_independent_is_not() -> None:
    by_heart = told(normal(50, 3, 100.0), normal(60, 4), 0.01)
    assert by_heart.auc == by_heart.true_positives == by_heart.auc_high == 1.0
    assert by_heart.auc_low == pytest.approx(0.025 ** (1 / 50))  # Clopper and Pearson's of 50 of 50
    independent = told(normal(500, 5), normal(500, 6), 0.01)
    assert abs(independent.auc - 0.5) < 0.05 and independent.auc_low < 0.5 < independent.auc_high
    assert independent.true_low < 0.01 < independent.true_high
    reverse = told(normal(50, 4), normal(60, 3, 100.0), 0.01)  # a wrong sign
    assert reverse.auc == reverse.true_positives == 0.0 and reverse.auc_low == 0.0


def test_area_of_two_normals_has_its_closed_form_and_intervals_cover_it() -> None:
    """Phi(d / sqrt 2); of 300 intervals at 95 % at least 273 cover what they speak of (binomial, 99.9 %)."""

    def above(threshold: float, mean: float) -> float:
        return 0.5 * (1 + math.erf((mean - threshold) / math.sqrt(2)))

    shift, area, positives, rates, false = 1.2, 0, 0, 0, 0.0
    for seed in range(300):
        others = normal(100, 2 * seed + 1)
        found = told(normal(60, 2 * seed, shift), others, 0.03)
        limit = float(others.sort(descending=True).values[2])
        area += found.auc_low <= above(0.0, shift / math.sqrt(2)) <= found.auc_high
        positives += found.true_low <= above(limit, shift) <= found.true_high
        rates += above(limit, 0.0) <= found.false_at_most
        false += above(limit, 0.0) / 300
    assert min(area, positives, rates) >= 273, (area, positives, rates)
    assert abs(false - 3 / 101) < 0.004, "the rate holds on average"


def test_too_few_and_broken_scores_are_refused() -> None:
    for members, others in ((normal(19, 0), normal(50, 1)), (normal(50, 0), normal(19, 1))):
        with pytest.raises(ValueError, match="at least 20 a side"):
            told(members, others, 0.01)
    with pytest.raises(ValueError, match="all finite"):
        told(torch.full((30,), torch.nan), normal(30, 0), 0.01)


def test_calibration_takes_off_how_hard_an_image_is() -> None:
    """Hardness hides membership; with references that do not know an image it is told again, whoever they know."""
    hard, known = normal(200, 7) * 10, torch.arange(200) < 100
    scores = hard + known
    noise, levels = 0.1 * normal(600, 8).reshape(3, 200), torch.tensor([[5.0], [-7.0], [0.0]])
    references = hard + levels + noise
    references[0, :50] = references[1, 30:60] = torch.nan  # those know images of the members
    less = calibrated(scores, references, ~known)
    assert told(scores[known], scores[~known], 0.01).auc < 0.6
    assert told(less[known], less[~known], 0.01).auc > 0.99
    nobody = torch.full((3, 200), torch.nan, dtype=torch.float64)
    nobody[:, 100:] = references[:, 100:]
    assert bool(calibrated(scores, nobody, ~known)[:100].isnan().all())


def test_log_odds_are_those_of_the_true_class() -> None:
    logits = normal(40, 9).reshape(10, 4) * 3
    labels = torch.arange(10) % 4
    p = logits.softmax(1)[torch.arange(10), labels]
    assert torch.allclose(log_odds(logits, labels), (p / (1 - p)).log())
    sure = log_odds(torch.tensor([[80.0, 0.0], [0.0, 80.0]]), torch.tensor([0, 0]))
    assert sure.tolist() == pytest.approx([80.0, -80.0])
