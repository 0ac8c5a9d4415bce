"""The judge of labels: it never saw what it judges, its answers are calibrated, and it finds planted wrong labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_inversion.train.fidelity import doubts, in_label, margin, replaced, rivals
from diffusion_inversion.train.folds import NEVER
from diffusion_inversion.train.judge import FALSE_ALARMS, Judge, cross_fitted, fitted_temperature

CLASSES, DIM = 4, 24


def clusters(labels: Tensor, seed: int, apart: float = 9.0) -> Tensor:
    """Features (N, 24) of images of these classes: unit noise around means that lie `apart` from each other."""
    stream = torch.Generator().manual_seed(seed)
    means = torch.eye(CLASSES, DIM) * apart / math.sqrt(2)
    return means[labels] + torch.randn(len(labels), DIM, generator=stream)


def sources(each: int = 20, apart: float = 9.0) -> tuple[Tensor, Tensor, list[int]]:
    """Real images: features, labels and folds."""
    labels = torch.arange(CLASSES * each) % CLASSES
    return clusters(labels, 1, apart), labels, [row // CLASSES % 5 for row in range(len(labels))]


def failed(judges: dict[int, Judge], features: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    """Which images (N,) bool, of sources in these folds, show another class than their label."""
    found = torch.zeros(len(features), dtype=torch.bool)
    for fold, judge in judges.items():
        rows = folds == fold
        found[rows] = doubts(judge.answers(features[rows]), judge.thresholds, labels[rows]) > judge.margin
    return found


@pytest.mark.parametrize("seed", range(3))
def test_of_a_toy_generator_the_wrong_labels_are_found(seed: int) -> None:
    """30 % of its images show another class than their source: recall and precision of at least .9 each."""
    real, labels, folds = sources()
    stream = torch.Generator().manual_seed(100 + seed)
    source = torch.arange(2000) % len(labels)
    wrong = torch.rand(len(source), generator=stream) < 0.3
    shift = torch.randint(1, CLASSES, (len(source),), generator=stream)
    shows = torch.where(wrong, (labels[source] + shift) % CLASSES, labels[source])
    variants = clusters(shows, 200 + seed)
    found = failed(cross_fitted(real, labels, folds, CLASSES), variants, labels[source], torch.tensor(folds)[source])
    assert (found & wrong).sum() / wrong.sum() >= 0.9
    assert (found & wrong).sum() / found.sum() >= 0.9


@pytest.mark.parametrize("apart", [9.0, 3.0, 1.0])
def test_a_clean_generator_loses_few(apart: float) -> None:
    """It shows its classes as the real images do: at most 5 in 100; where the judge is poor, up to twice that here."""
    real, labels, folds = sources(apart=apart)
    source = torch.arange(4000) % len(labels)
    judges, of_source = cross_fitted(real, labels, folds, CLASSES), torch.tensor(folds)[source]
    lost = failed(judges, clusters(labels[source], 300, apart), labels[source], of_source)
    assert lost.double().mean() <= (1 if apart > 5 else 2) * FALSE_ALARMS


def test_nothing_of_a_fold_has_a_part_in_its_judge() -> None:
    """Other pixels and other labels of a fold's images: its judge is the same to the bit, every other is not."""
    real, labels, folds = sources(10)
    own = torch.tensor(folds) == 2
    before = cross_fitted(real, labels, folds, CLASSES)
    after = cross_fitted(
        torch.where(own[:, None], -real, real), torch.where(own, (labels + 1) % CLASSES, labels), folds, CLASSES
    )
    probe = clusters(labels, 9)
    for fold, judge in before.items():
        same = torch.equal(judge.answers(probe), after[fold].answers(probe))
        same &= torch.equal(judge.thresholds, after[fold].thresholds)
        same &= (judge.temperature, judge.margin) == (after[fold].temperature, after[fold].margin)
        assert same == (fold == 2)


