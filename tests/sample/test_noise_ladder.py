"""The bisection that finds how much noise an image bears, and the ladder it goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product

import pytest
import torch

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.sample.strengths import LADDER, bisect, of_source, strength_at


def rounds_of(limits: Sequence[Sequence[bool]]) -> tuple[list[int], int]:
    """What bisecting items that pass so at each level gives, and in how many rounds."""
    asked = 0

    def passes(levels: list[int]) -> list[bool]:
        nonlocal asked
        asked += 1
        return [limit[level] for limit, level in zip(limits, levels, strict=True)]

    return bisect(len(limits), len(limits[0]), passes), asked


@pytest.mark.parametrize("levels", [2, 5, 8, 11, 16])
def test_it_ends_at_the_planted_limit_of_every_item(levels: int) -> None:
    """Items that pass up to a limit; level 0 is taken to pass, so an item that never does ends there too."""
    planted = [[level <= limit for level in range(levels)] for limit in range(-1, levels)]
    found, rounds = rounds_of(planted)
    assert found == [0, *range(levels)]
    assert rounds == math.ceil(math.log2(levels))


def test_where_several_limits_are_it_ends_at_one_of_them() -> None:
    """Whatever passes, in whatever order: the level that is found passes and the next fails, or it is an end."""
    for items in (list(product([False, True], repeat=7)), list(product([False, True], repeat=8))):
        found, _ = rounds_of(items)
        for item, level in zip(items, found, strict=True):
            assert level == 0 or item[level]
            assert level == len(item) - 1 or not item[level + 1]


def test_items_do_not_know_of_each_other() -> None:
    items = list(product([False, True], repeat=6))
    assert rounds_of(items)[0] == [rounds_of([item])[0][0] for item in items]
    assert bisect(0, 8, lambda levels: []) == []


def test_a_strength_is_a_share_of_the_vectors_root_mean_square() -> None:
    assert len(LADDER) == 16 and LADDER[0] == 0 and LADDER[-1] == 2
    assert all(later == pytest.approx(2**0.5 * one) for one, later in pairwise(LADDER[1:]))
    vector = torch.full((3, 4), -0.5)
    assert strength_at(LADDER.index(1.0), vector) == 0.5 and strength_at(0, vector) == 0.0
    assert strength_at(len(LADDER) - 1, 3 * vector) == 3.0


def test_each_source_has_its_own_number() -> None:
    auto, fixed = SampleSettings(noise_strength="auto"), SampleSettings(noise_strength=0.3)
    assert of_source(auto, {"a": 0.25}, "a").noise_strength == 0.25
    assert of_source(fixed, {"a": 0.25}, "a") == fixed and of_source(auto, None, "a") == auto
    with pytest.raises(ValueError, match=r"--tune interpolation=0,0\.1,0\.25,0\.4"):
        SampleSettings(interpolation="auto")  # type: ignore[arg-type]
