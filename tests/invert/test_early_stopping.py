"""Images whose loss on the evaluation bank hardly falls end early; the others go on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import WIDTH, toy_images

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.engine import state as unit_state
from diffusion_inversion.engine.state import UnitState
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import EmbeddingStore, read_embeddings
from diffusion_inversion.invert.inversion import invert, made_from
from diffusion_inversion.invert.optimisation import invert_batch
from diffusion_inversion.invert.slots import slots_for
from diffusion_inversion.invert.trajectory import BatchResult

IMAGES, STEPS, LOOKS = 6, 8, (2, 4, 6)
WHOLE = InvertSettings(steps=STEPS, keep_steps=(1, *LOOKS), init="random", eval_draws=4, batch_size=IMAGES)
Learn = Callable[..., BatchResult]


@pytest.fixture(scope="module")
def learn(generator: Generator) -> Learn:
    """`invert_batch` on six images from the same start, whatever else it is told."""
    images = toy_images(IMAGES)
    initial = torch.randn(IMAGES, 5, WIDTH, generator=torch.Generator().manual_seed(3)) * 0.1

    def run(settings: InvertSettings, *arguments: Any, **named: Any) -> BatchResult:
        pixels = to_model_range(images.images)
        return invert_batch(generator, pixels, initial, images.ids, settings, *arguments, **named)

    return run


@pytest.fixture(scope="module")
def whole(learn: Learn) -> BatchResult:
    return learn(WHOLE)


@pytest.fixture(scope="module")
def ending(whole: BatchResult) -> InvertSettings:
    """Settings by which half of the images end at the first look."""
    start, first = (whole.losses[whole_point(step)] for step in (0, LOOKS[0]))
    return WHOLE.model_copy(update={"early_stopping": float(((start - first) / start).clamp(min=1e-4).median()) + 1e-6})


def whole_point(step: int) -> int:
    return (0, 1, *LOOKS, STEPS).index(step)


def expected_ends(losses: Tensor, share: float) -> list[int]:
    """The step at which each image has to end, by the losses of a run in which none does."""
    ends = []
    for row in range(IMAGES):
        curve = {step: float(losses[whole_point(step), row]) for step in (0, *LOOKS)}
        flat = [step for step in LOOKS if curve[step - 2] - curve[step] < share * curve[step - 2]]
        ends.append(flat[0] if flat else STEPS)
    return ends


def test_an_image_ends_where_its_loss_is_flat_with_the_vector_and_loss_of_that_step(
    learn: Learn, whole: BatchResult, ending: InvertSettings
) -> None:
    assert ending.early_stopping is not None
    ends, found = expected_ends(whole.losses, ending.early_stopping), learn(ending)
    assert min(ends) == LOOKS[0] and max(ends) == STEPS, "both kinds are here"
    assert found.stopped.tolist() == [0 if end == STEPS else end for end in ends]
    assert found.causes.tolist() == [0] * IMAGES
    for row, end in enumerate(ends):
        for point, step in enumerate((0, 1, *LOOKS, STEPS)):
            then = whole_point(min(step, end))
            torch.testing.assert_close(found.losses[point, row], whole.losses[then, row], rtol=1e-4, atol=1e-5)
        for place, step in enumerate((1, *LOOKS, STEPS)):
            then = whole_point(min(step, end)) - 1
            torch.testing.assert_close(found.vectors[place, row], whole.vectors[then, row], rtol=1e-3, atol=1e-4)
    assert not torch.equal(whole.vectors[-1], found.vectors[-1])


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_places_that_the_next_images_take_change_nothing(learn: Learn, ending: InvertSettings, at_once: int) -> None:
    """Against all at once: to 1e-4 of the numbers, as elsewhere for batches of other sizes."""
    together, queued = learn(ending), learn(ending, at_once=at_once)
    assert torch.equal(queued.stopped, together.stopped)
    torch.testing.assert_close(queued.vectors, together.vectors, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(queued.losses, together.losses, rtol=1e-3, atol=1e-4)


def test_images_that_ended_are_not_computed_again(generator: Generator, learn: Learn, ending: InvertSettings) -> None:
    computed: list[int] = []  # images of each call of the UNet that a gradient is taken of
    counted: list[int] = []
    hook = generator.unet.register_forward_hook(
        lambda _, given, __: computed.append(len(given[0])) if torch.is_grad_enabled() else None
    )
    found = learn(ending, counted.append)
    hook.remove()
    steps = [step or STEPS for step in found.stopped.tolist()]
    assert sum(computed) == sum(steps) < IMAGES * STEPS
    assert sum(counted) == IMAGES * STEPS, "progress counts what is saved as done"


def test_all_may_end(learn: Learn, whole: BatchResult) -> None:
    found = learn(WHOLE.model_copy(update={"early_stopping": 0.99}))
    assert found.stopped.tolist() == [LOOKS[0]] * IMAGES
    assert torch.equal(found.vectors[-1], whole.vectors[1]) and torch.equal(found.losses[-1], whole.losses[2])


@pytest.mark.parametrize("cut_after", range(1, STEPS))
def test_it_goes_on_to_the_same_bits_after_a_kill_at_any_step(
    learn: Learn, ending: InvertSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_after: int
) -> None:
    monkeypatch.setattr(unit_state, "EVERY", 0.0)
    straight = learn(ending)

    class Cut(Exception):
        pass

    def cut(count: int) -> None:
        nonlocal done
        done += count
        if done >= cut_after * IMAGES:
            raise Cut

    done = 0
    with pytest.raises(Cut):
        learn(ending, cut, UnitState(tmp_path, ("unit",), 0))
    counted: list[int] = []
    again = learn(ending, counted.append, UnitState(tmp_path, ("unit",), 0))
    assert sum(counted) == IMAGES * STEPS
    for name in ("vectors", "losses", "null_losses", "stopped"):
        assert torch.equal(getattr(again, name), getattr(straight, name)), name


def test_the_store_says_where_images_ended(generator: Generator, tmp_path: Path) -> None:
    images, settings = toy_images(4), WHOLE.model_copy(update={"early_stopping": 0.99, "batch_size": 2})
    found, store = invert(images, generator, tmp_path, settings), EmbeddingStore(tmp_path)
    assert store.ended() == dict.fromkeys(images.ids, LOOKS[0])
    assert torch.equal(found.at(), found.at(LOOKS[0])) and not torch.equal(found.at(), found.at(1))
    store.remove({images.ids[1]})
    assert store.ended() == dict.fromkeys((*images.ids[:1], *images.ids[2:]), LOOKS[0])
    assert read_embeddings(tmp_path).ids == (*images.ids[:1], *images.ids[2:])


def test_joint_groups_are_refused_and_older_runs_go_on() -> None:
    with pytest.raises(ValueError, match=r"early_stopping=0\.1: .*grouping=independent"):
        InvertSettings(grouping="joint", early_stopping=0.1)
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="early_stopping"):
            InvertSettings(early_stopping=share)
    plain = InvertSettings()
    assert "early_stopping" not in plain.described()
    assert InvertSettings(early_stopping=0.1).described()["early_stopping"] == 0.1


def test_no_step_is_recorded_on_cuda_where_images_may_end(generator: Generator) -> None:
    """It would have places for a fixed number of images. Only the name of the device is read."""
    generator = copy(generator)
    generator.device = torch.device("cuda")
    for share in (None, 0.1):
        settings = InvertSettings(early_stopping=share)
        assert (slots_for(generator, settings) is None) == (share is not None)
        assert ("draws" not in made_from(toy_images(2), generator, settings, 16)) == (share is not None)
