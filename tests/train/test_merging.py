"""How real and synthetic images are merged: what each step sees, in which order, and with which weight in the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_toys import batches_seen, equal, pair, toy

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.data.soft_labels import SoftLabels
from diffusion_inversion.engine.state import UnitState
from diffusion_inversion.errors import DataError
from diffusion_inversion.randomness import generator_for
from diffusion_inversion.train import training
from diffusion_inversion.train.arms import check_arms, train_arms
from diffusion_inversion.train.augment import make_augmentation
from diffusion_inversion.train.choosing import Material
from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.mixing import (
    batches_at,
    counts_at,
    make_pools,
    measure,
    shares_of,
    weighted_loss,
)
from diffusion_inversion.train.training import train

PLAIN: dict[str, Any] = {"architecture": "resnet20", "augmentations": ("none",), "batch_size": 8}
NEW = ("real-last", "curriculum", "queue", "two-losses", "confidence")


def real_in(batches: list[Tensor]) -> list[int]:
    return [int(batch[:, 0, 0, 0].sum()) for batch in batches]


# --- what is in a batch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", ["batch", *NEW, "sequential", "concatenate"])
@pytest.mark.parametrize("fraction", [0.125, 0.5, 0.875])
def test_every_step_of_every_mixing_sees_as_many_images(mixing: Any, fraction: float) -> None:
    settings = TrainSettings(**PLAIN, steps=20, mixing=mixing, real_fraction=fraction)
    real, synthetic = pair()
    pools = make_pools(real, synthetic, settings, 0, measure(real, synthetic, mixing))
    for step in range(1, 21):
        assert sum(len(images) for images, _ in batches_at(step, settings, pools)) == 8
        assert sum(counts_at(step, settings, len(pools))) == 8
    assert sum(shares_of(settings, len(pools))) == pytest.approx(1)


@pytest.mark.parametrize(("steps", "last"), [(20, 2), (10, 1), (2, 1), (34, 3), (36, 4)])
def test_the_last_tenth_sees_real_images_alone(steps: int, last: int) -> None:
    settings = TrainSettings(**PLAIN, steps=steps, mixing="real-last", real_fraction=0.25)
    counts = [counts_at(step, settings, 2) for step in range(1, steps + 1)]
    assert counts == [[2, 6]] * (steps - last) + [[8, 0]] * last


def test_training_sees_what_the_counts_say() -> None:
    real, synthetic = pair()
    few = {**PLAIN, "steps": 5, "real_fraction": 0.25}
    assert real_in(batches_seen(TrainSettings(**few, mixing="real-last"), real, synthetic)) == [2, 2, 2, 2, 8]
    assert real_in(batches_seen(TrainSettings(**few, mixing="curriculum"), real, synthetic)) == [2] * 5
    assert real_in(batches_seen(TrainSettings(**few, mixing="confidence"), real, synthetic)) == [2] * 5
    halves = batches_seen(TrainSettings(**few, mixing="two-losses"), real, synthetic)
    assert real_in(halves) == [4, 0] * 5 and {len(batch) for batch in halves} == {4}


@pytest.mark.parametrize("mixing", NEW)
def test_one_set_alone_is_not_mixed(mixing: Any) -> None:
    real, _ = pair()
    plain = TrainSettings(**PLAIN, steps=3)
    other = plain.model_copy(update={"mixing": mixing})
    assert torch.equal(torch.cat(batches_seen(plain, real)), torch.cat(batches_seen(other, real)))


# --- two losses -------------------------------------------------------------------------------------------------------


def test_two_losses_have_the_weighted_sum_of_their_gradients_and_keep_the_statistics_of_real_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One step of plain gradient descent: w - rate (r g_real + (1 - r) g_synthetic), each gradient taken alone."""
    monkeypatch.setattr(training, "bfloat16_is_fast", lambda _: False)
    real, synthetic = pair()
    rate, share = 0.05, 0.25
    settings = TrainSettings(
        **PLAIN, steps=1, mixing="two-losses", real_fraction=share, learning_rate=rate, momentum=0.0, weight_decay=0.0
    )
    pools = make_pools(real, synthetic, settings, 0)
    ((images, labels), (others, their_labels)) = batches_at(1, settings, pools)
    assert (len(images), len(others)) == (4, 4)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator_for("train", 0, "weights").get_state())
        by_hand = Classifier("resnet20", real.class_names, real.size).train()
    gradients = []
    statistics = {}
    for batch, goal in ((images, labels), (others, their_labels)):
        by_hand.zero_grad()
        F.cross_entropy(by_hand(batch), goal).backward()
        gradients.append([parameter.grad.clone() for parameter in by_hand.parameters() if parameter.grad is not None])
        if not statistics:
            statistics = {name: value.clone() for name, value in by_hand.named_buffers() if "running" in name}
    trained = train(real, synthetic=synthetic, settings=settings, device="cpu")
    for now, before, one, other in zip(trained.parameters(), by_hand.parameters(), *gradients, strict=True):
        step = share * one + (1 - share) * other
        torch.testing.assert_close(before - now.detach(), rate * step, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(gradients[0][0], gradients[1][0], rtol=0.1)
    after = dict(trained.named_buffers())
    for name, value in statistics.items():
        torch.testing.assert_close(after[name], value)
    assert statistics and all(one.track_running_stats for one in trained.modules() if hasattr(one, "running_mean"))


# --- confidence -------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_by_weight() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1, 0])
    weights = torch.tensor([1.0, 0.5, 0.0, 0.25, 1.0])
    goal = weights[:, None] * F.one_hot(labels, 3)
    for smoothing in (0.0, 0.1):
        each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        found = weighted_loss(logits, goal, label_smoothing=smoothing)
        assert found.item() == pytest.approx(((weights * each).sum() / 2.75).item(), rel=1e-6)
        whole = weighted_loss(logits, F.one_hot(labels, 3).float(), label_smoothing=smoothing)
        assert whole.item() == pytest.approx(each.mean().item(), rel=1e-6)


def test_weights_come_with_the_images_and_real_ones_weigh_one() -> None:
    real, synthetic = pair()
    settings = TrainSettings(**PLAIN, steps=1, mixing="confidence", real_fraction=0.25)
    soft = replace(synthetic, soft=SoftLabels((synthetic.labels + 1) % 3, torch.full((36,), 0.75)))
    for images in (synthetic, soft):
        pools = make_pools(real, images, settings, 0, measure(real, images, "confidence"))
        ((drawn, goal),) = batches_at(1, settings, pools)
        assert goal[:2].sum(1).tolist() == [1.0, 1.0] and goal[:2].max(1).values.tolist() == [1.0, 1.0]
        for image, row in zip(drawn[2:], goal[2:], strict=True):
            place = int((images.images == image).flatten(1).all(1).nonzero()[0, 0])
            sure, label = 1 - place / 40, int(images.labels[place])
            assert row.sum().item() == pytest.approx(sure, rel=1e-6)
            assert row[label].item() == pytest.approx(sure * (1.0 if images.soft is None else 0.75), rel=1e-6)


def test_mixup_blends_weights_with_the_share_of_the_pixels() -> None:
    """sum_k of a blended row is the blend of the weights: what is not trusted weighs little wherever it is mixed in."""
    weights = torch.tensor([1.0, 0.2, 0.7, 0.4])
    images = torch.tensor([0, 40, 100, 240], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 8, 8).contiguous()
    targets = weights[:, None] * F.one_hot(torch.tensor([0, 1, 2, 0]), 3)
    mixed, found = make_augmentation(("mixup",), 3)(images, targets, torch.Generator().manual_seed(2))
    assert found.sum().item() == pytest.approx(weights.sum().item(), rel=1e-5)
    for row in range(4):
        fits = []
        for partner in range(4):
            if partner != row:
                share = (mixed[row, 0, 0, 0].double() - images[row, 0, 0, 0]) / (
                    images[partner, 0, 0, 0].double() - images[row, 0, 0, 0]
                )
                blend = (1 - share) * weights[row] + share * weights[partner]
                fits.append(abs(found[row].sum().item() - blend.item()))
        assert min(fits) < 0.02


def test_what_a_judge_doubts_does_not_change_the_weights_of_the_network() -> None:
    """With no confidence in any variant the step is that of its real images alone, up to batch normalisation."""
    real, synthetic = pair()
    settings = TrainSettings(
        **PLAIN, steps=1, mixing="confidence", learning_rate=0.05, momentum=0.0, weight_decay=0.0, real_fraction=0.5
    )
    doubted = replace(synthetic, confidence=torch.zeros(36))
    relabelled = replace(doubted, labels=(doubted.labels + 1) % 3)
    one, other = (train(real, synthetic=images, settings=settings, device="cpu") for images in (doubted, relabelled))
    assert equal(one, other), "a label that weighs nothing can be any"
    trusted = train(real, synthetic=synthetic, settings=settings, device="cpu")
    assert not equal(one, trusted)
    sure = replace(synthetic, confidence=torch.ones(36))
    plain = train(real, synthetic=sure, settings=settings.model_copy(update={"mixing": "batch"}), device="cpu")
    alike = train(real, synthetic=sure, settings=settings, device="cpu")
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(alike.state_dict()[key], value, rtol=1e-2, atol=1e-5)


# --- what identifies them, what is refused, and what a kill leaves ----------------------------------------------------


def test_what_a_mixing_reads_is_part_of_what_identifies_its_classifiers(tmp_path: Path) -> None:
    real, synthetic = pair()
    test = toy(9, 5, name="test")
    base = TrainSettings(**PLAIN, steps=1, seeds=(0,), arms=("real", "synthetic", "real+synthetic"))

    def units(images: LabelledImages, mixing: str, folder: str) -> dict[str, str]:
        settings = base.model_copy(update={"mixing": mixing})
        found = train_arms(real, images, test, settings=settings, device="cpu", folder=tmp_path / folder)
        return {run.arm: run.classifier.name for run in found.runs if run.classifier is not None}

    plain = units(replace(synthetic, source_ids=(), confidence=None), "batch", "a")
    assert units(synthetic, "batch", "b") == plain, "what is not read makes no difference"
    judged = units(synthetic, "confidence", "c")
    again = units(replace(synthetic, confidence=torch.ones(36)), "confidence", "c")
    assert judged["real"] == again["real"] == plain["real"] and judged["synthetic"] == again["synthetic"]
    assert len({names["real+synthetic"] for names in (plain, judged, again)}) == 3
    assert Material(synthetic, []).key != Material(replace(synthetic, confidence=torch.ones(36)), []).key


def test_images_without_what_a_mixing_reads_are_refused_before_the_work() -> None:
    real, synthetic = pair()
    bare = replace(synthetic, source_ids=(), confidence=None)
    foreign = replace(synthetic, source_ids=("elsewhere", *synthetic.source_ids[1:]))
    for images, mixing, said in (
        (bare, "confidence", "not every image has a confidence"),
        (bare, "curriculum", "no image has a source on record"),
        (bare, "queue", "no image has a source on record"),
        (foreign, "curriculum", "1 of 36 images have no source among the real ones, as elsewhere"),
    ):
        settings = TrainSettings(**PLAIN, steps=1, mixing=mixing)
        with pytest.raises(DataError, match=said):
            train(real, synthetic=images, settings=settings, device="cpu")
        with pytest.raises(DataError, match=said):
            check_arms(real, images, toy(9, 5, name="test"), settings)
        alone = settings.model_copy(update={"arms": ("real", "synthetic")})
        assert len(check_arms(real, images, toy(9, 5, name="test"), alone)) == 2


@pytest.mark.parametrize("values", [[0.5, 1.5], [0.5, float("nan")], [0.5]])
def test_impossible_measures_are_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match=r"as many confidences, each in 0\.\.1"):
        replace(toy(2, 0), confidence=torch.tensor(values))
    with pytest.raises(DataError, match="as many ids of sources, not 1"):
        replace(toy(2, 0), source_ids=("one",))


