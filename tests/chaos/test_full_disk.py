"""A disk that is full stops a stage with exit code 7; with room again the same command goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SAMPLE, STAGES, Bench, assert_same, content, finish, limited

from diffusion_inversion.errors import DiskError
from diffusion_inversion.run.stages import sample_stage
from diffusion_inversion.run.verify import verify


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    found, before = {}, folder / "empty"
    before.mkdir()
    for stage in STAGES:
        found[stage] = Path(shutil.copytree(before, folder / stage))
        finish(bench, found[stage], stage)
        before = found[stage]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("limit", [600, 2500, 20_000])
def test_a_limit_on_the_size_of_files(bench: Bench, whole: dict[str, Path], tmp_path: Path, limit: int) -> None:
    """RLIMIT_FSIZE makes the write that passes the limit fail half way (EFBIG)."""
    run, stopped = tmp_path / "run", 0
    for stage in STAGES:
        code = limited(bench, run, stage, limit)
        assert code in (0, 7)
        stopped += code == 7
        if (run / "manifest.jsonl").exists():
            assert not verify(run).lost
        finish(bench, run, stage)
        assert_same(run, whole[stage])
    assert stopped > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs rights that this process lacks")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_small_disk_that_fills_up(bench: Bench, whole: dict[str, Path], small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    run = small_disk / "run"
    stopped = 0
    for stage in ("invert", "sample"):
        for free in (4, 12, 24, 36):  # kB
            ballast.unlink(missing_ok=True)
            used = sum(path.stat().st_blocks * 512 for path in small_disk.rglob("*"))
            ballast.write_bytes(bytes(max(600 * 1024 - used - free * 1024 - 8192, 1)))
            stopped += limited(bench, run, stage, None, spare=0) == 7
        ballast.unlink()
        assert limited(bench, run, stage, None, spare=0) == 0
        assert content(run) == content(whole[stage])
    assert stopped >= 3


def test_room_is_asked_for_before_the_work(bench: Bench, whole: dict[str, Path], small_disk: Path) -> None:
    run = Path(shutil.copytree(whole["invert"], small_disk / "run"))
    before = content(run)
    with pytest.raises(DiskError, match=r"24 images of 16 px need about 3\d\.\d MB and .* kB are free; nothing was"):
        sample_stage(run, bench.generator(), SAMPLE)
    assert content(run) == before
