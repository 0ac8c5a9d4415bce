"""Workers of a toy run that takes long enough to be killed in the middle."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness import HERE, Bench

from diffusion_inversion.engine.executors.worker import STARTED, Command
from diffusion_inversion.invert.embeddings import EmbeddingStore

UNITS = 6  # of 2 images each


def invert_command(bench: Bench, run: Path, logs: Path, *, steps: int = 100) -> Command:
    """`dinv invert --join` of the 12 images of a bench, on one thread."""
    logs.mkdir(parents=True)
    arguments = (
        "invert", bench.data, "--out", run, "--generator", bench.checkpoint, "--device", "cpu", "--dtype", "float32",
        "--steps", steps, "--invert-batch-size", 2, "--init", "random", "--join",
    )  # fmt: skip
    return _command(arguments, logs)


def run_command(bench: Bench, run: Path, logs: Path) -> Command:
    """`dinv run --join` of a bench, in seconds, on one thread."""
    logs.mkdir(parents=True)
    arguments = (
        "run", bench.data, "--out", run, "--generator", bench.checkpoint, "--device", "cpu", "--dtype", "float32",
        "--steps", 3, "--invert-batch-size", 2, "--init", "random", "--variants", 2, "--inference-steps", 2,
        "--sample-batch-size", 3, "--train-steps", 2, "--architecture", "resnet20", "--seeds", "0,1", "--no-preview",
        "--join",
    )  # fmt: skip
    return _command(arguments, logs)


def _command(arguments: tuple[object, ...], logs: Path) -> Command:
    path = (str(Path(__file__).resolve().parents[2] / "src"), *HERE, *sys.path)
    environment = (("PYTHONPATH", ":".join(one for one in path if one)), ("OMP_NUM_THREADS", "1"))
    return Command(tuple(map(str, arguments)), logs, logs, environment)


def done(run: Path) -> int:
    """Units that are committed."""
    return len(EmbeddingStore(run).manifest.units())


def committed(run: Path) -> list[str]:
    """Units in the order of their commit records, one that was committed twice twice."""
    records = EmbeddingStore(run).manifest.records()
    return [record["unit"] for record in records if record["event"] == "commit"]


def wait_until(true: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something is true; fail where it does not come."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "did not come in time"
        time.sleep(0.02)


def watchers(command: Command, number: int) -> list[int]:
    """Processes that started worker `number`, the last of them last."""
    text = command.log(number).read_text() if command.log(number).exists() else ""
    return [int(found) for found in re.findall(rf"^{STARTED}.*process (\d+)$", text, re.MULTILINE)]
