"""Stage `timesteps`: the search against a known least, and going on after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.checkpoints import MINI
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.generator.timesteps import FILE, align_your_steps
from diffusion_inversion.pretrain import timesteps
from diffusion_inversion.pretrain.corpus import Corpus
from diffusion_inversion.pretrain.timesteps import STRIDES, Grid, learn_timesteps, search

CPU = torch.device("cpu")


def test_the_search_ends_at_the_least_and_stays_within_the_schedule() -> None:
    """A bowl about (900, 520, 77), whose sides are coupled; and one whose middle lies outside."""
    tried: list[Grid] = []

    def distance(grid: Grid) -> float:
        tried.append(grid)
        a, b, c = (t - m for t, m in zip(grid, (900, 520, 77), strict=True))
        return a * a + b * b + c * c + 0.5 * a * b

    best, count = search(distance, [(999, 666, 333), (700, 300, 10)], 1000)
    assert max(abs(t - m) for t, m in zip(best, (900, 520, 77), strict=True)) <= STRIDES[-1]
    assert count == len(tried) == len(set(tried)), "none twice"

    outside, _ = search(lambda grid: float((1100 - grid[0]) + (grid[1] + 100)), [(500, 400)], 1000)
    assert 1000 - STRIDES[-1] <= outside[0] < 1000 and 0 <= outside[1] < STRIDES[-1]
    crossed, _ = search(lambda grid: float(grid[0] - grid[1]), [(500, 400)], 1000)
    assert 0 < crossed[0] - crossed[1] <= STRIDES[-1], "they meet, and never cross"


def test_align_your_steps_has_its_own_ten_and_its_ends() -> None:
    assert align_your_steps(10) == (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)
    assert align_your_steps(4)[0] == 999 and align_your_steps(4)[-1] == 24


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timesteps, "TEACHER_STEPS", 6)
    monkeypatch.setattr(timesteps, "VECTORS", 2)
    monkeypatch.setattr(timesteps, "STRIDES", (150,))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_killed_stage_goes_on_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 64, 64), generator=stream, dtype=torch.uint8)
    corpus = Corpus(images, torch.arange(6) % 2, ("one", "two"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        with pytest.raises(UsageError, match="Run the stage export first"):
            learn_timesteps(corpus, corpus, folder, CPU)
        shutil.copytree(MINI, folder / "mini")
        (folder / "mini" / FILE).unlink()
    found = learn_timesteps(corpus, corpus, whole, CPU, counts=(1, 4))
    with monkeypatch.context() as patch:
        real, calls = timesteps.search, []

        def killed_at_the_second(*given: object) -> object:
            calls.append(given)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*given)  # type: ignore[arg-type]

        patch.setattr(timesteps, "search", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            learn_timesteps(corpus, corpus, cut, CPU, counts=(1, 4))
    assert list(json.loads((cut / FILE).read_text())["pieces"]) == ["dpm++/1"]
    again = learn_timesteps(corpus, corpus, cut, CPU, counts=(1, 4))
    for content in (found, again):
        for piece in content["pieces"].values():
            piece.pop("seconds")
    assert found == again
    assert (cut / FILE).read_bytes() == (cut / "mini" / FILE).read_bytes()
    learned = Generator.load(cut / "mini", device="cpu").learned
    assert {count: list(grid) for count, grid in learned["dpm++"].items()} == {
        int(count): grid for count, grid in found["timesteps"]["dpm++"].items()
    }
    figures = found["pieces"]["dpm++/4/held-out"]["found"]
    assert {"learned", "trailing", "align-your-steps"} <= figures.keys()
    assert "beta" not in figures, "of four steps it has one timestep twice, which the solver cannot take"
    assert figures["learned"]["more"] == 0
