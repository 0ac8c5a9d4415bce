"""What a run may grow with: refused before any work where verdicts would mix procedures, else as it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import dinv
from harness import INVERT, SAMPLE, TRAIN, Bench, content

from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import UsageError
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.growth_settings import taken_over, unusual, warn_of_others
from diffusion_inversion.train.training import recipe


def keep(run: Path, file: str, found: dict[str, Any]) -> None:
    text = json.dumps(found)
    Ledger(run).commit(file, text.encode(), note={"copy": text})


def trained(run: Path, **changes: Any) -> dict[str, Any]:
    """Let a run have been trained with other settings."""
    found = recipe(TRAIN.model_copy(update=changes), torch.device("cpu"))
    keep(run, "train.config.json", found)
    return found


def test_one_of_several_replicates_does_not_grow(run: Path) -> None:
    """The others would be trained without what it grew, and the verdict is over all."""
    (run / "replicates" / "1").mkdir(parents=True)
    before = content(run)
    for one in (run, run / "replicates" / "1"):
        found = dinv("grow", one, "--images", 3)
        assert found.exit_code == 2 and "is one of several replicates" in found.stderr, found.output
    assert content(run) == before


def test_a_run_that_grew_has_no_other_replicates(bench: Bench, run: Path) -> None:
    """Refused before any work, also where a killed call had chosen images and drawn none."""
    keep(run, "growth.json", {"schema": 1, "rounds": [{"chosen": ["a"]}], "ended": None})
    before = content(run)

    def again(count: int) -> None:
        pipeline.run_all(
            run, DataSettings(data=str(bench.data)), bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN,
            command="dinv run data", replicates=count,
        )  # fmt: skip

    with run_lock(run), pytest.raises(UsageError, match=r"images were grown here.* Leave out --replicates") as refused:
        again(2)
    assert "\n" not in str(refused.value) and content(run) == before
    with run_lock(run), pytest.raises(UsageError, match="cut short"):  # of the images that are not there
        again(1)


def test_a_run_that_was_trained_online_does_not_grow(run: Path) -> None:
    """Its own next command would be refused."""
    trained(run, online=3, mixing="queue")
    before = content(run)
    found = dinv("grow", run, "--images", 3)
    assert found.exit_code == 2 and "was trained with --online, which images that are grown go without" in found.stderr
    assert content(run) == before


def test_folds_are_trained_as_the_run_was(run: Path) -> None:
    """A share that was chosen for it too; options that are given win."""
    theirs = trained(run, real_fraction=0.75, augmentations=("none",))
    found = dinv("grow", run, "--images", 1, "--train-steps", 3)
    assert found.exit_code == 0, found.output
    ours = json.loads((run / "grow.config.json").read_text())
    assert ours["settings"] == {**theirs["settings"], "steps": 3} and ours["architecture"] == "resnet20"
    (note,) = [line for line in found.stderr.splitlines() if line.startswith("note: as ")]
    assert f"{run / 'train.config.json'} has it" in note and "--train-steps" not in note
    for part in ("--train-batch-size 4", "--real-fraction 0.75", "--augmentations none", "--architecture resnet20"):
        assert part in note
    assert "was trained with other settings than its folds: steps: was 2, now 3" in found.stderr
    # The rounds that follow have those of the first, whatever was trained since.
    trained(run, real_fraction=0.25)
    file, taken = taken_over(run, {})
    assert (file, taken["real_fraction"], taken["steps"], taken["seeds"]) == ("grow.config.json", 0.75, 3, [0])


def test_the_numbers_of_another_recipe_are_its_own(run: Path) -> None:
    trained(run, learning_rate=0.3)
    _, same = taken_over(run, {"recipe": "paper-sgd"})
    assert same["learning_rate"] == 0.3 and same["batch_size"] == 4 and "recipe" not in same
    _, other = taken_over(run, {"recipe": "fast"})
    assert not {"learning_rate", "batch_size", "weight_decay", "warm_up_steps"} & other.keys() and other["steps"] == 2
    Ledger(run).drop("train.config.json")
    assert taken_over(run, {}) == ("train.config.json", {})


def test_what_is_usual_is_not_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = recipe(TrainSettings(architecture="resnet20"), torch.device("cpu"))
    keep(run, "train.config.json", usual)
    _, taken = taken_over(run, {})
    assert unusual(TrainSettings(**taken), taken) == {"architecture": "resnet20"}
    warn_of_others(run, usual)
    assert capsys.readouterr().err == ""
