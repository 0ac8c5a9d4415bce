"""Closed forms of guidance and perturbation; each would fail with a sign or a role swapped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from diffusion_inversion.invert.peers import nearest_rows
from diffusion_inversion.sample.guidance import classifier_free_guidance
from diffusion_inversion.sample.perturb import (
    add_gaussian_noise,
    choose_in_group,
    choose_outside,
    choose_partner,
    interpolate,
    slerp,
)


def test_scale_one_is_the_conditional_prediction_and_zero_the_unconditional() -> None:
    c, u = torch.randn(2, 4, 3, 8, 8)
    torch.testing.assert_close(classifier_free_guidance(c, u, 1.0), c)
    torch.testing.assert_close(classifier_free_guidance(c, u, 0.0), u)


@pytest.mark.parametrize("w", [-1.0, 0.0, 1.0, 2.0, 4.0])
def test_equals_the_papers_formula_with_w_one_less(w: float) -> None:
    c, u = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(classifier_free_guidance(c, u, w + 1), (1 + w) * c - w * u)


def test_each_image_gets_its_own_scale() -> None:
    c, u = torch.randn(2, 3, 4, 2, 2)
    scales = torch.tensor([1.0, 2.0, 5.0])
    together = classifier_free_guidance(c, u, scales)
    for i in range(3):
        torch.testing.assert_close(together[i], classifier_free_guidance(c[i], u[i], float(scales[i])))


def test_interpolation_weighs_the_partner_by_alpha() -> None:
    c, partner = torch.randn(2, 5, 8)
    torch.testing.assert_close(interpolate(c, partner, 0.0), c)
    torch.testing.assert_close(interpolate(c, partner, 1.0), partner)
    torch.testing.assert_close(interpolate(c, partner, 0.1), 0.1 * partner + 0.9 * c)


def test_gaussian_noise_has_mean_zero_and_standard_deviation_lambda() -> None:
    c = torch.randn(5, 20_000)
    added = add_gaussian_noise(c, 0.25, torch.Generator().manual_seed(0)) - c
    assert abs(float(added.mean())) < 3 * 0.25 / 100_000**0.5
    assert float(added.std()) == pytest.approx(0.25, rel=0.01)
    assert abs(float((added * c).mean())) < 0.005
    torch.testing.assert_close(add_gaussian_noise(c, 0.0, torch.Generator()), c)


def test_partners_are_others_of_the_same_class_all_equally_often() -> None:
    stream = torch.Generator().manual_seed(0)
    rows = (7, 9, 0, 2, 3, 8)
    for place, others in ((2, {2, 3}), (3, {0, 3}), (4, {0, 2})):
        drawn = [choose_partner(rows, place, range(2, 5), stream) for _ in range(2000)]
        assert set(drawn) == others
        assert all(900 < drawn.count(other) < 1100 for other in others)
    assert choose_partner(rows, 5, range(5, 6), stream) == 8


def test_slerp_goes_along_the_great_circle_at_a_steady_pace() -> None:
    c, partner = torch.nn.functional.normalize(torch.randn(2, 40, dtype=torch.float64), dim=1)
    whole = torch.acos((c * partner).sum())
    for alpha in (0.0, 0.1, 0.5, 0.9, 1.0):
        found = slerp((7 * c).view(5, 8), (7 * partner).view(5, 8), alpha).flatten() / 7
        assert float(found.norm()) == pytest.approx(1), "equal norms are kept; a straight line is shorter inside"
        angle = torch.acos((found * c).sum().clamp(-1, 1))
        assert float(angle) == pytest.approx(alpha * float(whole), abs=1e-6)
    torch.testing.assert_close(slerp(c, partner, 0.0), c)
    torch.testing.assert_close(slerp(c, partner, 1.0), partner)
    assert float(interpolate(c, partner, 0.5).norm()) < 0.9


def test_slerp_is_a_straight_line_where_the_angle_says_nothing() -> None:
    c = torch.randn(5, 8)
    near = c + 1e-4 * torch.randn(5, 8)
    for partner in (near, -c, torch.zeros(5, 8), 2 * c):
        found = slerp(c, partner, 0.3)
        assert found.isfinite().all()
        torch.testing.assert_close(found, interpolate(c, partner, 0.3))


def test_the_nearest_row_is_the_nearest_other_one() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0], [-2.5, 0.0], [3.0, 1.0]])
    assert nearest_rows(points).tolist() == [3, 2, 4, 0, 2]
    far = points + 1000.0  # a shared mean costs no digits
    assert nearest_rows(far).tolist() == [3, 2, 4, 0, 2]
    cloud = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    distances = torch.cdist(cloud, cloud).fill_diagonal_(torch.inf)
    assert torch.equal(nearest_rows(cloud, block=7), distances.argmin(1))


def test_partners_from_outside_are_all_others_equally_often() -> None:
    stream = torch.Generator().manual_seed(0)
    drawn = [choose_outside((4, 0, 5, 2, 1, 3), range(2, 4), stream) for _ in range(4000)]
    assert set(drawn) == {4, 0, 1, 3}
    assert all(900 < drawn.count(row) < 1100 for row in (4, 0, 1, 3))


@pytest.mark.parametrize(("others", "inside"), [(6, 1.0), (5, 1.0), (4, 0.8), (2, 0.4), (1, 0.2), (0, 0.0)])
def test_with_fewer_than_five_others_of_its_class_a_group_gives_all_of_these_and_strangers(
    others: int, inside: float
) -> None:
    """Of the 5 partners that the reference code draws of an image, k are the k others of its class, each once."""
    stream, count = torch.Generator().manual_seed(0), 5000
    rows, own = tuple(range(20, 40)), range(3, 4 + others)
    place = own[len(own) // 2]
    drawn = [choose_in_group(rows, place, own, stream) for _ in range(count)]
    kin = {rows[other] for other in own} - {rows[place]}
    strangers = {*rows} - {rows[other] for other in own}
    assert set(drawn) == (kin if others else set()) | (strangers if inside < 1 else set())
    spread = 4 * (0.25 / count) ** 0.5
    assert sum(row in kin for row in drawn) / count == pytest.approx(inside, abs=spread)
    assert all(drawn.count(row) / count == pytest.approx(inside / others, abs=spread) for row in kin)


def test_a_group_of_one_class_gives_another_of_it_however_few() -> None:
    stream = torch.Generator().manual_seed(0)
    assert {choose_in_group((4, 6, 5), 1, range(3), stream) for _ in range(100)} == {4, 5}
    assert choose_in_group((4,), 0, range(1), stream) == 4


@pytest.mark.parametrize(
    "random",
    [
        lambda stream: add_gaussian_noise(torch.zeros(3), 1.0, stream).tolist(),
        lambda stream: [choose_partner(range(1000), 10, range(1000), stream) for _ in range(3)],
        lambda stream: [choose_outside(range(1000), range(10), stream) for _ in range(3)],
        lambda stream: [choose_in_group(range(1000), 10, range(1000), stream) for _ in range(3)],
        lambda stream: [choose_in_group(range(1000), 10, range(8, 12), stream) for _ in range(30)],
    ],
)
def test_all_randomness_is_of_the_stream_that_is_given(random: Callable[[torch.Generator], list[float]]) -> None:
    elsewhere = torch.get_rng_state()
    found = [random(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), elsewhere)


def test_noise_is_added_as_it_is_drawn() -> None:
    c = torch.randn(4, 3)
    drawn = torch.randn(4, 3, generator=torch.Generator().manual_seed(7))
    assert torch.equal(add_gaussian_noise(c, 0.5, torch.Generator().manual_seed(7)), c + 0.5 * drawn)
