"""What a growing set gets, and what the power law says that more would bring: planted cases and closed forms."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_toys import toy

from diffusion_inversion.train.choosing import Folds, Material
from diffusion_inversion.train.growing import at_one_rate, best, entropy, errors_of, shares
from diffusion_inversion.train.power_law import Gain, expected_gain, fit, sentence

SIZES = [20, 40, 80, 160, 320, 640, 1280]


@pytest.mark.parametrize("exponent", [-0.2, -0.5, -1.0])
@pytest.mark.parametrize("curvature", [0.0, -0.1, 0.08])
def test_it_recovers_planted_exponents(exponent: float, curvature: float) -> None:
    """A law with its bend at 160 images: level, exponent and curvature are found, and what lies beyond the data."""

    def planted(count: float) -> float:
        x = math.log(count / 160)
        return 0.3 * math.exp(exponent * x + curvature * min(x, 0.0) ** 2)

    law = fit(SIZES, [planted(count) for count in SIZES])
    assert law.slope == pytest.approx(exponent, abs=1e-6)
    assert law.error(20_000) == pytest.approx(planted(20_000), rel=1e-5)
    if curvature:
        assert (law.bend, law.curvature) == (pytest.approx(160), pytest.approx(curvature))


def test_noise_moves_the_exponent_little() -> None:
    stream = np.random.default_rng(0)
    found = []
    for _ in range(50):
        errors = [0.4 * (count / 20) ** -0.4 * math.exp(stream.normal(0, 0.03)) for count in SIZES]
        found.append(fit(SIZES, errors).slope)
    assert np.mean(found) == pytest.approx(-0.4, abs=0.03) and np.std(found) < 0.1


def test_few_sizes_are_a_straight_line_and_more_images_never_harm() -> None:
    straight = fit([10, 20, 40], [0.4, 0.2, 0.1])
    assert straight.curvature == 0 and straight.slope == pytest.approx(-1)
    assert straight.error(80) == pytest.approx(0.05)
    assert fit([10, 20, 40], [0.1, 0.2, 0.4]).slope == 0, "a rise is taken for none"
    flat = fit([10], [0.3])
    assert flat.error(1000) == pytest.approx(0.3)
    assert fit([10, 20], [0.9, 0.5]).error(1) <= 1


def test_one_size_says_nothing_of_more_images() -> None:
    correct = np.array([[True, False, True], [True, True, True]])
    assert expected_gain([20], correct[:1], 2) is None and expected_gain([20, 20], correct, 2) is None
    gain = expected_gain([10, 20], correct, 2)
    assert gain is not None and gain.gain > 0
    unknown = "what more real images would bring is not known: too few to leave some out"
    assert sentence(None, None, 2) == unknown
    alone = sentence(None, gain, 2)
    assert alone.startswith("2 times as many synthetic images would bring +") and unknown in alone
    assert sentence(gain, gain, 2).startswith("2 times as many real images would bring +")


def test_the_interval_holds_the_planted_gain() -> None:
    """Of 40 drawn sets of 300 held-out images, the 95 % interval holds the planted gain in most."""
    stream = np.random.default_rng(1)
    errors = np.array([0.5 * (count / 20) ** -0.5 for count in SIZES[:4]])
    planted = errors[-1] * (1 - 2**-0.5)
    held = 0
    for draw in range(10):
        luck = stream.random(300)
        correct = np.stack([luck >= error for error in errors])
        found = expected_gain(SIZES[:4], correct, 2.0, seed=draw)
        held += found.low <= planted <= found.high
        assert found.low <= found.gain <= found.high
    assert held >= 8
    text = sentence(Gain(0.02, 0.01, 0.03), Gain(0.0, -0.001, 0.004), 2)
    assert "2 times as many real images would bring +2.0 points [+1.0, +3.0], 2 times as many synthetic" in text


def test_the_weakest_class_gets_the_most() -> None:
    assert shares([0.4, 0.1, 0.0], 10) == [8, 2, 0]
    assert shares([0.0, 0.0], 5) in ([3, 2], [2, 3])
    assert sum(shares([0.31, 0.27, 0.11, 0.05], 17)) == 17
    correct = torch.tensor([True, False, False, True, True, True])
    found = errors_of(correct, torch.tensor([0, 0, 0, 1, 1, 1]), 3)
    assert found == pytest.approx([2.5 / 4, 0.5 / 4, 3 / 8]), "what no fold holds out has the mean of the others"
    assert errors_of(correct[:0], torch.tensor([], dtype=torch.int64), 2) == [0, 0]


def test_a_class_that_no_fold_holds_out_gets_its_share() -> None:
    """A class of one source, or of one picture, stays in training: nothing measures it, and it is not starved."""
    correct = torch.tensor([True] * 9 + [False])
    found = errors_of(correct, torch.tensor([0] * 5 + [2] * 5), 3)
    assert found[0] < found[1] < found[2]
    few, rare, weak = shares(found, 30)
    assert rare == 10 and few < rare < weak and few + rare + weak == 30


def test_the_least_clear_that_keep_their_label_are_taken() -> None:
    even = entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]]))
    assert even.tolist() == pytest.approx([math.log(2), 0.0, -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))])
    kept, doubt = [True, True, False, True, True, False], [0.1, 0.6, 0.69, 0.3, 0.2, 0.5]
    assert best(kept, doubt, [0, 0, 0, 0, 1, 1], [2, 1]) == [1, 3, 4]
    assert best(kept, doubt, [0, 0, 0, 0, 1, 1], [4, 2]) == [0, 1, 2, 3, 4, 5], "the number of a class is kept"
    assert best(kept, doubt, [0, 0, 0, 0, 1, 1], [0, 9]) == [4, 5]


def planted(count: int, variants: int) -> tuple[Folds, Material, list[int]]:
    """Some variants of each of `count` real images, each with a partner of its class at random; rows of the sources."""
    real = toy(count, 0)
    stream = np.random.default_rng(0)
    labels = real.labels.numpy()
    origins = np.repeat(np.arange(count), variants).tolist()
    partners = [int(stream.choice(np.flatnonzero(labels == labels[row]))) for row in origins]
    synthetic = toy(len(origins), 1, name="made")
    made = replace(synthetic, labels=real.labels[torch.tensor(origins)])
    return (
        Folds(Path(), real, "cpu"),
        Material(made, [(real.ids[one], real.ids[other]) for one, other in zip(origins, partners, strict=True)]),
        origins,
    )


def test_each_size_has_as_many_variants_of_a_source() -> None:
    """Of a share that share of the partners is there: without thinning the law of real images has both slopes."""
    folds, made, origins = planted(240, 10)
    labels = folds.real.labels.tolist()
    parts = [part for share in (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1) if (part := folds.part(made, 2, share)) is not None]
    found = at_one_rate(parts, labels, origins, made.synthetic.ids)
    assert len(found) == 5 and found[0] == parts[0] and found == at_one_rate(parts, labels, origins, made.synthetic.ids)
    for label in range(3):
        real, before, after = (
            [sum(labels[row] == label for row in rows) for rows in each]
            for each in (
                [part.training for part in found],
                [[origins[row] for row in part.synthetic] for part in parts],
                [[origins[row] for row in part.synthetic] for part in found],
            )
        )
        rate = after[0] / real[0]
        assert rate > 0 and before[-1] / real[-1] > 3 * rate, "which partners that are left out lower"
        assert after == [round(after[0] * many / real[0]) for many in real]
    for smaller, larger, whole in zip(found, found[1:], parts[1:], strict=False):
        assert {*smaller.synthetic} < {*larger.synthetic} < {*whole.synthetic} and larger.training == whole.training
    # What is added goes to the sources that have fewest.
    _, all_at_once = at_one_rate([parts[0], parts[-1]], labels, origins, made.synthetic.ids)
    each = Counter(origins[row] for row in all_at_once.synthetic)
    for label in range(3):
        new = [each[row] for row in {*parts[-1].training} - {*parts[0].training} if labels[row] == label]
        assert max(new) - min(new) <= 1


def test_what_has_no_partner_stays_whole() -> None:
    """Every variant of a source is there where the source is: nothing is thinned."""
    folds, made, origins = planted(60, 3)
    alone = Material(made.synthetic, [(folds.real.ids[row],) for row in origins])
    parts = [part for share in (1 / 4, 1) if (part := folds.part(alone, 0, share)) is not None]
    assert at_one_rate(parts, folds.real.labels.tolist(), origins, alone.synthetic.ids) == parts
