from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import no_sync  # noqa: F401
import pytest
import torch
from toy import MINI_SCHEDULER, SD14_SCHEDULER, build_checkpoint

from diffusion_inversion.generator.generator import Generator

if TYPE_CHECKING:
    from harness import Bench

# Hypothesis' 200 ms an example measure how busy the machine is.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
SEED = 230515316  # of no test: 0 would repeat what `Generator().manual_seed(0)` draws


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a generator of its own is the same each time, whatever ran before it."""
    torch.manual_seed(SEED)


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy Stable Diffusion folder: SD 1.4's schedule and noise prediction, or mini's and v-prediction."""
    scheduler = SD14_SCHEDULER if request.param == "epsilon" else MINI_SCHEDULER
    return build_checkpoint(tmp_path_factory.mktemp(request.param) / "toy", scheduler)


@pytest.fixture(scope="session")
def generator(checkpoint: Path) -> Generator:
    return Generator.load(checkpoint, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the schedule of SD 1.4, where another would show no more; not to be changed."""
    return build_checkpoint(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="session")
def loaded(toy: Path) -> Generator:
    return Generator.load(toy, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A toy checkpoint and a folder of images, for whole runs that take a second."""
    from harness import Bench

    return Bench.build(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """15 red and 15 green images to learn, and a generator of random weights, whose images are neither."""
    from coloured_images import COLOURS, picture
    from harness import Bench
    from image_files import save

    folder = tmp_path_factory.mktemp("coloured")
    for place, (name, colour) in enumerate(COLOURS.items()):
        for row in range(18):
            part = "train" if row < 15 else "test"
            save(folder / "data" / part / name / f"{row}.png", picture(colour, 100 * place + row))
    return Bench(build_checkpoint(folder / "toy", MINI_SCHEDULER), folder / "data")


@pytest.fixture(scope="session")
def finished(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through every stage; not to be changed."""
    from harness import STAGES, finish

    run = tmp_path_factory.mktemp("finished") / "run"
    for stage in STAGES:
        finish(bench, run, stage)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
