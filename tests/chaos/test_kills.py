"""A stage that is killed at any moment ends, after the same command, as if it had never been killed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness import STAGES, Bench, Kill, assert_same, finish, kill_during, uninterrupted

from diffusion_inversion.engine.faults import POINTS

KILLS = 14  # of each stage; campaign.py makes hundreds
NAMES = tuple(STAGES)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench.build(tmp_path_factory.mktemp("bench"), to_learn=8)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path, float, dict[str, int]]]:
    """For each stage: the run before it, the run after it, its seconds, its passes of each fault point."""
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    before = folder / "empty"
    before.mkdir()
    for stage in NAMES:
        after = folder / stage
        shutil.copytree(before, after)
        seconds, passed = uninterrupted(bench, after, stage)
        found[stage] = (before, after, seconds, passed)
        before = after
    return found


def kills(stage: str, seconds: float, passed: dict[str, int], count: int, seed: int) -> list[Kill]:
    """Every fault point at its first pass and its last, then some between and random moments."""
    stream = random.Random(f"{stage} {seed}")
    found = [Kill(point, nth) for point in POINTS for nth in sorted({1, passed[point]}) if passed[point]]
    while len(found) < count:
        if stream.random() < 0.5:
            found.append(Kill(seconds=stream.uniform(0, 1.2 * seconds)))
        else:
            point = stream.choice([point for point in POINTS if passed[point]])
            found.append(Kill(point, stream.randint(1, passed[point])))
    return found[:count]


@pytest.mark.parametrize("stage", NAMES)
def test_a_killed_stage_ends_as_if_it_had_not_been(stage: str, bench: Bench, whole: dict, tmp_path: Path) -> None:
    before, after, seconds, passed = whole[stage]
    killed = 0
    for number, kill in enumerate(kills(stage, seconds, passed, KILLS, seed=0)):
        run = tmp_path / str(number)
        shutil.copytree(before, run)
        killed += kill_during(bench, run, stage, kill)
        finish(bench, run, stage)
        assert_same(run, after)
        shutil.rmtree(run)
    assert killed >= KILLS * 2 // 3, "most kills must hit the stage while it works"


def test_a_stage_that_is_killed_again_and_again_gets_there(bench: Bench, whole: dict, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage in NAMES[:-1]:  # a report is written at once
        _, after, _, passed = whole[stage]
        deaths = 0
        while kill_during(bench, run, stage, Kill("recorded", passed["recorded"] // 2)):
            deaths += 1
        assert deaths >= 2
        assert_same(run, after)
