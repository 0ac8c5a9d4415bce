"""Standard errors against the spread of fresh draws; intervals that hold the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_inversion.metrics import intervals
from diffusion_inversion.metrics.frechet import fid
from diffusion_inversion.metrics.intervals import (
    estimate,
    fid_error,
    jackknife_error,
    jackknife_parts,
    manifold_errors,
)
from diffusion_inversion.metrics.kernel import cubic_kernel, discrepancy, kid
from diffusion_inversion.metrics.manifold import manifold_values

N, M, DIM = 100, 80, 6


def draw(seed: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    real = torch.randn(N, DIM, generator=stream, dtype=torch.float64)
    return real, 0.8 * torch.randn(M, DIM, generator=stream, dtype=torch.float64) + 0.4


DRAWS = [draw(seed) for seed in range(150)]


def kid_error(real: Tensor, generated: Tensor) -> float:
    parts = jackknife_parts(len(real), len(generated), seed=0)
    return jackknife_error(discrepancy(cubic_kernel, real, generated, *parts).parts, len(real))


def ratio(errors: list[float], values: list[float]) -> float:
    """Mean error over true spread."""
    return float(torch.tensor(errors).mean() / torch.tensor(values).std())


def test_the_errors_of_fid_and_kid_are_their_spread() -> None:
    assert 0.8 < ratio([fid_error(*d, 0) or 0 for d in DRAWS[:15]], [fid(*d) for d in DRAWS]) < 1.3
    assert 0.8 < ratio([kid_error(*d) for d in DRAWS[:30]], [kid(*d) for d in DRAWS]) < 1.3


def test_the_errors_of_the_ball_metrics_are_their_spread() -> None:
    values = [manifold_values(*d, k=5) for d in DRAWS]
    errors = [manifold_errors(*d, k=5, seed=0) for d in DRAWS[:15]]
    for name in ("precision", "recall", "density", "coverage"):
        found = ratio([e[name] or 0 for e in errors], [float(getattr(v, name).mean()) for v in values])
        assert 0.7 < found < 1.7, name


def test_a_kid_interval_holds_the_truth_as_often_as_it_says() -> None:
    """The truth: the mean of an unbiased estimate over many draws."""
    values = [kid(*d) for d in DRAWS]
    truth = sum(values) / len(values)
    found = [estimate(v, kid_error(*d), 0.9) for v, d in zip(values, DRAWS, strict=True)]
    held = sum((e.low or 0) < truth < (e.high or 0) for e in found) / len(found)
    assert 0.83 < held <= 0.99


def test_the_jackknife_of_a_mean_is_its_textbook_error() -> None:
    """Groups of one: exactly std / sqrt(n)."""
    x, y = torch.randn(20).double(), torch.randn(15).double()
    real, generated = jackknife_parts(20, 15, seed=3)
    assert real.shape == (20, 35)
    assert generated.shape == (15, 35)
    means = (x @ real) / real.sum(dim=0) - (y @ generated) / generated.sum(dim=0)
    expected = (x.var() / 20 + y.var() / 15) ** 0.5
    assert jackknife_error(means, 20) == pytest.approx(float(expected), rel=1e-9)


def test_each_jackknife_set_leaves_one_group_of_one_side_out() -> None:
    real, generated = jackknife_parts(50, 63, seed=0)
    assert real.shape == (50, 40)
    left_out = (1 - real).sum(dim=0), (1 - generated).sum(dim=0)
    assert left_out[0][:20].sum() == 50
    assert left_out[0][20:].sum() == 0
    assert left_out[1][:20].sum() == 0
    assert left_out[1][20:].sum() == 63
    assert (1 - real).sum(dim=1).tolist() == [1] * 50


def test_the_error_in_leading_components_is_close_to_that_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = torch.Generator().manual_seed(0)
    scale = torch.arange(1, 41).double() ** -1.0  # spectra of features fall off like this
    real, generated = (torch.randn(150, 40, generator=stream).double() * scale + shift for shift in (0, 0.1))
    whole = fid_error(real, generated, 0)
    monkeypatch.setattr(intervals, "COMPONENTS", 12)
    assert fid_error(real, generated, 0) == pytest.approx(whole, rel=0.15)


def test_an_interval_is_cut_to_what_the_metric_can_be() -> None:
    assert estimate(0.5, 0.1, 0.95).low == pytest.approx(0.5 - 0.1959964, rel=1e-6)
    cut = estimate(0.98, 0.1, 0.95, least=0.0, most=1.0)
    assert (cut.low, cut.high) == (pytest.approx(0.784, abs=1e-3), 1)
    assert estimate(3.0, None, 0.95).low is None


def test_too_few_images_have_no_error() -> None:
    few = torch.randn(8, 3).double()
    assert set(manifold_errors(few, few, k=5, seed=0).values()) == {None}
    assert fid_error(few[:2], few, 0) is None