def test_thresholds_are_the_mean_confidence_of_images_that_a_head_never_saw() -> None:
    real, labels, folds = sources(10)
    found, fold = cross_fitted(real, labels, folds, CLASSES)[0], torch.tensor(folds)
    assert len(found.heads) == 4, "one for each other fold"
    own: dict[int, list[float]] = {label: [] for label in range(CLASSES)}
    for other, head in zip((1, 2, 3, 4), found.heads, strict=True):
        inside = (fold != 0) & (fold != other)
        assert torch.allclose(head.mean, real[inside].double().mean(0)), "it learned from the three other folds"
        confidences = (head.logits(real[fold == other]) / found.temperature).softmax(1)
        for row, label in zip(confidences, labels[fold == other].tolist(), strict=True):
            own[label].append(float(row[label]))
    assert found.thresholds.tolist() == pytest.approx([sum(own[label]) / len(own[label]) for label in range(CLASSES)])


def test_answers_are_the_mean_over_heads_and_zero_for_a_class_without_images() -> None:
    real, labels, folds = sources(10)
    found = cross_fitted(real, labels, folds, CLASSES + 1)[0]
    answers = found.answers(real)
    assert torch.allclose(answers.sum(1), torch.ones(len(real), dtype=torch.float64))
    assert (answers[:, CLASSES] == 0).all() and found.thresholds[CLASSES] == math.inf
    each = [(head.logits(real) / found.temperature).softmax(1) for head in found.heads]
    assert torch.allclose(answers[:, :CLASSES], torch.stack(each).mean(0))


