"""Groups are dealt whole, near the shares of every class: bounds, local optimality, scikit-learn beside it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from diffusion_inversion.data.dealing import FREE, deal

Counts = NDArray[np.int64]
SHARES = st.sampled_from([(0.8, 0.2), (0.5, 0.5), (0.25, 0.25, 0.25, 0.25), (0.5, 0.25, 0.25)])


@st.composite
def counts_of_groups(draw: st.DrawFn, classes: int | None = None) -> Counts:
    groups, classes = draw(st.integers(2, 14)), classes or draw(st.integers(1, 4))
    row = st.lists(st.integers(0, 9), min_size=classes, max_size=classes).filter(any)
    return np.array(draw(st.lists(row, min_size=groups, max_size=groups)), np.int64)


def distance(counts: Counts, part: Counts, shares: tuple[float, ...]) -> Fraction:
    """The sum that `deal` makes small, by its definition and without rounding."""
    total = Fraction(0)
    for of_class in counts.T:
        size = int(of_class.sum())
        for number, share in enumerate(shares):
            wanted = Fraction(share).limit_denominator(1000) * size
            dealt = int(of_class[part == number].sum())
            total += (dealt - wanted) ** 2 / (wanted * size) if size else 0
    return total


def in_one_part(counts: Counts, part: Counts) -> int:
    """Classes of several groups that lie in one part."""
    having = [np.flatnonzero(of_class) for of_class in counts.T]
    return sum(len(groups) > 1 and len({*part[groups].tolist()}) == 1 for groups in having)


@given(counts_of_groups(), SHARES, st.data())
def test_no_single_group_lies_better_in_another_part(
    counts: Counts, shares: tuple[float, ...], data: st.DataObject
) -> None:
    places = st.sampled_from([FREE, FREE, *range(len(shares))])
    kept = np.array(data.draw(st.lists(places, min_size=len(counts), max_size=len(counts))))
    part = deal(counts, shares, kept)
    assert (part[kept != FREE] == kept[kept != FREE]).all()
    assert {*part.tolist()} <= {*range(len(shares))}
    now = (in_one_part(counts, part), distance(counts, part, shares))
    for group in np.flatnonzero(kept == FREE):
        for number in range(len(shares)):
            moved = part.copy()
            moved[group] = number
            then = (in_one_part(counts, moved), distance(counts, moved, shares) + Fraction(1, 10**6))
            assert then >= now


@given(counts_of_groups(classes=1), st.sampled_from([0.1, 0.2, 0.4, 0.5]))
def test_two_parts_of_one_class_miss_their_shares_by_half_a_group(counts: Counts, share: float) -> None:
    part = deal(counts, (1 - share, share))
    held = counts[part == 1].sum()
    only_one = min((part == 0).sum(), (part == 1).sum()) == 1  # both have one at least, whatever its size
    assert only_one or abs(held - share * counts.sum()) <= counts.max() / 2 + 1e-6


@given(counts_of_groups(classes=1), st.integers(2, 5))
def test_equal_parts_of_one_class_differ_by_a_group(counts: Counts, parts: int) -> None:
    part = deal(counts, [1 / parts] * parts)
    sizes = [counts[part == number].sum() for number in range(parts)]
    assert len(counts) == 2 or max(sizes) - min(sizes) <= counts.max()


@given(st.integers(2, 30), st.integers(1, 4))
def test_groups_of_one_image_each_are_stratified_to_the_image(each: int, classes: int) -> None:
    counts = np.tile(np.eye(classes, dtype=np.int64), (each, 1))
    part = deal(counts, (0.8, 0.2))
    held = counts[part == 1].sum(0)
    assert (held == max(round(0.2 * each), 1)).all() or (abs(held - 0.2 * each) <= 0.5).all()


@pytest.mark.parametrize(("groups", "classes"), [(30, 2), (60, 5), (200, 10)])
def test_folds_are_as_even_as_those_of_scikit_learn(groups: int, classes: int) -> None:
    ours, theirs = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        sizes = rng.geometric(0.08, groups)
        leaning = rng.dirichlet([0.5] * classes, groups)
        counts = np.stack([rng.multinomial(size, own) for size, own in zip(sizes, leaning, strict=True)])
        counts = counts[np.argsort(-counts.sum(1), kind="stable")]
        shares = (0.2,) * 5
        ours.append(float(distance(counts, deal(counts, shares), shares)))
        labels = np.concatenate([np.repeat(np.arange(classes), row) for row in counts])
        of = np.repeat(np.arange(groups), counts.sum(1))
        part = np.empty(groups, np.int64)
        for number, (_, held) in enumerate(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(of, labels, of)):
            part[of[held]] = number
        theirs.append(float(distance(counts, part, shares)))
    assert np.mean(ours) < np.mean(theirs) and sum(np.array(ours) <= np.array(theirs)) >= 9


def test_a_class_that_can_be_in_both_parts_is() -> None:
    counts = np.array([[30, 0], [30, 0], [0, 30], [0, 2]])
    part = deal(counts, (0.9, 0.1))
    assert in_one_part(counts, part) == 0


def test_classes_that_no_one_has_play_no_part() -> None:
    counts = np.array([[3, 0], [4, 0], [2, 0]])
    assert (deal(counts, (0.5, 0.5)) == deal(counts[:, :1], (0.5, 0.5))).all()


def test_many_groups_take_seconds() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, (5000, 10)) + np.eye(10, dtype=np.int64)[rng.integers(0, 10, 5000)]
    part = deal(counts, (0.8, 0.2))
    held = counts[part == 1].sum(0) / counts.sum(0)
    assert abs(held - 0.2).max() < 0.002
