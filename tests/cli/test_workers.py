"""What `--workers` and the options beside it make of a command."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import dinv

from diffusion_inversion.cli.workers import joined

FLAGS = ("--workers", "--executor", "--max-restarts")


@pytest.mark.parametrize(
    ("given", "of_a_worker"),
    [
        ("run x --workers 4 --steps 3", "run x --join --steps 3"),
        ("run --executor=ray x --workers=4 --json", "run --join x --json"),
        ("run x --join --workers 4", "run x --join"),
        ("run --workers 2 --max-restarts 0 -- --odd", "run --join -- --odd"),
    ],
)
def test_a_worker_joins_and_starts_no_workers_of_its_own(given: str, of_a_worker: str) -> None:
    assert joined(given.split(), FLAGS) == tuple(of_a_worker.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--executor ray", "--executor ray: of workers; say how many with --workers N"),
        ("--gpus-per-worker 1 --max-restarts 2", "--workers N"),
        ("--workers 0", "--workers 0: give at least 1"),
        ("--workers 2 --executor kubernetes", "--executor kubernetes: give local, ray or slurm"),
        ("--workers 99 --gpus-per-worker 9", "--workers 99 --gpus-per-worker 9: 891 GPUs are wanted"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_begun(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = dinv("invert", "digits", "--out", "run", *options.split())
    assert found.exit_code == 2 and message in found.output, found.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("executor", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_executor_that_is_not_installed_names_its_extra(
    executor: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    monkeypatch.chdir(tmp_path)
    found = dinv("run", "digits", "--out", "run", "--workers", 2, "--executor", executor)
    assert found.exit_code == 2 and f"pip install '.[{executor}]'" in found.output
    assert list(tmp_path.iterdir()) == []


def test_workers_do_not_begin_anew_what_others_do(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.tsv"
    prompts.write_text("cat\ta photo of a cat\n")
    found = dinv("sample", tmp_path / "run", "--prompts", prompts, "--workers", 2, "--restart")
    assert found.exit_code == 2 and "--workers --restart" in found.output, found.output
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.tsv"]
