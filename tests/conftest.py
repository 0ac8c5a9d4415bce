from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_inversion.generator import Generator
from toy import MINI_SCHEDULER, SD14_SCHEDULER, build_checkpoint


@pytest.fixture(scope="session", params=["epsilon", "v_prediction"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy Stable Diffusion folder: SD 1.4's schedule and noise prediction, or mini's and v-prediction."""
    scheduler = SD14_SCHEDULER if request.param == "epsilon" else MINI_SCHEDULER
    return build_checkpoint(tmp_path_factory.mktemp(request.param) / "toy", scheduler)


@pytest.fixture(scope="session")
def generator(checkpoint: Path) -> Generator:
    return Generator.load(checkpoint, device="cpu", dtype="float32")
