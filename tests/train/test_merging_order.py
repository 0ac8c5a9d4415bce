"""In which order variants come: from far to near, or ever new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from training_toys import batches_seen, pair

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.train.mixing import Window, batches_at, far_to_near, make_pools, measure

PLAIN: dict[str, Any] = {"architecture": "resnet20", "augmentations": ("none",), "batch_size": 8}

# --- curriculum -------------------------------------------------------------------------------------------------------


def test_distance_is_the_root_mean_square_of_the_pixels() -> None:
    real, synthetic = pair()
    even = replace(synthetic, images=(real.images[torch.arange(36) % 12].int() - 7).clamp(min=0).to(torch.uint8))
    expected = []
    for row in range(36):
        gap = even.images[row].double() - real.images[row % 12].double()
        expected.append((gap**2).mean().sqrt().item())
    found = measure(real, even, "curriculum")
    assert found is not None and found.tolist() == pytest.approx(expected, rel=1e-5)
    stronger = measure(real, synthetic, "curriculum")
    assert stronger is not None and (stronger.diff() > 0).all()


def test_the_curriculum_goes_from_far_to_near() -> None:
    """At every step half of the variants can be drawn: the farther half first, the nearer half last, by rank."""
    settings = TrainSettings(**PLAIN, steps=400, mixing="curriculum")
    real, synthetic = pair()
    distance = measure(real, synthetic, "curriculum")
    assert distance is not None
    pools = make_pools(real, synthetic, settings, 0, distance)
    drawn: list[set[int]] = []
    for step in range(1, 401):
        ((images, labels),) = batches_at(step, settings, pools)
        rows = [int((synthetic.images == image).flatten(1).all(1).nonzero()[0, 0]) for image in images[4:]]
        assert labels[4:].tolist() == synthetic.labels[rows].tolist()
        drawn.append(set(rows))
    # The variants get farther with their row, alike in all three classes.
    assert set().union(*drawn[:20]) <= set(range(15, 36)) and set().union(*drawn[-20:]) <= set(range(21))
    means = [
        torch.tensor([float(row) for rows in drawn[k : k + 100] for row in rows]).mean() for k in range(0, 400, 100)
    ]
    assert means == sorted(means, reverse=True) and means[0] - means[-1] > 10
    assert set().union(*drawn) == set(range(36)), "every variant has its time"


def test_every_stretch_of_the_order_has_the_classes_in_their_proportions() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    distance = torch.rand(100, generator=generator) + 5 * (labels == 2)
    order = far_to_near(distance, labels)
    assert sorted(order.tolist()) == list(range(100))
    for label, share in ((0, 0.6), (1, 0.3), (2, 0.1)):
        of_class = order[labels[order] == label]
        assert (distance[of_class].diff() <= 0).all()
        for start in range(0, 60, 10):
            assert abs(int((labels[order[start : start + 40]] == label).sum()) - 40 * share) <= 2


# --- queue ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "slots", "at_once", "steps"), [(20, 10, 1, 50), (36, 12, 2, 100), (30, 7, 3, 9)])
def test_a_window_holds_a_stretch_of_its_order_that_moves_with_the_steps(
    images: int, slots: int, at_once: int, steps: int
) -> None:
    order = torch.randperm(images, generator=torch.Generator().manual_seed(1))
    window = Window(order, slots, at_once)
    changes = -(-(images - slots) // at_once)
    before = window.rows(torch.arange(slots), 1, steps)
    assert before.tolist() == order[:slots].tolist()
    for step in range(1, steps + 1):
        now = window.rows(torch.arange(slots), step, steps)
        gone = min(at_once * ((step - 1) * (changes + 1) // steps), images - slots)
        assert set(now.tolist()) == set(order[gone : gone + slots].tolist())
        kept = [slot for slot in range(slots) if before[slot] in now]
        assert all(now[slot] == before[slot] for slot in kept), "what stays keeps its slot"
        assert torch.equal(window.rows(torch.tensor([3, 0]), step, steps), now[[3, 0]])
        before = now
    if steps > changes:
        assert set(before.tolist()) == set(order[images - slots :].tolist()), "the last images were there"


def test_a_queue_has_one_variant_of_each_source_and_its_oldest_tenth_is_replaced() -> None:
    """12 sources, so 2 images at a time, 12 times over the training: each stays for as long as the others."""
    settings = TrainSettings(**PLAIN, steps=130, mixing="queue")
    real, synthetic = pair()
    places = measure(real, synthetic, "queue")
    assert places is not None and places.tolist() == [0.0] * 12 + [1.0] * 12 + [2.0] * 12
    window = make_pools(real, synthetic, settings, 0, places)[1].window
    assert window is not None
    held = [window.rows(torch.arange(12), step, 130).tolist() for step in range(1, 131)]
    for step, rows in enumerate(held):
        assert sorted({row % 12 for row in rows}) == list(range(12))
        assert set(rows) == set(range(2 * (step // 10), 2 * (step // 10) + 12))
    whole = batches_seen(settings, real, synthetic)
    for rows, batch in zip(held, whole, strict=True):
        found = [int((synthetic.images == image).flatten(1).all(1).nonzero()[0, 0]) for image in batch[4:]]
        assert set(found) <= set(rows)


def test_the_order_of_the_files_of_a_source_is_that_of_its_variants() -> None:
    _, synthetic = pair()
    mixed = synthetic.subset(torch.randperm(36, generator=torch.Generator().manual_seed(0)).tolist())
    places = measure(mixed, mixed, "queue")
    assert places is not None
    for source in set(mixed.source_ids):
        rows = [row for row, one in enumerate(mixed.source_ids) if one == source]
        assert places[rows].tolist() == [0.0, 1.0, 2.0]
