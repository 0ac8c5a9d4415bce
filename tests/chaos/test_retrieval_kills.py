"""A retrieval that is killed at any moment ends, after the same command, as if it had never been killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from coloured_images import write_data, write_pool
from harness import Bench, Kill, assert_same, finish, kill_during, uninterrupted
from toy import build_checkpoint

from diffusion_inversion.engine.faults import POINTS


@pytest.mark.slow
def test_a_killed_retrieval_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    bench = Bench(build_checkpoint(tmp_path / "toy"), write_data(tmp_path / "bench" / "data"))
    write_pool(tmp_path / "bench" / "pool")
    whole = tmp_path / "whole"
    _, passed = uninterrupted(bench, whole, "retrieve")
    for point in POINTS:
        for nth in (1, passed[point]):
            shutil.rmtree(tmp_path / "bench" / "root")  # its features are lost with it
            run = tmp_path / f"{point}-{nth}"
            assert kill_during(bench, run, "retrieve", Kill(point, nth)), f"{point} {nth}"
            finish(bench, run, "retrieve")
            assert_same(run / "k3", whole / "k3")
    torch.set_num_threads(threads)