def test_settings_that_cannot_go_together_are_refused() -> None:
    for mixing in ("curriculum", "queue", "confidence"):
        with pytest.raises(ValueError, match=f"with mixing={mixing} adversarial copies would need"):
            TrainSettings(mixing=mixing, me_ada_every=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two images of each kind; give at least 4"):
        TrainSettings(mixing="two-losses", batch_size=3)


def test_a_subset_keeps_what_belongs_to_its_images() -> None:
    _, synthetic = pair()
    part = synthetic.subset([5, 2])
    assert part.source_ids == (synthetic.source_ids[5], synthetic.source_ids[2])
    assert part.confidence is not None and part.confidence.tolist() == pytest.approx([1 - 5 / 40, 1 - 2 / 40])


@pytest.mark.parametrize(
    "changed",
    [
        {"mixing": "real-last"},
        {"mixing": "real-last", "me_ada_every": 2, "me_ada_share": 0.5, "me_ada_steps": 1},
        {"mixing": "curriculum"},
        {"mixing": "queue"},
        {"mixing": "two-losses", "augmentations": ("default", "mixup"), "real_fraction": 0.3},
        {"mixing": "two-losses", "me_ada_every": 2, "me_ada_share": 0.5, "me_ada_steps": 1},
        {"mixing": "confidence", "recipe": "fast", "augmentations": ("default", "cutmix")},
    ],
    ids=["real-last", "real-last-ada", "curriculum", "queue", "two-losses", "two-losses-ada", "confidence"],
)
def test_a_kill_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]) -> None:
    real, synthetic = pair()
    settings = TrainSettings(**{**PLAIN, "steps": 6, **changed})
    whole = train(real, synthetic=synthetic, settings=settings, device="cpu")

    class Killed(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise Killed

    monkeypatch.setattr("diffusion_inversion.engine.state.EVERY", 0.0)
    with pytest.raises(Killed):
        train(
            real, synthetic=synthetic, settings=settings, device="cpu", on_step=stop,
            state=UnitState(tmp_path, ("unit",), "x"),
        )  # fmt: skip
    steps: list[int] = []
    again = train(
        real, synthetic=synthetic, settings=settings, device="cpu", on_step=lambda step, _: steps.append(step),
        state=UnitState(tmp_path, ("unit",), "x"),
    )  # fmt: skip
    assert steps == [4, 5, 6]
    assert equal(again, whole) and again.provenance == whole.provenance
