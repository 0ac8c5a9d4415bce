"""What the tests of all executors start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Bench
from workers import invert_command


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert invert_command(bench, folder / "run", folder / "logs").start(0).wait() == 0
    return folder / "run"
