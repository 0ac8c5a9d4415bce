"""How near is too near: distances of the views, calibration, the conformal threshold, shares with intervals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toy import toy_images

from diffusion_inversion.measure.copies.conformal import p_values, threshold
from diffusion_inversion.measure.copies.nearest import Known
from diffusion_inversion.measure.copies.planted import LEVELS, MOSAIC, plant
from diffusion_inversion.measure.copies.shares import share
from diffusion_inversion.measure.copies.views import View, part_view, pixel_view

CPU = torch.device("cpu")
# Images as plain vectors: uint8 (N, 3, S, S) => their rows.
PLAIN = View(
    "plain",
    known=lambda images: images.flatten(1).float(),
    query=lambda images: images.flatten(1).float(),
    distances=lambda queries, known: torch.cdist(queries, known, compute_mode="donot_use_mm_for_euclid_dist"),
)


def noise(count: int, seed: int, side: int = 2) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), generator=stream).to(torch.uint8)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return toy_images(24, size=32).images


@pytest.fixture(scope="module")
def parts() -> View:
    return part_view(CPU)


def test_calibration_is_the_distance_over_the_mean_to_the_nearest_neighbours() -> None:
    known, queries, k = noise(30, 0), noise(7, 1), 4
    found = Known(PLAIN, known, k).search(queries)
    rows, asked = known.flatten(1).double(), queries.flatten(1).double()
    for place, one in enumerate(asked):
        ratios = []
        for number, other in enumerate(rows):
            apart = sorted(float((other - y).norm()) for j, y in enumerate(rows) if j != number)
            ratios.append(float((one - other).norm()) / (sum(apart[:k]) / k))
        assert int(found.rows[place]) == min(range(30), key=ratios.__getitem__)
        assert float(found.scores[place]) == pytest.approx(min(ratios), rel=1e-4)
        assert float(found.distances[place]) == pytest.approx(float((one - rows[found.rows[place]]).norm()), rel=1e-4)


def test_a_left_out_image_is_scored_as_if_it_had_never_been_known() -> None:
    known = noise(25, 2)
    left = torch.tensor([0, 3, 24])
    found = Known(PLAIN, known, 5, left).left_out
    for place, row in enumerate(left.tolist()):
        others = [number for number in range(25) if number != row]
        alone = Known(PLAIN, known[others], 5).search(known[row : row + 1])
        assert others[int(alone.rows[0])] == int(found.rows[place])
        assert float(alone.scores[0]) == pytest.approx(float(found.scores[place]), rel=1e-4)


def test_one_of_many_alike_must_be_met_more_closely() -> None:
    """Two known images at the same distance from a query: the one with near neighbours counts as less near."""
    crowd = torch.full((6, 3, 2, 2), 100, dtype=torch.uint8)
    crowd[:, 0, 0, 0] = torch.arange(100, 106).to(torch.uint8)
    loners = torch.stack([torch.full((3, 2, 2), value, dtype=torch.uint8) for value in (0, 200, 255)])
    query = torch.full((1, 3, 2, 2), 150, dtype=torch.uint8)  # 50 from the crowd's and from 200
    assert int(Known(PLAIN, torch.cat([crowd, loners]), 2).search(query).rows[0]) == 7


def test_the_threshold_is_the_order_statistic_of_the_null() -> None:
    null = torch.arange(199.0).flip(0)  # m + 1 = 200
    found = threshold(null, 0.01)
    assert (found.value, found.rate, found.holds) == (1.0, 0.01, True)  # the second smallest: j = 2
    assert found.flags(torch.tensor([0.5, 1.0, 1.5])).tolist() == [True, False, False]
    p = p_values(null, torch.tensor([-1.0, 0.0, 0.5, 1.0, 500.0]))
    assert p.tolist() == pytest.approx([1 / 200, 2 / 200, 2 / 200, 3 / 200, 1.0])
    scores = torch.linspace(-1, 200, 999)
    for rate in (0.01, 0.02, 0.1, 0.5):
        limit = threshold(null, rate)
        assert torch.equal(limit.flags(scores), p_values(null, scores) <= rate + 1e-12)


def test_a_null_that_is_too_small_says_what_rate_it_gives() -> None:
    found = threshold(torch.arange(50.0), 0.01)
    assert (found.value, found.holds) == (0.0, False)
    assert found.rate == pytest.approx(1 / 51)
    assert threshold(torch.arange(99.0), 0.01).holds and not threshold(torch.arange(98.0), 0.01).holds


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold(torch.arange(9.0), rate)


def test_the_rate_that_one_null_gives_is_beta() -> None:
    """The smallest of m: the rate is below x unless all m lie above it, 1 - (1 - x)^m."""
    found = threshold(torch.arange(99.0), 0.01)
    assert 1 - (1 - found.at_most) ** 99 == pytest.approx(0.95)


def test_independent_images_are_flagged_at_the_stated_rate() -> None:
    """200 nulls of 199 images, 10,000 images for each: the mean rate is the stated one."""
    stream = torch.Generator().manual_seed(3)
    rates: list[float] = []
    refused = exceeded = 0
    for _ in range(200):
        null, fresh = torch.rand(199, generator=stream), torch.rand(10_000, generator=stream)
        limit = threshold(null, 0.01)
        found = share(limit.flags(fresh))
        rates.append(found.value)
        exceeded += found.value > limit.at_most
        refused += found.low > limit.at_most
    mean, error = sum(rates) / 200, (0.01 * 0.99 / 201 / 200) ** 0.5  # of a mean of Beta(2, 198)
    assert abs(mean - 0.01) < 4 * error
    assert exceeded <= 20 and refused <= 12  # 5 % of 200 are meant, and less beyond the interval of the share


def test_a_generator_of_independent_images_is_flagged_at_the_rate_in_the_whole_chain() -> None:
    flagged = {"test": 0, "left out": 0}
    for seed in range(10):
        known = noise(200, 100 + seed)
        memory = Known(PLAIN, known, 10, torch.arange(200))
        made = memory.search(noise(1000, 200 + seed)).scores
        flagged["test"] += int(threshold(memory.search(noise(199, 300 + seed)).scores, 0.05).flags(made).sum())
        flagged["left out"] += int(threshold(memory.left_out.scores, 0.05).flags(made).sum())
    # 10,000 images, each null with j = 10: the standard deviation of the mean is 0.5 points.
    assert abs(flagged["test"] - 500) < 200 and abs(flagged["left out"] - 500) < 200


def test_more_is_flagged_at_a_higher_rate() -> None:
    null, scores = torch.rand(500), torch.rand(500)
    counts = [int(threshold(null, rate).flags(scores).sum()) for rate in (0.01, 0.05, 0.2, 0.6)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_a_share_has_the_interval_of_clopper_and_pearson() -> None:
    from scipy.stats import binomtest

    found = share(torch.arange(50) < 7)
    exact = binomtest(7, 50).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    none = share(torch.zeros(20, dtype=torch.bool))
    assert (none.low, none.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert share(torch.ones(20, dtype=torch.bool)).high == 1.0


def test_variants_of_one_source_count_as_one() -> None:
    """20 sources of 5 that are all flagged or none: the interval of 20 images, up to the small-sample factor."""
    flags = (torch.arange(20) < 6).repeat_interleave(5)
    together, alone = share(flags, torch.arange(20).repeat_interleave(5)), share(torch.arange(20) < 6)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=0.02)
    assert together.n == 100 and share(flags).high - share(flags).low < together.high - together.low
    assert share(flags, torch.arange(100)).low == pytest.approx(share(flags).low, abs=0.01)
    nothing = share(torch.zeros(100, dtype=torch.bool), torch.arange(20).repeat_interleave(5))
    assert nothing.high == pytest.approx(1 - 0.025 ** (1 / 20))


@pytest.mark.parametrize("level", ["exact", "flip", "JPEG 75", "crop to 90 %", "rotation by 5°", "blur 1/32"])
@pytest.mark.parametrize("name", ["pixels", "parts"])
def test_planted_copies_are_nearest_to_what_they_show(level: str, name: str, pictures: Tensor, parts: View) -> None:
    view = pixel_view(CPU) if name == "pixels" else parts
    planted = plant(level, pictures, torch.arange(24), seed=0)
    distances = view.distances(view.query(planted.images), view.known(pictures))
    assert distances.argmin(1).tolist() == list(range(24))
    if level in ("exact", "flip"):
        assert float(distances.diagonal().max()) < 0.02


@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_a_blurred_copy_is_blurred_at_every_side(side: int) -> None:
    images = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    little, more = (
        (plant(level, images, torch.arange(4), seed=0).images.float() - images.float()).abs().mean()
        for level in ("blur 1/32", "blur 1/16")
    )
    assert 0.5 < little <= more and (little < more or side == 4)


@pytest.mark.parametrize("shift", [(4, 0), (-4, 4), (0, -2)])
def test_shifted_copies_are_found_by_alignment(shift: tuple[int, int], pictures: Tensor) -> None:
    view = pixel_view(CPU)
    moved = torch.roll(pictures, shift, (2, 3))  # by 2 px of the thumbnail at most: its middle has no seam
    aligned = view.distances(view.query(moved), view.known(pictures)).diagonal()
    assert float(aligned.max()) < 0.02
    far = torch.roll(pictures, (16, 16), (2, 3))
    assert float(view.distances(view.query(far), view.known(pictures)).diagonal().min()) > 0.3


def test_pixels_are_blind_to_brightness_and_contrast_alone(pictures: Tensor) -> None:
    view = pixel_view(CPU)
    known = view.known(pictures)
    duller = (0.5 * pictures.float() + 60).round().to(torch.uint8)
    assert float(view.distances(view.query(duller), known).diagonal().max()) < 0.1
    negative = 255 - pictures
    assert float(view.distances(view.query(negative), known).diagonal().min()) > 0.5
    flat = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    assert view.distances(view.query(flat), known).flatten().tolist() == pytest.approx([math.sqrt(2)] * 24)


def test_half_an_image_is_found_by_its_parts(pictures: Tensor, parts: View) -> None:
    planted = plant(MOSAIC, pictures, torch.arange(24), seed=0)
    distances = parts.distances(parts.query(planted.images), parts.known(pictures))
    best = distances.argmin(1)
    right = (best[:, None] == planted.rows).any(1)
    assert int(right.sum()) >= 20  # 2 of 24 by chance


@pytest.mark.parametrize("level", LEVELS)
def test_planted_copies_have_the_shape_of_images_and_depend_on_the_seed_alone(level: str, pictures: Tensor) -> None:
    rows = torch.tensor([5, 2, 9])
    one, again = (plant(level, pictures, rows, seed=1) for _ in range(2))
    assert one.images.shape == (3, 3, 32, 32) and one.images.dtype == torch.uint8
    assert torch.equal(one.images, again.images)
    assert one.rows[:, 0].tolist() == [5, 2, 9]
    alone = plant(level, pictures, rows[1:2], seed=1)
    if level != MOSAIC:
        assert torch.equal(alone.images[0], one.images[1])  # by identity, not by position
        assert bool((one.images != pictures[rows]).flatten(1).any(1).all()) == (level != "exact")
