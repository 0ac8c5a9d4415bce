"""`--real-fraction auto`: chosen once, kept in the run, gone on with after a kill, shown in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.integrity import verify
from diffusion_inversion.real_fraction import FRACTION_FILE, PAPER_FRACTIONS

SHORT = ["--train-steps", "2", "--train-batch-size", "4", "--seeds", "0,1", "--device", "cpu"]


def dinv(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_auto_is_chosen_once_and_kept(run: Path) -> None:
    command = ("train", run, "--restart", "--real-fraction", "auto", "--json", *SHORT)
    done = dinv(*command)
    assert done.exit_code == 0, done.output
    kept = json.loads((run / FRACTION_FILE).read_text())
    trials = kept["trials"]
    assert [(f, s) for f, s, _ in trials] == [(f, s) for f in PAPER_FRACTIONS for s in (0, 1)]
    means = {f: sum(a for g, _, a in trials if g == f) / 2 for f in PAPER_FRACTIONS}
    assert means[kept["real_fraction"]] == max(means.values())
    assert 0 < kept["n_validation"] < kept["n_train"]
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["train"]["real_fraction"] == kept["real_fraction"]
    assert "held out for it" in (run / "report.html").read_text()

    again = dinv("train", run, "--real-fraction", "auto", *SHORT)
    assert again.exit_code == 0, again.output
    number = dinv("train", run, "--real-fraction", kept["real_fraction"], *SHORT)
    assert number.exit_code == 0, "the chosen number is the same setting"
    other = next(f for f in PAPER_FRACTIONS if f != kept["real_fraction"])
    assert dinv("train", run, "--real-fraction", other, *SHORT).exit_code == 5
    assert not verify(run).findings


def test_a_choice_that_was_cut_short_goes_on_with_the_same_result(run: Path) -> None:
    command = ("train", run, "--restart", "--real-fraction", "auto", *SHORT)
    assert dinv(*command).exit_code == 0
    whole = json.loads((run / FRACTION_FILE).read_text())
    assert dinv(*command[:2], "--restart", "--arms", "real", *SHORT).exit_code == 0
    assert not (run / FRACTION_FILE).exists(), "--restart forgets the choice, and the arm real needs none"

    # As a kill after the third trial leaves it; a third one that was other would show.
    assert dinv(*command[:2], "--restart", "--arms", "real", *SHORT).exit_code == 0
    cut = {**whole, "real_fraction": None, "trials": [[f, s, a / 2] for f, s, a in whole["trials"][:3]]}
    for key in ("n_train", "n_synthetic", "n_validation"):
        del cut[key]
    Ledger(run).commit(FRACTION_FILE, json.dumps(cut).encode())
    assert dinv("train", run, "--real-fraction", "auto", *SHORT).exit_code == 0
    found = json.loads((run / FRACTION_FILE).read_text())["trials"]
    assert found == [*cut["trials"], *whole["trials"][3:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--real-fraction", "auto", "--mixing", "concatenate"), "the sizes of the sets decide"),
        (("--real-fraction", "some"), "neither a number nor auto"),
        (("--real-fraction", "1.5"), "real_fraction"),
    ],
)
def test_a_fraction_that_cannot_be_is_refused(run: Path, options: tuple[str, ...], message: str) -> None:
    before = (run / "run.json").read_bytes()
    refused = dinv("train", run, "--restart", *options, *SHORT)
    assert refused.exit_code == 2
    assert message in refused.output
    assert (run / "run.json").read_bytes() == before
