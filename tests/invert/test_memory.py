"""A unit that does not fit into memory is computed in halves, on record, and comes back to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import WIDTH, toy_images

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.engine.memory import within_memory
from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.optimisation import invert_batch

HERE = Path(__file__).parent.parent / "helpers"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's")
def test_a_process_without_the_memory_halves_until_it_fits(tmp_path: Path) -> None:
    """A child process with 150 MB more address space than it had before: neither stage does its 96 images at once."""
    paths = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    # A thread's arena would take 64 MB of address space; what is freed goes back at once where it was mapped alone.
    limits = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(HERE / "short_of_memory.py"), str(tmp_path), "150"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths, **limits}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (invert,), (sample,) = found["at_once"]
    assert invert in (12, 24, 48) and sample in (24, 48), "a failed try leaves no memory taken"
    assert found["same_bits"] == [True, True], "a unit that is done again has the size on record"
    assert found["at_once_again"] == found["at_once"]


def test_parts_of_a_unit_give_what_the_whole_gives(generator: Generator) -> None:
    images = toy_images(5)
    settings = InvertSettings(steps=3, init="random", eval_draws=2)
    arguments = (generator, to_model_range(images.images), torch.randn(5, 5, WIDTH) * 0.1, images.ids, settings)
    whole = invert_batch(*arguments)
    for at_once in (1, 2, 3):
        parts = invert_batch(*arguments, at_once=at_once)
        torch.testing.assert_close(parts.vectors, whole.vectors, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-3, atol=1e-4)


def test_halving_ends_with_a_remedy_and_passes_other_errors_on() -> None:
    sizes: list[int] = []

    def allocate(size: int) -> int:
        """More than any machine has, unless the size is small: a real error of the allocator."""
        sizes.append(size)
        return torch.empty(size - least, 1 << 50, dtype=torch.uint8).numel() if size > least else size

    least = 2
    assert within_memory(allocate, 9) == (2, 2) and sizes == [9, 5, 3, 2]
    least = 0
    with pytest.raises(UsageError, match=r"not even one image fits .*Use a smaller --resolution"):
        within_memory(allocate, 3)
    with pytest.raises(RuntimeError, match="shape"):
        within_memory(lambda size: torch.zeros(size) @ torch.zeros(size + 1, 2), 4)