def test_two_classes_have_the_logits_of_two() -> None:
    labels = torch.arange(40) % 2
    judges = cross_fitted(clusters(labels, 1), labels, [row // 2 % 5 for row in range(40)], 2)
    answers = judges[0].answers(clusters(labels, 2))
    assert (answers.argmax(1) == labels).double().mean() > 0.9
    assert (doubts(answers, judges[0].thresholds, labels) > 0).double().mean() < 0.1
    assert (doubts(answers, judges[0].thresholds, 1 - labels) > 0).double().mean() > 0.9


def test_a_class_of_too_few_sources_is_not_judged() -> None:
    """Of a class in two folds alone every head that leaves both out lacks it: it has no threshold, and cannot fail."""
    labels = torch.tensor([0, 1, 2] * 15 + [3, 3])
    folds = [row // 3 % 5 for row in range(45)] + [0, 1]
    judges = cross_fitted(clusters(labels, 1), labels, folds, CLASSES)
    assert all(judges[fold].thresholds[3] == math.inf for fold in (0, 1))
    answers = judges[0].answers(clusters(torch.tensor([0, 0]), 2))
    assert (doubts(answers, judges[0].thresholds, torch.tensor([3, 3])) == -math.inf).all()
    assert (doubts(answers, judges[0].thresholds, torch.tensor([1, 1])) > 0).any()
    assert cross_fitted(clusters(labels, 1), labels, [NEVER] * 47, CLASSES) == {}
    assert cross_fitted(clusters(labels, 1), labels * 0, folds, CLASSES) == {}, "one class is nothing to tell apart"


def test_temperature_lowers_the_loss_of_overconfident_logits_and_keeps_their_order() -> None:
    """Logits that were calibrated and then sharpened four times: the temperature is found again."""
    stream = torch.Generator().manual_seed(0)
    calibrated = 2 * torch.randn(20000, 5, generator=stream, dtype=torch.float64)
    labels = torch.multinomial(calibrated.softmax(1), 1, generator=stream)[:, 0]
    for factor in (4.0, 0.25):
        logits = factor * calibrated
        found = fitted_temperature(logits, labels)
        assert found == pytest.approx(factor, rel=0.05)
        assert F.cross_entropy(logits / found, labels) < F.cross_entropy(logits, labels)
        assert torch.equal((logits / found).argmax(1), logits.argmax(1))


def test_a_hold_out_without_errors_has_a_temperature_all_the_same() -> None:
    """The smoothed cross-entropy has its least value where p of the label is 1 - s + s / K, by closed form."""
    logits, labels = torch.tensor([[1.0, 0.0]] * 9), torch.zeros(9, dtype=torch.int64)
    p = 1 - 0.1 + 0.1 / 2
    assert fitted_temperature(logits, labels) == pytest.approx(1 / math.log(p / (1 - p)))


def test_a_doubt_compares_how_far_classes_are_above_what_is_usual_of_them() -> None:
    thresholds = torch.tensor([0.8, 0.3, 0.5]).double()
    answers = torch.tensor([[0.85, 0.10, 0.05], [0.60, 0.35, 0.05], [0.10, 0.30, 0.60]]).double()
    # p - t: [.05, -.2, -.45], [-.2, .05, -.45], [-.7, 0, .1]
    expected = {0: [-0.25, 0.25, 0.8], 1: [0.25, -0.25, 0.1], 2: [0.5, 0.5, -0.1]}
    for label, values in expected.items():
        found = doubts(answers, thresholds, torch.full((3,), label))
        assert found.tolist() == pytest.approx(values), "image 1 shows 1, although 0 is more likely"
    both = doubts(answers, thresholds, torch.full((3,), 0), torch.full((3,), 2))
    assert both.tolist() == pytest.approx([-0.25, 0.25, -0.1]), "it may show the class that it was blended from"
    unknown = torch.tensor([math.inf, 0.3, 0.5]).double()
    assert doubts(answers, unknown, torch.tensor([0, 0, 0])).tolist() == [-math.inf] * 3
    assert doubts(answers, unknown, torch.tensor([1, 1, 1])).tolist() == pytest.approx([-0.25, -0.5, 0.1])
    assert rivals(answers, torch.tensor([0, 0, 2])).tolist() == [1, 1, 1]


def test_the_margin_lets_few_through_and_too_few_images_set_none() -> None:
    """Of another draw from the same distribution: closed form (k / (N + 1)), and by simulation."""
    stream = torch.Generator().manual_seed(1)
    assert margin(torch.arange(1, 40.0), 0.05) == 38.0, "k = 2 of 39: the second largest"
    assert margin(torch.zeros(18), 0.05) == math.inf
    assert margin(-torch.ones(100), 0.05) == 0, "nobody fails who shows his own class most"
    draws = torch.randn(2000, 60, generator=stream)
    over = [float(draw[-1] > margin(draw[:-1], 0.05)) for draw in draws]
    assert sum(over) / 2000 == pytest.approx(3 / 60, abs=0.015)


def test_classes_keep_their_number_of_images() -> None:
    stream = torch.Generator().manual_seed(3)
    source = torch.randint(0, 12, (200,), generator=stream)
    labels, usable = (source % 3).tolist(), (torch.rand(200, generator=stream) > 0.4).tolist()
    rows = replaced(usable, labels, source.tolist())
    assert [labels[row] for row in rows] == labels
    assert all(rows[row] == row for row in range(200) if usable[row]) and all(usable[row] for row in rows)
    assert [int(source[row]) for row in rows] == source.tolist(), "of the same source, where it has any"


def test_what_is_left_out_is_replaced_in_turn_then_by_its_class_and_never_by_nothing() -> None:
    usable = [True, True, False, False, False, False, False]
    labels = [0, 0, 0, 0, 0, 0, 1]
    made_from = ["a", "a", "a", "a", "a", "b", "c"]
    assert replaced(usable, labels, made_from) == [0, 1, 0, 1, 0, 0, 6]


def test_a_blend_is_as_right_as_the_judge_finds_both_of_its_classes() -> None:
    answers = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.2, 0.3], [0.1, 0.2, 0.7]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    assert in_label(answers, labels).tolist() == [0.6, 0.5, 0.2]
    assert in_label(answers, labels, torch.tensor([1, 0, 2])).tolist() == pytest.approx([1.0, 0.5, 0.9])
