"""ME-ADA's ascent on a linear softmax classifier, where every gradient is known in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_inversion.errors import DinvError, UsageError
from diffusion_inversion.train.adversarial import ascend, objective

SIZE, CLASSES, BATCH = 4, 3, 5


def linear(scale: float = 0.3) -> tuple[Tensor, Tensor]:
    """Weights (classes, 3 * size^2) and biases (classes,), float64."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(CLASSES, 3 * SIZE * SIZE, generator=generator, dtype=torch.float64) * scale
    return weight, torch.randn(CLASSES, generator=generator, dtype=torch.float64)


def logits_of(images: Tensor) -> Tensor:
    weight, bias = linear()
    return images.flatten(1) @ weight.T + bias


def batch() -> tuple[Tensor, Tensor]:
    """Images in [0.3, 0.7], away from the clip, and labels."""
    generator = torch.Generator().manual_seed(1)
    images = 0.3 + 0.4 * torch.rand(BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return images, torch.arange(BATCH) % CLASSES


def gradient(images: Tensor, start: Tensor, labels: Tensor, gamma: float, eta: float) -> Tensor:
    """By hand: W^T [(p - onehot) - eta p (log p + H) - gamma (z - z0)] for z = W x + b, p = softmax(z)."""
    z, z0 = logits_of(images), logits_of(start)
    p = z.softmax(1)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    by_logit = (p - F.one_hot(labels, CLASSES)) - eta * p * (p.log() + entropy) - gamma * (z - z0)
    return (by_logit @ linear()[0]).reshape(images.shape)


def entropy_of(images: Tensor) -> Tensor:
    p = logits_of(images).softmax(1)
    return -(p * p.log()).sum(1)


@pytest.mark.parametrize(("gamma", "eta"), [(0.0, 0.0), (0.7, 0.0), (0.0, 2.0), (0.7, 2.0)])
def test_three_steps_follow_the_closed_form(gamma: float, eta: float) -> None:
    # The distance has no gradient at the start: gamma is seen from the second step on. The logits are taken in float32.
    start, labels = batch()
    rate, copies = 0.05, start
    for _ in range(3):
        copies = copies + rate * gradient(copies, start, labels, gamma, eta)
    assert copies.min() > 0 and copies.max() < 1, "nothing is clipped"
    ours = ascend(logits_of, start, labels, steps=3, rate=rate, gamma=gamma, eta=eta)
    moved = (copies - start).abs().max()
    assert moved > 0.02 and (ours - copies).abs().max() < 1e-5 * moved


def test_no_steps_return_the_images() -> None:
    start, labels = batch()
    assert torch.equal(ascend(logits_of, start, labels, steps=0, rate=1.0, gamma=1.0, eta=1.0), start)


def test_cross_entropy_rises_and_entropy_rises_with_eta() -> None:
    start, labels = batch()

    def cross_entropy(images: Tensor) -> Tensor:
        return F.cross_entropy(logits_of(images), labels, reduction="none")

    plain = ascend(logits_of, start, labels, steps=10, rate=0.02, gamma=0.0, eta=0.0)
    spread = ascend(logits_of, start, labels, steps=10, rate=0.02, gamma=0.0, eta=5.0)
    assert (cross_entropy(plain) > cross_entropy(start)).all()
    assert (entropy_of(spread) > entropy_of(plain)).all() and (entropy_of(spread) > entropy_of(start)).all()


def test_a_large_gamma_keeps_the_image_in_place() -> None:
    # At the maximum gamma (z - z0) = (p - onehot) in the logits: the distance falls like 1 / gamma.
    start, labels = batch()
    weight, _ = linear()
    stiffness = float(torch.linalg.eigvalsh(weight @ weight.T).max())
    distance = {}
    for gamma in (10.0, 100.0, 1000.0):
        copies = ascend(logits_of, start, labels, steps=800, rate=0.5 / (gamma * stiffness), gamma=gamma, eta=0.0)
        distance[gamma] = (copies - start).norm()
        p = logits_of(copies).softmax(1) - F.one_hot(labels, CLASSES)
        assert torch.allclose(logits_of(copies) - logits_of(start), p / gamma, rtol=1e-2, atol=1e-6)
    assert 8 < distance[10.0] / distance[100.0] < 12 and 8 < distance[100.0] / distance[1000.0] < 12


def test_values_stay_in_range() -> None:
    start, labels = batch()
    copies = ascend(logits_of, start, labels, steps=5, rate=50.0, gamma=0.0, eta=0.0)
    assert copies.min() == 0 and copies.max() == 1 and (copies - start).abs().max() > 0.3


def test_an_image_does_not_depend_on_its_batch() -> None:
    start, labels = batch()
    settings = {"steps": 4, "rate": 0.1, "gamma": 0.5, "eta": 1.0}
    together = ascend(logits_of, start, labels, **settings)  # type: ignore[arg-type]
    alone = ascend(logits_of, start[2:3], labels[2:3], **settings)  # type: ignore[arg-type]
    assert torch.allclose(together[2:3], alone, rtol=0, atol=1e-7)


def test_network_and_images_are_left_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES)).double()
    start, labels = batch()
    kept = start.clone()
    with torch.no_grad():
        copies = ascend(network, start, labels, steps=2, rate=1.0, gamma=0.1, eta=0.1)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(start, kept) and not start.requires_grad and not copies.requires_grad
    assert not torch.equal(copies, start)


def test_objective_is_what_its_terms_say() -> None:
    uniform, start = torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 2.0]])
    label, log4 = torch.tensor([2]), torch.tensor(4.0).log()
    value = objective(uniform, start, label, gamma=0.5, eta=3.0)
    assert torch.allclose(value, log4 + 3 * log4 - 0.5 * 5 / 2)


def test_misuse_says_what_to_do() -> None:
    start, labels = batch()
    with pytest.raises(UsageError, match="divide uint8 ones by 255"):
        ascend(logits_of, (start * 255).to(torch.uint8), labels, steps=1, rate=1.0, gamma=0.0, eta=0.0)
    with pytest.raises(DinvError, match="smaller rate or gamma"):
        ascend(lambda x: logits_of(x) * float("nan"), start, labels, steps=1, rate=1.0, gamma=0.0, eta=0.0)
