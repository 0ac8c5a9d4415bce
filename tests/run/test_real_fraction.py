"""`--real-fraction auto`: chosen once on folds, kept in the run, gone on with after a kill, shown in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import dinv

from diffusion_inversion.config.tuning import PAPER_FRACTIONS
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.train.choosing import TRAIN_FILE

ONE = ["--train-steps", "2", "--train-batch-size", "4", "--device", "cpu"]
SHORT = [*ONE, "--seeds", "0,1"]
AUTO = ["--real-fraction", "auto"]


def kept(run: Path) -> dict[str, Any]:
    (choice,) = json.loads((run / TRAIN_FILE).read_text())["choices"]
    found: dict[str, Any] = choice["found"]
    return found


def decide(run: Path, fraction: float) -> None:
    """The choice as it would be if another fraction had won."""
    record = json.loads((run / TRAIN_FILE).read_text())
    record["choices"][0]["found"]["chosen"] = fraction
    text = json.dumps(record, indent=1) + "\n"
    Ledger(run).commit(TRAIN_FILE, text.encode(), note={"copy": text})


@pytest.fixture(scope="module")
def real_alone(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked for the arm `real` with auto; not to be changed."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("chosen") / "run"))
    done = dinv("train", run, "--restart", *AUTO, "--arms", "real", *SHORT)
    assert done.exit_code == 0, done.output
    return run


@pytest.fixture
def chosen(real_alone: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(real_alone, tmp_path / "chosen"))


def test_auto_is_chosen_once_and_kept(chosen: Path) -> None:
    text = (chosen / TRAIN_FILE).read_bytes()
    found = kept(chosen)
    assert (found["setting"], found["default"]) == ("train.real_fraction", 0.5)
    assert [one["value"] for one in found["candidates"]] == [f for f in PAPER_FRACTIONS if f != 0.5]
    assert found["chosen"] == 0.5, "of 12 images nothing is sure"
    assert found["images"] == 12 and found["folds"] == 5
    trials = Manifest(chosen / "tuning" / "manifest.jsonl").units()
    assert len(trials) == found["trainings"] and sorted(one["trainings"] for one in found["candidates"])[-1] == 5

    done = dinv("train", chosen, *AUTO, *SHORT)
    assert done.exit_code == 0, done.output
    record = json.loads((chosen / "run.json").read_text())
    assert record["settings"]["train"]["real_fraction"] == 0.5
    assert record["chosen"] == [found] and found["sentence"] in (chosen / "report.html").read_text()
    assert dinv("train", chosen, "--real-fraction", 0.5, *SHORT).exit_code == 0, "the number is the same setting"
    assert dinv("train", chosen, "--real-fraction", 0.25, *SHORT).exit_code == 5
    assert dinv("train", chosen, *AUTO, *SHORT, "--train-steps", "3").exit_code == 5
    assert (chosen / TRAIN_FILE).read_bytes() == text, "refused before any trial"
    assert not verify(chosen).findings


def test_a_choice_that_was_cut_short_goes_on_with_the_same_result(chosen: Path) -> None:
    whole, manifest = kept(chosen), Manifest(chosen / "tuning" / "manifest.jsonl")
    records = manifest.records()
    assert dinv("train", chosen, "--restart", "--arms", "real", *SHORT).exit_code == 0
    assert not (chosen / TRAIN_FILE).exists() and not (chosen / "tuning").exists(), "--restart forgets the choice"
    # As a kill after the third trial leaves it.
    manifest.path.parent.mkdir()
    Manifest(manifest.path).rewrite(records[:3])
    done = dinv("train", chosen, *AUTO, "--arms", "real", *SHORT)
    assert done.exit_code == 0, done.output
    again = Manifest(manifest.path).records()
    assert again[:3] == records[:3] and [one["unit"] for one in again] == [one["unit"] for one in records]
    assert [one["correct"] for one in again] == [one["correct"] for one in records]
    times = ("seconds", "sentence")
    assert {k: v for k, v in kept(chosen).items() if k not in times} == {
        k: v for k, v in whole.items() if k not in times
    }


def test_arms_and_seeds_that_are_added_have_the_number_that_was_chosen(chosen: Path) -> None:
    """In any order, also where `real` was trained before with the default number."""
    before = (chosen / TRAIN_FILE).read_text()
    assert dinv("train", chosen, "--restart", "--arms", "real", *ONE, "--seeds", "0").exit_code == 0
    assert json.loads((chosen / "train.config.json").read_text())["settings"]["real_fraction"] == 0.5
    Ledger(chosen).commit(TRAIN_FILE, before.encode(), note={"copy": before})
    decide(chosen, 0.25)
    for arms, seeds in (("real+synthetic", "0,1"), ("real", "0,4"), ("real+synthetic", "3"), ("real", "0")):
        done = dinv("train", chosen, *AUTO, "--arms", arms, *ONE, "--seeds", seeds)
        assert done.exit_code == 0, done.output
        assert json.loads((chosen / "train.config.json").read_text())["settings"]["real_fraction"] == 0.25
        assert kept(chosen)["chosen"] == 0.25
    assert json.loads((chosen / "run.json").read_text())["settings"]["train"]["real_fraction"] == 0.25
    assert not verify(chosen).findings


def test_a_mixture_of_a_given_number_leaves_nothing_to_choose(run: Path) -> None:
    refused = dinv("train", run, *AUTO, *SHORT)
    assert refused.exit_code == 5 and "trained here with real_fraction 0.5" in refused.output
    other = dinv("train", run, *AUTO, *SHORT, "--recipe", "medmnist-adamw")
    assert other.exit_code == 5 and "recipe" in other.output
    assert not (run / TRAIN_FILE).exists() and not (run / "tuning").exists(), "refused before any trial"


@pytest.mark.parametrize("damage", [b"{}", None])
def test_a_damaged_choice_is_restored(chosen: Path, damage: bytes | None) -> None:
    path = chosen / TRAIN_FILE
    whole = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with run_lock(chosen):
        discard(chosen, verify(chosen))
    assert path.read_bytes() == whole
    assert not verify(chosen).findings


def test_forget_drops_the_choice_with_the_classifiers_that_made_it(chosen: Path) -> None:
    forget(chosen, read_embeddings(chosen).ids[:1])
    assert not (chosen / TRAIN_FILE).exists() and not (chosen / "tuning").exists()
    assert "candidates" not in (chosen / "manifest.jsonl").read_text(), "its copy in the records is gone too"
    assert not verify(chosen).findings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--real-fraction", "auto", "--mixing", "concatenate"), "the sizes of the sets decide"),
        (("--real-fraction", "some"), "--real-fraction some: give a number or auto"),
        (("--real-fraction", "1.5"), "--real-fraction 1.5: give less than 1 or auto"),
    ],
)
def test_a_fraction_that_cannot_be_is_refused(run: Path, options: tuple[str, ...], message: str) -> None:
    before = (run / "run.json").read_bytes()
    refused = dinv("train", run, "--restart", *options, *SHORT)
    assert refused.exit_code == 2
    assert message in refused.output
    assert (run / "run.json").read_bytes() == before
