"""Closed forms of guidance and perturbation; each would fail with a sign or a role swapped."""

from __future__ import annotations

import pytest
import torch

from diffusion_inversion.guidance import classifier_free_guidance
from diffusion_inversion.perturb import add_gaussian_noise, choose_partner, interpolate


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
    for source, others in ((0, {2, 3}), (2, {0, 3}), (3, {0, 2})):
        drawn = [choose_partner(source, (0, 2, 3), stream) for _ in range(2000)]
        assert set(drawn) == others
        assert all(900 < drawn.count(other) < 1100 for other in others)
    assert choose_partner(5, (5,), stream) == 5
