"""Recipes resolve to stated numbers; batches hold what the mixing says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import Cut
from torch import Tensor
from training_toys import batches_seen, toy

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.config.tuning import PAPER_FRACTIONS
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.engine import state as unit_state
from diffusion_inversion.engine.state import UnitState
from diffusion_inversion.train import training
from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.evaluation import evaluate
from diffusion_inversion.train.mixing import Pool, counts_at
from diffusion_inversion.train.recipes import RECIPES, Recipe, make_optimizer, make_schedule, resolve, resolved
from diffusion_inversion.train.training import recipe, train

PLAIN = {"architecture": "resnet20", "augmentations": ("none",)}


def test_the_papers_recipes_are_the_papers() -> None:
    assert RECIPES["paper-sgd"] == Recipe("sgd", 0.1, 0.9, 5e-4, "cosine", 0.0, 128)
    medmnist = RECIPES["medmnist-adamw"]
    assert (medmnist.optimizer, medmnist.learning_rate, medmnist.weight_decay) == ("adamw", 1e-3, 5e-4)


def test_given_numbers_override_the_recipe_and_the_record_spells_all_out() -> None:
    settings = TrainSettings(recipe="medmnist-adamw", learning_rate=0.02)
    assert resolve(settings) == replace(RECIPES["medmnist-adamw"], learning_rate=0.02)
    found = recipe(settings, torch.device("cpu"))
    assert found["settings"]["learning_rate"] == 0.02 and found["settings"]["batch_size"] == 128
    assert found["recipe"]["schedule"] == "cosine" and found["recipe"]["optimizer"] == "adamw"
    # What was recorded makes the same settings again: `dinv repair` trains from it.
    again = TrainSettings(**found["settings"], architecture=found["architecture"])
    assert again == resolved(again) and recipe(again, torch.device("cpu")) == found


@pytest.mark.parametrize(("warm_up", "steps"), [(1, 2), (10, 100), (99, 100), (1000, 5000)])
def test_the_warm_up_is_that_of_the_papers_code(warm_up: int, steps: int) -> None:
    """train_net.py: LinearLR from 0.001 chained with a cosine over all steps that ends at 0.001 of the rate."""
    chosen = resolve(TrainSettings(steps=steps, warm_up_steps=warm_up))
    ours, theirs = (make_optimizer(chosen, [torch.nn.Parameter(torch.zeros(1))]) for _ in range(2))
    schedule = make_schedule(chosen, ours, steps)
    linear = torch.optim.lr_scheduler.LinearLR(theirs, start_factor=0.001, total_iters=warm_up)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=steps, eta_min=0.1 * 0.001)
    chained = torch.optim.lr_scheduler.ChainedScheduler([linear, cosine])
    for _ in range(steps):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6, abs=1e-12)
        for optimizer, follows in ((ours, schedule), (theirs, chained)):
            optimizer.step()
            follows.step()


def test_the_warm_up_is_of_the_record() -> None:
    plain, warmed = (recipe(TrainSettings(steps=100, warm_up_steps=count), torch.device("cpu")) for count in (0, 10))
    assert (plain["recipe"]["warm_up_steps"], warmed["recipe"]["warm_up_steps"]) == (0, 10)
    assert warmed["settings"]["warm_up_steps"] == 10
    with pytest.raises(ValueError, match="warm_up_steps=100: not fewer than steps=100"):
        TrainSettings(steps=100, warm_up_steps=100)
    with pytest.raises(ValueError, match="fast has a rise of its own"):
        TrainSettings(recipe="fast", warm_up_steps=1)


@pytest.mark.parametrize("name", ["paper-sgd", "medmnist-adamw", "fast"])
@pytest.mark.parametrize("steps", [1, 2, 4, 100])
def test_schedules_rise_and_fall_over_the_steps(name: Any, steps: int) -> None:
    chosen = resolve(TrainSettings(recipe=name))
    optimizer = make_optimizer(chosen, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(chosen, optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(0 <= rate <= chosen.learning_rate * (1 + 1e-9) for rate in rates)
    if steps == 100:
        top = max(range(steps), key=lambda k: rates[k])
        assert rates[top] == pytest.approx(chosen.learning_rate) and rates[-1] < 0.01 * chosen.learning_rate
        assert top == (0 if chosen.schedule == "cosine" else 29)


@pytest.mark.parametrize("name", ["paper-sgd", "medmnist-adamw", "fast"])
def test_every_recipe_learns_and_sets_its_optimizer(name: Any) -> None:
    settings = TrainSettings(recipe=name, architecture="resnet20", steps=40, batch_size=16)
    classifier = train(toy(60, 0, size=16), settings=settings, device="cpu")
    assert evaluate(classifier, toy(120, 1, size=16)).accuracy > 0.9
    group = make_optimizer(resolve(settings), [torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    chosen = RECIPES[name]
    assert (group["lr"], group["weight_decay"]) == (chosen.learning_rate, chosen.weight_decay)
    assert group.get("momentum", group.get("betas", (None,))[0]) == chosen.momentum


@pytest.mark.parametrize(("fraction", "real"), list(zip(PAPER_FRACTIONS, (16, 32, 64, 96, 112), strict=True)))
def test_the_papers_ratios_are_whole_images_of_a_batch_of_128(fraction: float, real: int) -> None:
    assert counts_at(1, TrainSettings(real_fraction=fraction), 2) == [real, 128 - real]


def marked() -> tuple[LabelledImages, LabelledImages]:
    """20 real images whose first pixel is 1, 60 synthetic ones where it is 0."""
    real, synthetic = toy(20, 0), toy(60, 1, name="synthetic")
    real.images[:, 0, 0, 0], synthetic.images[:, 0, 0, 0] = 1, 0
    return real, synthetic


def shares(settings: TrainSettings) -> list[int]:
    real, synthetic = marked()
    return [int(batch[:, 0, 0, 0].sum()) for batch in batches_seen(settings, real, synthetic)]


def test_sequential_is_synthetic_first_and_then_real() -> None:
    halves = TrainSettings(**PLAIN, steps=6, batch_size=8, mixing="sequential")
    assert shares(halves) == [0, 0, 0, 8, 8, 8]
    assert shares(halves.model_copy(update={"real_fraction": 1 / 3})) == [0, 0, 0, 0, 8, 8]
    assert shares(halves.model_copy(update={"real_fraction": 0.999})) == [0, 8, 8, 8, 8, 8]
    assert shares(halves.model_copy(update={"steps": 1})) == [8]
    real, synthetic = marked()
    ours = batches_seen(halves, real, synthetic)
    assert torch.equal(torch.cat(ours[3:]), torch.cat(batches_seen(halves, real)[:3])), "real images in the same order"


def test_concatenation_draws_every_image_once_an_epoch() -> None:
    settings = TrainSettings(**PLAIN, steps=10, batch_size=8, mixing="concatenate", real_fraction=0.9)
    real, synthetic = marked()
    epoch = torch.cat(batches_seen(settings, real, synthetic))
    everything = torch.cat([real.images, synthetic.images])
    assert sorted(i.numpy().tobytes() for i in epoch) == sorted(i.numpy().tobytes() for i in everything)
    assert len(set(shares(settings))) > 1, "the share is not fixed"


def test_mixing_changes_nothing_for_one_set() -> None:
    real, _ = marked()
    seen = [
        torch.cat(batches_seen(TrainSettings(**PLAIN, steps=4, batch_size=8, mixing=mixing), real))
        for mixing in ("batch", "concatenate", "sequential")
    ]
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_copies_join_a_pool_from_the_next_epoch_on() -> None:
    pool = Pool(torch.arange(4).view(4, 1, 1, 1).to(torch.uint8), torch.arange(4), torch.Generator().manual_seed(0))
    first = pool.draw(2)[1]
    pool.add(torch.full((2, 1, 1, 1), 9, dtype=torch.uint8), torch.tensor([7, 8]))
    assert sorted(torch.cat([first, pool.draw(2)[1]]).tolist()) == [0, 1, 2, 3]
    images, labels = pool.draw(6)
    assert sorted(labels.tolist()) == [0, 1, 2, 3, 7, 8]
    assert [int(i) for i in images[labels > 6]] == [9, 9]


def test_adversarial_copies_are_worse_for_the_network_and_come_round_by_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is saved of a training after a step: its network, and the copies that joined its images."""
    monkeypatch.setattr(unit_state, "EVERY", 0.0)
    ascent = {"me_ada_steps": 3, "me_ada_rate": 0.02, "me_ada_eta": 0.0}
    settings = TrainSettings(**PLAIN, **ascent, me_ada_every=3, me_ada_share=0.25, steps=9, batch_size=8)
    images = toy(20, 0)
    for step, added in ((2, 0), (3, 5), (5, 5), (6, 10), (8, 10)):
        state = UnitState(tmp_path, (str(step),), 0)

        def cut(now: int, loss: float, last: int = step) -> None:
            if now > last:
                raise Cut

        with pytest.raises(Cut):
            train(images, settings=settings, device="cpu", on_step=cut, state=state)
        saved = state.load()
        assert saved is not None and saved["step"] == step
        copies, labels = saved["pool.0.copies"], saved["pool.0.copy_labels"]
        assert len(copies) == len(labels) == added
        counted = {int(value) for name, value in saved.items() if name.endswith("num_batches_tracked")}
        assert counted == {step}, "the network that is asked for copies is one in use: it learns no mean from them"
        if step % 3:
            continue
        classifier = Classifier("resnet20", images.class_names, images.size).eval()
        classifier.network.load_state_dict(
            {name.removeprefix("network."): value for name, value in saved.items() if name.startswith("network.")}
        )
        copies, labels = copies[-5:], labels[-5:]  # of this step
        near = (copies[:, None].int() - images.images[None].int()).abs().flatten(2).sum(2).argmin(1)
        assert torch.equal(images.labels[near], labels), "the label is that of the original"
        with torch.no_grad():
            moved, at_first = (
                torch.nn.functional.cross_entropy(classifier(one), labels) for one in (copies, images.images[near])
            )
        assert moved > at_first
    without = train(images, settings=settings.model_copy(update={"me_ada_every": 0}), device="cpu")
    again = train(images, settings=settings, device="cpu")
    assert not torch.equal(without.state_dict()["network.conv1.weight"], again.state_dict()["network.conv1.weight"])


def test_soft_targets_reach_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    goals: list[Tensor] = []
    loss = training.F.cross_entropy

    def look(logits: Tensor, goal: Tensor, **options: float) -> Tensor:
        goals.append(goal)
        return loss(logits, goal, **options)

    monkeypatch.setattr(training.F, "cross_entropy", look)
    for names in (("mixup",), ("default", "cutout")):
        train(toy(20, 0), settings=TrainSettings(architecture="resnet20", steps=1, batch_size=8, augmentations=names))
    mixed, hard = goals
    assert mixed.shape == (8, 3) and mixed.sum(1).tolist() == pytest.approx([1] * 8)
    assert ((mixed > 0) & (mixed < 1)).any()
    assert hard.shape == (8,) and hard.dtype == torch.int64
