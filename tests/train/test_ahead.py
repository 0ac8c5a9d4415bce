"""Which generations of images a classifier needs when, and what it sees of them while only some are there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_toys import TINY, equal, pair

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.engine.state import UnitState
from diffusion_inversion.errors import DataError
from diffusion_inversion.train.ahead import Ahead, Stretch, go_side_by_side
from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.mixing import queue
from diffusion_inversion.train.training import train

QUEUE = TINY.model_copy(update={"steps": 30, "mixing": "queue", "augmentations": ("none",)})


def ahead_of(synthetic: LabelledImages, sources: int, asked: list[tuple[int, ...]], gone: list[int]) -> Ahead:
    """A queue whose generation g are the rows from g * sources on."""

    def images(generations: tuple[int, ...]) -> LabelledImages:
        asked.append(generations)
        assert not gone or min(generations) >= gone[-1], "what was given up is not asked for again"
        return synthetic.subset([g * sources + row for g in generations for row in range(sources)])

    return Ahead(sources, len(synthetic) // sources, "version", images, gone.append)


@pytest.mark.parametrize(
    ("sources", "count", "steps"), [(12, 3, 30), (7, 5, 400), (10, 1, 20), (25, 40, 60), (3, 9, 4)]
)
def test_the_stretches_hold_what_the_queue_draws_from(sources: int, count: int, steps: int) -> None:
    """Every step lies in one stretch, whose generations hold all rows that the whole queue can draw then."""
    ahead = Ahead(sources, count, "", lambda _: pytest.fail("nothing is drawn"), lambda _: None)
    whole, slots = queue(torch.arange(sources * count), sources), torch.arange(sources)
    first, newest = 1, -1
    for stretch in ahead.stretches(steps):
        part = ahead.part(stretch)
        for step in range(first, stretch.last + 1):
            wanted = whole.rows(slots, step, steps)
            held = part.window.rows(slots, step, steps)
            assert {int(row) // sources for row in wanted} <= {*stretch.generations}
            there = torch.tensor(stretch.generations).repeat_interleave(sources) * sources + torch.arange(
                sources
            ).repeat(len(stretch.generations))
            assert torch.equal(there[held], wanted)
        assert len(stretch.generations) <= 2 and stretch.generations[-1] > newest
        first, newest = stretch.last + 1, stretch.generations[-1]
    assert first == steps + 1 and newest <= count - 1


@pytest.mark.parametrize("arm", ["real+synthetic", "synthetic"])
def test_a_classifier_sees_the_same_whether_all_images_are_there_or_some(arm: str, tmp_path: Path) -> None:
    """Batch by batch; and its weights are those of a training on all images."""
    real, synthetic = pair()
    asked: list[tuple[int, ...]] = []
    gone: list[int] = []
    ahead = ahead_of(synthetic, 12, asked, gone)
    state = UnitState(tmp_path, ("unit",), "made from")
    stretches = ahead.stretches(QUEUE.steps)

    def go_on(_: str, saved: UnitState | None, stretch: Stretch) -> Classifier:
        drawn, part = ahead.images(stretch.generations), ahead.part(stretch)
        images, mixed = (drawn, None) if arm == "synthetic" else (real, drawn)
        return train(images, synthetic=mixed, settings=QUEUE, device="cpu", state=saved, part=part)

    go_side_by_side(ahead, stretches, {"unit": state}, go_on)
    found = go_on("unit", state, stretches[-1])
    assert asked == [(0,), (0, 1), (1, 2)] and gone == [0, 1]
    if arm == "real+synthetic":
        whole = train(real, synthetic=synthetic, settings=QUEUE, device="cpu")
        assert equal(found, whole)
        other = train(real, synthetic=synthetic, settings=QUEUE.model_copy(update={"mixing": "batch"}), device="cpu")
        assert not equal(other, whole)
    assert found.provenance["images" if arm == "synthetic" else "synthetic"]["sha256"] == "version"


def test_one_that_is_further_on_waits_for_the_others() -> None:
    """Classifiers go through a stretch one after the other, and nothing is given up that one of them needs."""
    _, synthetic = pair()
    log: list[object] = []
    ahead = replace(ahead_of(synthetic, 12, [], []), release=lambda number: log.append(number))
    stretches = ahead.stretches(30)

    class Saved(UnitState):
        def __init__(self, step: int) -> None:
            self.step = step

        def load(self) -> dict[str, torch.Tensor] | None:
            return {"step": torch.tensor(self.step)} if self.step else None

    units = {"new": Saved(0), "further": Saved(stretches[0].last + 1), "nearly": Saved(stretches[1].last)}
    go_side_by_side(ahead, stretches, units, lambda unit, _, stretch: log.append((unit, stretch.generations)))
    assert log == [("new", (0,)), 0, ("new", (0, 1)), ("further", (0, 1)), 1]


def test_what_training_would_not_go_on_from_goes_through_all_stretches(tmp_path: Path) -> None:
    """A state of a network of another form is one of them; what it trains then is as if there had been none."""
    real, synthetic = pair()
    ahead = ahead_of(synthetic, 12, [], [])
    stretches = ahead.stretches(QUEUE.steps)
    state = UnitState(tmp_path, ("unit",), "made from")

    def go_on(_: str, saved: UnitState | None, stretch: Stretch) -> Classifier:
        drawn, part = ahead.images(stretch.generations), ahead.part(stretch)
        return train(real, synthetic=drawn, settings=QUEUE, device="cpu", state=saved, part=part)

    go_on("unit", state, stretches[0])
    saved = state.load()
    assert saved is not None and int(saved["step"]) == stretches[0].last
    state.save({**saved, "form": torch.tensor(2)})
    seen: list[Stretch] = []
    go_side_by_side(ahead, stretches, {"unit": state}, lambda *of: (seen.append(of[2]), go_on(*of)))
    assert seen == stretches[:-1]
    assert equal(go_on("unit", state, stretches[-1]), train(real, synthetic=synthetic, settings=QUEUE, device="cpu"))


def test_images_that_were_given_up_are_not_trained_on(tmp_path: Path) -> None:
    """Where a state is lost between two stretches, -1 in the window is no row."""
    real, synthetic = pair()
    ahead = ahead_of(synthetic, 12, [], [])
    late, state = ahead.stretches(QUEUE.steps)[-1], UnitState(tmp_path, ("unit",), "made from")
    drawn = ahead.images(late.generations)
    with pytest.raises(DataError, match=r"state-.*step 1 were given up. Run the same command again"):
        train(real, synthetic=drawn, settings=QUEUE, device="cpu", state=state, part=ahead.part(late))


@pytest.mark.parametrize(
    "changes",
    [{"mixing": "curriculum"}, {"real_fraction": "auto"}, {"me_ada_every": 5}, {"online": 0, "online_keep": True}],
)
def test_what_needs_all_images_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"leave it out|leave out|give a number"):
        TrainSettings.model_validate({"online": 3, **changes})
    assert "online" not in TrainSettings().described() and TrainSettings(online=3).described()["online"] == 3
