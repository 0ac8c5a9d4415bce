"""`--real-fraction auto`: chosen once, kept in the run, gone on with after a kill, shown in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.train.real_fraction import FRACTION_FILE, PAPER_FRACTIONS

ONE = ["--train-steps", "2", "--train-batch-size", "4", "--device", "cpu"]
SHORT = [*ONE, "--seeds", "0,1"]
AUTO = ["--real-fraction", "auto"]


def dinv(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def record_choice(run: Path, **content: Any) -> None:
    """What `real_fraction_of` commits."""
    text = json.dumps(content, indent=1) + "\n"
    Ledger(run).commit(FRACTION_FILE, text.encode(), note={"copy": text})


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
    text = (chosen / FRACTION_FILE).read_bytes()
    kept = json.loads(text)
    trials = kept["trials"]
    assert [(f, s) for f, s, _ in trials] == [(f, s) for f in PAPER_FRACTIONS for s in (0, 1)]
    means = {f: sum(a for g, _, a in trials if g == f) / 2 for f in PAPER_FRACTIONS}
    assert means[kept["real_fraction"]] == max(means.values())
    assert 0 < kept["n_validation"] < kept["n_train"]

    done = dinv("train", chosen, *AUTO, *SHORT)
    assert done.exit_code == 0, done.output
    record = json.loads((chosen / "run.json").read_text())
    assert record["settings"]["train"]["real_fraction"] == kept["real_fraction"]
    assert "held out for it" in (chosen / "report.html").read_text()
    number = dinv("train", chosen, "--real-fraction", kept["real_fraction"], *SHORT)
    assert number.exit_code == 0, "the chosen number is the same setting"
    other = next(f for f in PAPER_FRACTIONS if f != kept["real_fraction"])
    assert dinv("train", chosen, "--real-fraction", other, *SHORT).exit_code == 5
    assert dinv("train", chosen, *AUTO, *SHORT, "--train-steps", "3").exit_code == 5
    assert (chosen / FRACTION_FILE).read_bytes() == text, "refused before any trial"
    assert not verify(chosen).findings


def test_a_choice_that_was_cut_short_goes_on_with_the_same_result(chosen: Path) -> None:
    whole = json.loads((chosen / FRACTION_FILE).read_text())
    assert dinv("train", chosen, "--restart", "--arms", "real", *SHORT).exit_code == 0
    assert not (chosen / FRACTION_FILE).exists(), "--restart forgets the choice, and a number needs none"

    # As a kill after the third trial leaves it; a third one that was other would show.
    first = [[f, s, a / 2] for f, s, a in whole["trials"][:3]]
    record_choice(chosen, real_fraction=None, trials=first, made_with=whole["made_with"], made_from=whole["made_from"])
    done = dinv("train", chosen, *AUTO, "--arms", "real", *SHORT)
    assert done.exit_code == 0, done.output
    assert json.loads((chosen / FRACTION_FILE).read_text())["trials"] == [*first, *whole["trials"][3:]]


def test_arms_and_seeds_that_are_added_have_the_number_that_was_chosen(chosen: Path) -> None:
    """In any order, also where `real` was trained before with the default number."""
    whole = json.loads((chosen / FRACTION_FILE).read_text())
    assert dinv("train", chosen, "--restart", "--arms", "real", *ONE, "--seeds", "0").exit_code == 0
    assert json.loads((chosen / "train.config.json").read_text())["settings"]["real_fraction"] == 0.5
    trials = [[f, s, float(f == 0.25)] for f, s, _ in whole["trials"]]  # all done, 1/4 the best
    record_choice(chosen, **{**whole, "real_fraction": None, "trials": trials})
    for arms, seeds in (("real+synthetic", "0,1"), ("real", "0,4"), ("real+synthetic", "3"), ("real", "0")):
        done = dinv("train", chosen, *AUTO, "--arms", arms, *ONE, "--seeds", seeds)
        assert done.exit_code == 0, done.output
        assert json.loads((chosen / "train.config.json").read_text())["settings"]["real_fraction"] == 0.25
        kept = json.loads((chosen / FRACTION_FILE).read_text())
        assert (kept["real_fraction"], kept["trials"]) == (0.25, trials)
    assert not verify(chosen).findings


def test_a_mixture_of_a_given_number_leaves_nothing_to_choose(run: Path) -> None:
    refused = dinv("train", run, *AUTO, *SHORT)
    assert refused.exit_code == 5 and "trained here with the number 0.5" in refused.output
    other = dinv("train", run, *AUTO, *SHORT, "--recipe", "fast")
    assert other.exit_code == 5 and "recipe" in other.output
    assert not (run / FRACTION_FILE).exists(), "refused before any trial"


@pytest.mark.parametrize("damage", [b"{}", None])
def test_a_damaged_choice_is_restored(chosen: Path, damage: bytes | None) -> None:
    path = chosen / FRACTION_FILE
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
    assert not (chosen / FRACTION_FILE).exists()
    assert "trials" not in (chosen / "manifest.jsonl").read_text(), "its copy in the records is gone too"
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
