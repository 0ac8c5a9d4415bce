"""Subgroups: closed forms of rates and intervals, signs, the worst that is lowered, replicates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import Tensor

from diffusion_inversion.train.arms import ArmResults, ArmRun
from diffusion_inversion.train.evaluation import calibration_error, score
from diffusion_inversion.train.replicated import Replicated
from diffusion_inversion.train.subgroups import subgroups

IDS = tuple(f"i{row}" for row in range(60))
LABELS = torch.arange(60) % 2
SEX = {image_id: "fm"[row >= 20] for row, image_id in enumerate(IDS)}  # 20 f, 40 m


def replicate(hits: dict[str, Tensor], ids: tuple[str, ...] = IDS, seed: int = 0, number: int = 0) -> Replicated:
    """A replicate whose arms recognised the test images of `hits` (seeds, images) bool, with random confidences."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.tensor([int(image_id[1:]) % 2 for image_id in ids])
    runs = []
    for arm, rows in hits.items():
        for one, row in enumerate(rows):
            confidences = 0.5 + torch.rand(len(ids), generator=stream, dtype=torch.float64) / 2
            found = score(labels, torch.where(row, labels, 1 - labels), 2, confidences)
            runs.append(ArmRun(arm, one, found, 1.0, None))
    return Replicated(Path(str(number)), ArmResults(tuple(runs), labels, ("a", "b")), (), ids)


def drawn(rates: dict[str, tuple[float, float]], seeds: int = 5, seed: int = 0) -> dict[str, Tensor]:
    """Hits of each arm, at these rates of f and of m, the same images at every seed but for one in ten."""
    rng = np.random.default_rng(seed)
    found = {}
    for arm, (of_f, of_m) in rates.items():
        rate = np.where(np.arange(60) < 20, of_f, of_m)
        ease = (np.argsort(np.argsort(rng.random(60))) + 0.5) / 60
        found[arm] = torch.from_numpy((ease < rate) ^ (rng.random((seeds, 60)) < 0.1))
    return found


def test_rates_and_intervals_by_hand() -> None:
    hits = drawn({"real": (0.5, 0.8), "real+synthetic": (0.6, 0.9)})
    found = subgroups([replicate(hits)], SEX)
    assert [(part.value, part.images) for part in found.parts] == [("f", 20), ("m", 40)]
    for part, columns in zip(found.parts, (slice(0, 20), slice(20, 60)), strict=True):
        for arm, rows in hits.items():
            own = rows[:, columns].double().numpy()
            rates, per_image = own.mean(1), own.mean(0)
            half = math.sqrt(
                t.ppf(0.975, 4) ** 2 * rates.var(ddof=1) / 5
                + t.ppf(0.975, len(per_image) - 1) ** 2 * per_image.var(ddof=1) / len(per_image)
            )
            estimate = part.accuracy[arm]
            assert estimate.mean == pytest.approx(rates.mean())
            assert estimate.low == pytest.approx(max(rates.mean() - half, 0))
            assert estimate.high == pytest.approx(min(rates.mean() + half, 1))
        (compared,) = part.comparisons
        ours, theirs = (hits[arm][:, columns].double().mean() for arm in ("real+synthetic", "real"))
        assert compared.difference == pytest.approx(float(ours - theirs))
        assert compared.simultaneous_confidence == pytest.approx(1 - 0.05 / 2), "one arm on two subgroups"


def test_calibration_is_that_of_the_images_of_the_subgroup() -> None:
    one = replicate(drawn({"real": (0.5, 0.8)}))
    part = subgroups([one], SEX).parts[0]
    errors = []
    for run in one.results.runs:
        assert run.evaluation.confidences is not None
        correct = run.evaluation.predictions == LABELS
        errors.append(calibration_error(run.evaluation.confidences[:20], correct[:20]))
    half = t.ppf(0.975, 4) * np.std(errors, ddof=1) / math.sqrt(5)
    estimate = part.ece["real"]
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx(
        (np.mean(errors), np.mean(errors) - half, np.mean(errors) + half)
    )


def test_the_worst_subgroup_that_is_lowered_is_found_and_no_other() -> None:
    real = (0.6, 0.95)
    lower = subgroups([replicate(drawn({"real": real, "real+synthetic": (0.05, 0.95)}))], SEX)
    assert lower.worst is not None and lower.worst.value == "f"
    assert [one.arm for one in lower.lowered] == ["real+synthetic"] and lower.lowered[0].difference < -0.3
    raised = subgroups([replicate(drawn({"real": real, "real+synthetic": (0.95, 0.4)}))], SEX)
    assert raised.worst is not None and raised.worst.value == "f" and raised.lowered == ()
    assert raised.parts[1].comparisons[0].outcome() == "harms", "it is the better one that is lowered"


def test_without_real_images_alone_nothing_is_compared() -> None:
    found = subgroups([replicate(drawn({"synthetic": (0.5, 0.8)}))], SEX)
    assert found.baseline is None and found.worst is None and found.lowered == ()
    assert all(part.comparisons == () for part in found.parts)


def test_one_seed_has_no_interval() -> None:
    part = subgroups([replicate(drawn({"real": (0.5, 0.8)}, seeds=1))], SEX).parts[0]
    assert part.accuracy["real"].low is None and part.ece["real"].high is None


def test_the_order_of_test_images_plays_no_part() -> None:
    hits = drawn({"real": (0.5, 0.8), "synthetic": (0.4, 0.9)})
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    turned = replicate({arm: rows[:, order] for arm, rows in hits.items()}, tuple(IDS[row] for row in order))
    one, other = subgroups([replicate(hits)], SEX), subgroups([turned], SEX)
    for part, same in zip(one.parts, other.parts, strict=True):
        assert part.accuracy["real"].mean == pytest.approx(same.accuracy["real"].mean)
        assert part.comparisons[0].interval == pytest.approx(same.comparisons[0].interval)


def test_replicates_count_with_the_test_images_that_they_have() -> None:
    halves = [IDS[:20], IDS[10:40], IDS[:20] + IDS[50:]]  # the first has no m
    hits = [drawn({"real": (0.5, 0.8), "synthetic": (0.4, 0.9)}, 2, seed) for seed in range(3)]
    rows = [[int(image_id[1:]) for image_id in ids] for ids in halves]
    made = [
        replicate({arm: found[:, own] for arm, found in hit.items()}, ids, number=number)
        for number, (hit, own, ids) in enumerate(zip(hits, rows, halves, strict=True))
    ]
    of_f, of_m = subgroups(made, SEX).parts
    assert (of_f.images, of_m.images) == (20, 30)
    of_real = [hit["real"][:, [row for row in own if row >= 20]].double() for hit, own in zip(hits, rows, strict=True)]
    assert of_m.accuracy["real"].mean == pytest.approx(np.mean([float(found.mean()) for found in of_real[1:]]))
    assert of_m.comparisons[0].unit == "replicates" and len(of_m.comparisons[0].differences) == 2
