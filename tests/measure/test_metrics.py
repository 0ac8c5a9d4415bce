"""Metrics against closed forms and properties: what a wrong sign, a swapped side or a lost digit would break."""

from __future__ import annotations

import pytest
import torch
from made_up import normal
from torch import Tensor

from diffusion_inversion.errors import DataError
from diffusion_inversion.measure.metrics.frechet import (
    Gaussian,
    fid,
    fid_infinity,
    fit_gaussian,
    frechet_distance,
    small_sample_warning,
)
from diffusion_inversion.measure.metrics.kernel import cmmd, kid, unit_rows
from diffusion_inversion.measure.metrics.manifold import ManifoldValues, manifold_values


def means(values: ManifoldValues) -> dict[str, float]:
    return {name: float(getattr(values, name).mean()) for name in ("precision", "recall", "density", "coverage")}


def manifold(real: Tensor, generated: Tensor, k: int = 5, **settings: int) -> dict[str, float]:
    return means(manifold_values(real, generated, k=k, **settings))


# Frechet distance


@pytest.mark.parametrize("n", [5, 200])  # fewer rows than columns, and more
def test_fid_of_a_shifted_copy_is_the_squared_shift(n: int) -> None:
    real, shift = normal(n, 16), torch.linspace(-1, 2, 16).double()
    assert fid(real, real + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_fid_of_gaussians_that_commute() -> None:
    """Diagonal covariances a^2 and b^2: |mean gap|^2 + sum (a - b)^2."""
    a, b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 0.5]).double()
    zero = torch.zeros(3).double()
    exact = frechet_distance(Gaussian(9, zero, torch.diag(a)), Gaussian(9, zero + 2, torch.diag(b)))
    assert exact == pytest.approx(12 + 1 + 0 + 6.25, rel=1e-12)
    sampled = fid(normal(100_000, 3) * a, normal(100_000, 3, seed=1) * b + 2)
    assert sampled == pytest.approx(exact, rel=0.02)


def test_fid_of_gaussians_that_do_not_commute() -> None:
    """2 x 2: the trace of the root of a matrix is the root of (trace + 2 sqrt(determinant))."""
    a, b = normal(2, 2), normal(2, 2, seed=1)
    first, second = a.T @ a, b.T @ b
    product = first @ second
    root_trace = (product.trace() + 2 * product.det().sqrt()).sqrt()
    zero = torch.zeros(2).double()
    expected = float(first.trace() + second.trace() - 2 * root_trace)
    assert frechet_distance(Gaussian(9, zero, a), Gaussian(9, zero, b)) == pytest.approx(expected, rel=1e-10)


def test_the_gaussian_is_mean_and_unbiased_covariance_however_the_rows_come() -> None:
    rows = normal(300, 8) * torch.arange(1, 9) + 1000
    for sizes in ([300], [1] * 300, [7, 93, 200], [299, 1]):
        fitted = fit_gaussian(rows.split(sizes))
        assert fitted.n == 300
        torch.testing.assert_close(fitted.mean, rows.mean(dim=0), rtol=1e-12, atol=0)
        torch.testing.assert_close(fitted.root.T @ fitted.root, rows.T.cov(), rtol=1e-9, atol=1e-9)


def test_fid_stays_exact_far_from_the_origin_and_near_singular() -> None:
    real = normal(50, 200) * 1e-3 + 100  # rank 49 of 200
    assert fid(real, real.flip(0)) < 1e-11
    assert fid(real, real + 0.01) == pytest.approx(200 * 1e-4, rel=1e-6)


def test_fid_infinity_takes_the_bias_of_few_images_away() -> None:
    real, generated = normal(400, 40), normal(400, 40, seed=1)
    assert fid(real, generated) > 1.5  # the truth is 0
    assert fid_infinity(real, generated) < 0.3
    assert fid_infinity(real, generated + 1) == pytest.approx(40, rel=0.1)


def test_few_images_are_warned_of() -> None:
    assert small_sample_warning(4096, 4096, 2048) is None
    for few in ((4095, 5000, 2048), (5000, 4095, 2048), (2047, 5000, 10)):
        assert "KID" in (small_sample_warning(*few) or "")


# Kernel distances


def test_kid_is_unbiased_and_grows_with_a_shift() -> None:
    draws = torch.tensor([kid(normal(30, 4, seed=2 * i), normal(20, 4, seed=2 * i + 1)) for i in range(300)])
    assert abs(float(draws.mean())) < 3 * float(draws.std()) / 300**0.5
    assert float(draws.min()) < 0 < float(draws.max())
    near, far = (kid(normal(200, 4), normal(200, 4, seed=1) + shift) for shift in (0.5, 1.0))
    assert 0.05 < near < far


