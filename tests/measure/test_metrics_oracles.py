"""FID, KID, precision, recall, density and coverage against torch-fidelity, torchmetrics and PyPI `prdc`; CMMD
against the formula of its authors' code. Same features, 1e-4 relative."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_inversion.measure.metrics.frechet import fid
from diffusion_inversion.measure.metrics.kernel import cmmd, cubic_kernel, discrepancy, kid, random_subsets
from diffusion_inversion.measure.metrics.manifold import manifold_values


def features(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    """Like pooled activations: at least 0, columns of different scale that go together."""
    stream = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / dim**0.5
    return (torch.randn(n, dim, generator=stream, dtype=torch.float64) @ mix + shift).relu()


SETS = {
    "more images than numbers": (features(400, 32, 0), features(300, 32, 1, shift=0.2)),
    "fewer images than numbers": (features(60, 96, 0), features(80, 96, 1, shift=0.2)),
}
both_sets = pytest.mark.parametrize(("real", "generated"), SETS.values(), ids=SETS.keys())


class _AsTheyAre(nn.Module):
    """The extractor of features that are features already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, rows: Tensor) -> Tensor:
        return rows


@both_sets
def test_fid_equals_torch_fidelity(real: Tensor, generated: Tensor) -> None:
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [metric_fid.fid_features_to_statistics(side) for side in (generated, real)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert fid(real, generated) == pytest.approx(expected, rel=1e-4)


@both_sets
def test_fid_equals_torchmetrics(real: Tensor, generated: Tensor) -> None:
    image = pytest.importorskip("torchmetrics.image.fid")
    metric = image.FrechetInceptionDistance(feature=_AsTheyAre(real.shape[1])).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    assert fid(real, generated) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_kid_over_subsets_equals_torch_fidelity() -> None:
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    real, generated = SETS["more images than numbers"]
    expected = metric_kid.kid_features_to_metric(
        generated, real, kid_subsets=20, kid_subset_size=150, rng_seed=2020, verbose=False
    )
    parts = random_subsets(len(real), len(generated), subsets=20, size=150)
    found = discrepancy(cubic_kernel, real, generated, *parts, chunk=64).parts
    assert float(found.mean()) == pytest.approx(expected[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-6)
    assert float(found.std(correction=0)) == pytest.approx(expected[metric_kid.KEY_METRIC_KID_STD], rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kid_over_all_pairs_equals_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.kid")
    real, generated = SETS["more images than numbers"]
    real = real[: len(generated)]  # its subsets are of one size; one subset of all images is the whole estimate
    metric = image.KernelInceptionDistance(feature=_AsTheyAre(real.shape[1]), subsets=1, subset_size=len(real))
    metric.update(real, real=True)
    metric.update(generated, real=False)
    assert kid(real, generated) == pytest.approx(float(metric.compute()[0]), rel=1e-4)


@both_sets
@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall_equal_torch_fidelity(real: Tensor, generated: Tensor, k: int) -> None:
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    expected = metric_prc.prc_features_to_metric(
        generated, real, prc_neighborhood=k, prc_batch_size=50, save_cpu_ram=True, verbose=False
    )
    found = manifold_values(real, generated, k=k)
    assert 0 < float(found.recall.mean()) < 1
    assert float(found.precision.mean()) == pytest.approx(expected[metric_prc.KEY_METRIC_PRECISION], rel=1e-4)
    assert float(found.recall.mean()) == pytest.approx(expected[metric_prc.KEY_METRIC_RECALL], rel=1e-4)


@both_sets
@pytest.mark.parametrize("k", [1, 5])
def test_all_four_equal_prdc(real: Tensor, generated: Tensor, k: int) -> None:
    prdc = pytest.importorskip("prdc")
    expected = prdc.compute_prdc(real.numpy(), generated.numpy(), nearest_k=k)
    found = manifold_values(real, generated, k=k)
    assert {name: float(getattr(found, name).mean()) for name in expected} == pytest.approx(expected, rel=1e-4)


@both_sets
def test_cmmd_equals_its_formula(real: Tensor, generated: Tensor) -> None:
    """Mean of the kernel over all pairs, an image with itself too; sigma 10, times 1,000."""
    x, y = (side.numpy() / np.linalg.norm(side.numpy(), axis=1, keepdims=True) for side in (real, generated))

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a[:, None] - b) ** 2).sum(axis=2) / (2 * 10**2)).mean())

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(real, generated, chunk=37) == pytest.approx(expected, rel=1e-6)
