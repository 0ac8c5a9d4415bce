"""A long unit that is cut short anywhere goes on from its saved state to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import Cut, cut_after
from toy import WIDTH, toy_images

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.images import LabelledImages, to_model_range
from diffusion_inversion.engine import state as unit_state
from diffusion_inversion.engine.state import UnitState
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.objective import EvaluationBank
from diffusion_inversion.invert.optimisation import invert_batch
from diffusion_inversion.invert.trajectory import Trajectory, UnitInputs
from diffusion_inversion.train.training import train


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_state, "EVERY", 0.0)


def test_state_comes_back_as_it_was_or_not_at_all(tmp_path: Path) -> None:
    state = UnitState(tmp_path, ("a", "b"), {"seed": 0})
    assert state.load() is None
    tensors = {"x": torch.randn(3, 2), "n": torch.tensor(7), "b": torch.tensor([True]), "e": torch.empty(0)}
    state.save(tensors)
    found = UnitState(tmp_path, ("a", "b"), {"seed": 0}).load()
    assert found is not None and all(torch.equal(found[name], value) for name, value in tensors.items())
    assert UnitState(tmp_path, ("a", "c"), {"seed": 0}).load() is None
    assert UnitState(tmp_path, ("a", "b"), {"seed": 1}).load() is None, "of a call with other settings"
    whole = state.path.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 4
        state.path.write_bytes(changed)
        assert state.load() is None, place
    state.clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_inversion_goes_on_to_the_same_bits(always: None, generator: Generator, tmp_path: Path, calls: int) -> None:
    images = toy_images(3)
    settings = InvertSettings(steps=6, keep_steps=(2, 4), init="random", eval_draws=2)
    arguments = (generator, to_model_range(images.images), torch.randn(3, 5, WIDTH) * 0.1, images.ids, settings)
    whole = invert_batch(*arguments)
    state = UnitState(tmp_path, images.ids, 0)
    with pytest.raises(Cut):
        invert_batch(*arguments, cut_after(calls), state)
    done: list[int] = []
    again = invert_batch(*arguments, done.append, UnitState(tmp_path, images.ids, 0))
    assert done == [calls * 3, *[3] * (6 - calls)], "the saved steps are counted, not done again"
    for name in ("vectors", "losses", "null_losses"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name


def test_more_than_a_thousand_kept_steps_come_back_in_their_order(generator: Generator) -> None:
    """As text, kept.1000 would come before kept.101."""
    images, settings = toy_images(1), InvertSettings(steps=1, init="random", eval_draws=1)
    latents = generator.encode(to_model_range(images.images))
    bank = EvaluationBank.draw(generator, latents, images.ids, settings)
    inputs = UnitInputs(generator, settings, images.ids, latents, bank, torch.zeros(1, 5, WIDTH), 1)
    before, after = (Trajectory(inputs, torch.arange(1), 0.1, 0) for _ in range(2))
    before.kept = [torch.tensor(float(place)) for place in range(1002)]
    before.losses = [-tensor for tensor in before.kept]
    assert after.restore(before.progress(7, 0, before.result(complete=False))) == 7
    assert [int(tensor) for tensor in after.kept] == [-int(tensor) for tensor in after.losses] == [*range(1002)]


ADVERSARIAL = {"me_ada_every": 2, "me_ada_share": 0.5, "me_ada_steps": 2}


@pytest.mark.parametrize("cut_at", [2, 7])
@pytest.mark.parametrize(
    ("mixed", "changed"),
    [
        (False, {}),
        (True, {}),
        (True, {"mixing": "sequential", "recipe": "fast", **ADVERSARIAL}),
        (True, {"mixing": "concatenate", "recipe": "medmnist-adamw", "augmentations": ("default", "cutmix")}),
        (True, {"augmentations": ("randaugment", "augmix", "cutout", "mixup"), **ADVERSARIAL}),
        (False, {"architecture": "mobilenetv2", "momentum": 0.0}),
        (False, {"warm_up_steps": 4}),
    ],
    ids=["real", "mixed", "sequential", "concatenate", "augmented", "dropout", "warm-up"],
)
def test_training_goes_on_to_the_same_bits(
    always: None, tmp_path: Path, cut_at: int, mixed: bool, changed: dict[str, Any]
) -> None:
    images: LabelledImages = toy_images(10)
    synthetic = toy_images(14) if mixed else None
    settings = TrainSettings(**{"architecture": "resnet20", "steps": 8, "batch_size": 4, **changed})
    whole = train(images, synthetic=synthetic, settings=settings, device="cpu")

    def cut(step: int, loss: float) -> None:
        if step == cut_at:
            raise Cut

    with pytest.raises(Cut):
        train(
            images,
            synthetic=synthetic,
            settings=settings,
            device="cpu",
            on_step=cut,
            state=UnitState(tmp_path, ("x",), 0),
        )
    steps: list[int] = []
    torch.manual_seed(cut_at)  # nothing depends on the global generator
    again = train(
        images, synthetic=synthetic, settings=settings, device="cpu",
        on_step=lambda step, _: steps.append(step), state=UnitState(tmp_path, ("x",), 0),
    )  # fmt: skip
    assert steps == list(range(cut_at, 9)), "the step that was cut is done again, those before are not"
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.provenance == whole.provenance
