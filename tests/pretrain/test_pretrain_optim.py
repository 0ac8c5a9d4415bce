"""The optimizer of the recipe: Muon against a loop over matrices, the rates, the averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_inversion.generator.adapter import Adapter
from diffusion_inversion.pretrain.optim import RMS, MixedPrecision, Muon, orthogonalise, trapezoid


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    assert trapezoid(0, 0.0, 0.25) == pytest.approx(1 / 300)
    assert trapezoid(1000, 0.5, 0.25) == trapezoid(1000, 0.75, 0.25) == 1.0
    assert trapezoid(1000, 0.875, 0.25) == pytest.approx(0.5)
    assert trapezoid(1000, 1.0, 0.25) == 0.0


def test_muon_stacked_by_shape_is_a_plain_loop_over_matrices() -> None:
    """Three steps of matrices and convolutions of two shapes against the update written out, matrix by matrix."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 4), (6, 4), (4, 6), (6, 2, 2, 1), (5, 3, 3, 3))
    initial = [torch.randn(shape, generator=generator) for shape in shapes]
    stacked = [nn.Parameter(value.clone()) for value in initial]
    plain, averages = [value.clone() for value in initial], [torch.zeros_like(value) for value in initial]
    muon, lr = Muon(stacked, momentum=0.9, dtype=torch.float32), torch.tensor(0.03)
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for parameter, gradient in zip(stacked, gradients, strict=True):
            parameter.grad = gradient.clone()
        muon.step(lr)
        for value, average, gradient in zip(plain, averages, gradients, strict=True):
            average.mul_(0.9).add_(0.1 * gradient)
            nesterov = (0.1 * gradient + 0.9 * average).flatten(1)
            x = nesterov
            x = x.T if x.shape[0] > x.shape[1] else x
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = x.T if nesterov.shape[0] > nesterov.shape[1] else x
            value.sub_((RMS * max(nesterov.shape) ** 0.5 * 0.03 * x).reshape(value.shape))
    for parameter, value in zip(stacked, plain, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=1e-6)


def test_an_update_of_muon_has_the_promised_size_and_descends() -> None:
    matrices = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(1))
    singular = torch.linalg.svdvals(orthogonalise(matrices))
    assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3  # the quintic ends there, not at 1
    parameter = nn.Parameter(torch.zeros(64, 32))
    parameter.grad = matrices[0].clone()
    Muon([parameter]).step(torch.tensor(1.0))
    assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(RMS, rel=0.25)
    assert float((parameter.detach() * matrices[0]).sum()) < 0


def test_weights_follow_the_gradient_and_the_average_follows_the_weights() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"part": nn.Linear(4, 4)})
    weights = MixedPrecision(model, torch.float32, 0.1, 0.1, ema_decay=0.5)
    x, y = torch.randn(32, 4), torch.randn(32, 4)
    losses = []
    for step in range(30):
        weights.set_rates(1.0, step)
        weights.zero_grad()
        before = weights.ema["part"].weight.clone()
        loss = (weights.network["part"](x) - y).square().mean()
        loss.backward()
        weights.step()
        losses.append(float(loss.detach()))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * before + (1 - decay) * model["part"].weight.detach()
        torch.testing.assert_close(weights.ema["part"].weight, expected)
        torch.testing.assert_close(weights.network["part"].weight, model["part"].weight)
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_restored_reaches_the_network_that_computes_buffers_too() -> None:
    """The adapter's statistics are buffers, which no optimizer moves."""
    adapters = [nn.ModuleDict({"adapter": Adapter(tokens=2, width=8, hidden=4)}) for _ in range(2)]
    for mean, adapter in enumerate(adapters):
        adapter["adapter"].normalise.running_mean.fill_(mean)
    weights = MixedPrecision(adapters[0], torch.float32, 0.1, 0.1, ema_decay=0.5)
    weights.model.load_state_dict(adapters[1].state_dict())
    weights.restored()
    network, saved = weights.network.state_dict(), adapters[1].state_dict()
    assert all(torch.equal(network[key], saved[key]) for key in saved) and network.keys() == saved.keys()
    assert float(network["adapter.normalise.running_mean"][0]) == 1
