"""A step's gradients are autograd's own, new at each call; on CUDA the graph gives what the plain step gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_toys import toy

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.engine.graphs import WARM_CALLS
from diffusion_inversion.train.gradients import Gradients
from diffusion_inversion.train.training import train

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def _images(count: int, seed: int) -> Tensor:
    return torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _of(network: nn.Module, device: str) -> Gradients:
    def loss_of(batches: tuple[Tensor, ...], goals: tuple[Tensor, ...]) -> Tensor:
        losses = [F.cross_entropy(network(one.float() / 255), goal) for one, goal in zip(batches, goals, strict=True)]
        return torch.stack(losses).sum()

    return Gradients(loss_of, list(network.parameters()), torch.device(device))


def _network(device: str) -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3)
    return nn.Sequential(*layers).to(device)


def test_gradients_are_those_of_the_last_call_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    linear = network[1]
    assert isinstance(linear, nn.Linear)
    batch, goal = _images(4, 0), torch.tensor([0, 2, 1, 1])
    of = _of(network, "cpu")
    of([_images(4, 1)], [goal])
    loss = of([batch], [goal])
    pixels = batch.flatten(1).float() / 255  # d loss / d W = (softmax - one-hot)^T x / B
    scores = linear(pixels).softmax(1)
    wanted = (scores - F.one_hot(goal, 3)).T @ pixels / 4
    assert linear.weight.grad is not None and torch.allclose(linear.weight.grad, wanted, atol=1e-6)
    assert torch.allclose(loss, -scores[range(4), goal].log().mean()) and not loss.requires_grad


@CUDA
def test_a_graph_gives_the_plain_steps_weights_and_dropout() -> None:
    found = []
    for graphs in (True, False):
        network = _network("cuda")
        of = _of(network, "cuda")
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        losses = []
        for step in range(WARM_CALLS + 6):
            inputs = [_images(16, step), _images(8, 100 + step)], [torch.arange(16) % 3, torch.arange(8) % 3]
            torch.manual_seed(step)
            if graphs:
                losses.append(of(*inputs))
            else:
                losses.append(of._computed([one.cuda() for one in (*inputs[0], *inputs[1])]))
            optimizer.step()
        assert not of._plain and len(of._graphs) == graphs
        found.append((torch.stack(losses), [value.clone() for value in network.state_dict().values()]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-4)
    assert len(set(found[0][0].tolist())) == WARM_CALLS + 6
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-4)


@CUDA
def test_a_classifier_learns_on_cuda() -> None:
    losses: list[float] = []
    settings = TrainSettings(steps=60, batch_size=32, architecture="resnet20", recipe="fast")
    train(toy(90, 0, size=16), settings=settings, device="cuda", on_step=lambda _, loss: losses.append(loss))
    assert len(losses) == 60 and sum(losses[-5:]) < 0.2 * sum(losses[:5])
