"""Losses read some steps at a time: the same training to the bit, stopped in time."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from training_toys import TINY, equal, toy

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.engine.state import UnitState
from diffusion_inversion.errors import DinvError
from diffusion_inversion.train import training
from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.training import Losses, train

ELEVEN = TrainSettings(
    architecture="resnet20", steps=11, batch_size=4, me_ada_every=3, me_ada_share=0.5, me_ada_steps=1
)


@pytest.fixture
def four_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.READ_EVERY, "cpu", 4)


def test_losses_come_in_order_when_enough_wait_and_at_the_end() -> None:
    losses = Losses(4, 10)
    read = {step: found for step in range(1, 11) if (found := losses.add(step, torch.tensor(step / 8)))}
    assert read == {
        4: [(1, 1 / 8), (2, 2 / 8), (3, 3 / 8), (4, 4 / 8)],
        8: [(5, 5 / 8), (6, 6 / 8), (7, 7 / 8), (8, 8 / 8)],
        10: [(9, 9 / 8), (10, 10 / 8)],
    }
    resumed = Losses(4, 10)  # begins where a state was saved
    assert [resumed.add(step, torch.tensor(0.5)) for step in (8, 9)] == [[], []]
    assert resumed.add(10, torch.tensor(0.25)) == [(8, 0.5), (9, 0.5), (10, 0.25)]


def trained(**arguments: Any) -> tuple[Classifier, list[tuple[int, float]]]:
    heard: list[tuple[int, float]] = []
    found = train(
        toy(20, 0), synthetic=toy(30, 1, name="synthetic"), settings=ELEVEN, device="cpu",
        on_step=lambda step, loss: heard.append((step, loss)), **arguments,
    )  # fmt: skip
    return found, heard


def test_how_many_are_read_together_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, heard = trained()
    assert [step for step, _ in heard] == list(range(1, 12))
    for every in (4, 50):
        monkeypatch.setitem(training.READ_EVERY, "cpu", every)
        again, heard_again = trained()
        assert equal(again, whole) and heard_again == heard


@pytest.mark.usefixtures("four_at_a_time")
def test_a_training_that_is_cut_between_two_readings_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, heard = trained()
    monkeypatch.setattr("diffusion_inversion.engine.state.EVERY", 0.0)
    forwards = 0

    class Cut(Exception):
        pass

    def cut(module: torch.nn.Module, inputs: object) -> None:
        nonlocal forwards
        forwards += isinstance(module, Classifier)
        if forwards == 7:
            raise Cut

    hook = register_module_forward_pre_hook(cut)
    with pytest.raises(Cut):
        trained(state=UnitState(tmp_path, ("x",), 0))
    hook.remove()
    again, heard_again = trained(state=UnitState(tmp_path, ("x",), 0))
    assert equal(again, whole) and heard_again == heard[4:]


@pytest.mark.usefixtures("four_at_a_time")
def test_divergence_stops_at_the_next_reading_and_names_the_step() -> None:
    forwards: Counter[bool] = Counter()
    hook = register_module_forward_pre_hook(lambda module, _: forwards.update([isinstance(module, Classifier)]))
    heard: list[int] = []
    with pytest.raises(DinvError, match="learning_rate") as caught:
        train(
            toy(20, 0), settings=TrainSettings(steps=400, batch_size=4, learning_rate=1e12), device="cpu",
            on_step=lambda step, _: heard.append(step),
        )  # fmt: skip
    hook.remove()
    last = forwards[True]
    assert last % 4 == 0 and last < 60 and heard == list(range(1, last - 3))
    assert f"(of steps {last - 3} to {last}, whose losses were read together)" in str(caught.value)
    step = int(str(caught.value).split(" at step ")[1].split()[0])
    assert last - 3 <= step <= last


def test_the_step_that_is_named_is_the_first_that_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    named = []
    for every in (1, 3):
        monkeypatch.setitem(training.READ_EVERY, "cpu", every)
        with pytest.raises(DinvError) as caught:
            train(toy(20, 0), settings=TrainSettings(steps=60, batch_size=4, learning_rate=1e12), device="cpu")
        named.append(str(caught.value).split(" at step ")[1].split()[0].rstrip(":"))
    assert named[0] == named[1]


class ScalarReads(TorchDispatchMode):
    """Counts how often a float of a tensor is asked for, which on a GPU waits for all that was begun."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_no_step_asks_for_a_number() -> None:
    with ScalarReads() as reads:
        assert math.isfinite(torch.ones(1).item())
        assert reads.count == 1, "the counter counts"
        train(toy(20, 0), settings=TINY, device="cpu")
    assert reads.count == 1