def test_kid_by_hand() -> None:
    real, generated = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    # k(x, y) = (x . y / 2 + 1)^3: real pair 1, generated pair 8, cross pairs 3.375, 8, 8, 1
    assert kid(real, generated) == pytest.approx(1 + 8 - 2 * (3.375 + 8 + 8 + 1) / 4, rel=1e-12)


def test_cmmd_by_hand() -> None:
    """One direction against its opposite: every distance across is 2, every other 0."""
    real = torch.tensor([[3.0, 0.0], [0.5, 0.0]])
    assert cmmd(real, -real) == pytest.approx(2000 * (1 - torch.exp(torch.tensor(-4 / 200)).item()), rel=1e-6)
    assert cmmd(real, real * 7) == pytest.approx(0, abs=1e-9)  # length does not count


# Balls


def test_identical_sets() -> None:
    same = normal(120, 8)
    assert manifold(same, same) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}
    assert fid(same, same) < 1e-10
    assert cmmd(same, same) == pytest.approx(0, abs=1e-9)


def test_mode_collapse_tells_which_side_is_generated() -> None:
    """All generated images lie close to one real image: faithful, not diverse."""
    real = normal(200, 8)
    collapsed = real[:1] + 1e-3 * normal(200, 8, seed=1)
    found = manifold(real, collapsed)
    assert found["precision"] == 1
    assert found["recall"] < 0.02
    assert found["coverage"] < 0.3
    swapped = manifold(collapsed, real)
    assert swapped["precision"] < 0.02
    assert swapped["recall"] == 1


def test_a_far_set_and_an_outlier() -> None:
    real = normal(100, 8)
    assert manifold(real, real + 100) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    half = torch.cat([real[:50], real[:50] + 100])
    assert manifold(real, half)["precision"] == pytest.approx(0.5)


def test_precision_on_a_line_by_hand() -> None:
    """k = 1: balls of 0, 1, 3, 7 reach 1, 1, 2, 4; radius ends belong to precision, not to density."""
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    generated = torch.tensor([[-1.0], [0.5], [12.0], [11.0]])
    values = manifold_values(real, generated, k=1)
    assert values.precision.tolist() == [1, 1, 0, 1]
    assert values.density.tolist() == [0, 2, 0, 0]
    assert values.coverage.tolist() == [1, 1, 0, 0]
    assert values.recall.tolist() == [1, 1, 0, 0]  # generated balls reach 1.5, 1.5, 1, 1


def test_copies_in_a_set_have_balls_of_no_size() -> None:
    """An image and five copies of it: the ball is the point itself, closed for precision, empty for density."""
    real = torch.cat([normal(1, 8).expand(6, 8), normal(50, 8, seed=1) + 50]) * 1e3
    found = manifold_values(real, real[:1].repeat(10, 1) + 0.0, k=5)
    assert found.precision.tolist() == [1] * 10
    assert float(found.density.sum()) == 0


# All of them


@pytest.mark.parametrize("metric", [fid, kid, cmmd, manifold])
def test_order_and_chunks_do_not_matter(metric) -> None:  # type: ignore[no-untyped-def]
    real, generated = normal(90, 6), normal(70, 6, seed=1) + 0.3
    whole = metric(real, generated)
    shuffled = metric(real[torch.randperm(90)], generated[torch.randperm(70)])
    assert shuffled == pytest.approx(whole, rel=1e-9)
    for chunk in (1, 7, 64, 1000):
        settings = {"entries": chunk} if metric is manifold else {"chunk": chunk}
        assert metric(real, generated, **settings) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("metric", [fid, kid, cmmd, manifold])
def test_half_precision_features_are_computed_in_float64(metric) -> None:  # type: ignore[no-untyped-def]
    real, generated = normal(60, 6).half(), (normal(60, 6, seed=1) + 0.3).half()
    assert metric(real, generated) == metric(real.double(), generated.double())


@pytest.mark.parametrize("metric", [fid, kid, cmmd, manifold])
@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (normal(9, 4), normal(9, 5), "4 numbers an image"),
        (normal(9, 4), normal(1, 4), "generated features: 1 image"),
        (normal(9, 4).where(normal(9, 4) < 1, torch.nan), normal(9, 4), "real features: NaN or infinity"),
        (normal(9, 4), normal(9, 4) / 0, "generated features: NaN or infinity"),
        (normal(9), normal(9, 4), "real features: (9,)"),
        (normal(9, 4).long(), normal(9, 4), "torch.int64"),
    ],
)
def test_what_cannot_be_measured_is_named(metric, real: Tensor, generated: Tensor, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError) as error:
        metric(real, generated)
    assert message in str(error.value)


def test_k_needs_more_images_than_neighbours() -> None:
    with pytest.raises(DataError, match="at least 6"):
        manifold_values(normal(5, 4), normal(9, 4), k=5)


def test_a_zero_row_has_no_direction() -> None:
    with pytest.raises(DataError, match="zero"):
        unit_rows(torch.zeros(2, 3))
