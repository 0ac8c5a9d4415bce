"""`--mixing` over a run folder: what each reads of the run's own images, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import dinv
from harness import Bench

from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.methods import images_made
from diffusion_inversion.run.verify import verify
from diffusion_inversion.train.mixing import measure

SHORT = [
    "--train-steps",
    "2",
    "--train-batch-size",
    "4",
    "--device",
    "cpu",
    "--seeds",
    "0",
    "--arms",
    "real,real+synthetic",
]


def judge(run: Path) -> None:
    """Give every image of the run a confidence, as a judge would: 1/4 in each label."""
    manifest = Manifest(run / "synthetic" / "manifest.jsonl")
    records = manifest.records()
    for record in records:
        if record["event"] == "commit":
            record["columns"]["confidence"] = [0.25] * record["count"]
    manifest.rewrite(records)


@pytest.mark.parametrize("mixing", ["real-last", "curriculum", "queue", "two-losses"])
def test_a_run_is_trained_with_it(run: Path, mixing: str) -> None:
    done = dinv("train", run, "--restart", "--mixing", mixing, *SHORT)
    assert done.exit_code == 0, done.output
    assert json.loads((run / "train.config.json").read_text())["settings"]["mixing"] == mixing
    again = dinv("train", run, "--mixing", mixing, *SHORT)
    assert again.exit_code == 0 and verify(run).findings == ()


def test_the_sources_of_a_runs_images_are_its_training_images(finished: Path) -> None:
    real = open_splits(finished).train
    synthetic = images_made(finished, real.class_names)
    assert len(synthetic.source_ids) == len(synthetic) and set(synthetic.source_ids) == set(real.ids)
    labels = dict(zip(real.ids, real.labels.tolist(), strict=True))
    assert [labels[source] for source in synthetic.source_ids] == synthetic.labels.tolist()
    found = measure(real.resized(synthetic.size), synthetic, "curriculum")
    assert found is not None and found.shape == (len(synthetic),) and (found > 0).all()
    assert synthetic.confidence is None


def test_what_was_judged_is_weighed(run: Path) -> None:
    before = {path.name for path in (run / "classifiers").iterdir()}
    refused = dinv("train", run, "--restart", "--mixing", "confidence", *SHORT)
    assert refused.exit_code == 4 and "not every image has a confidence" in refused.output, refused.output
    assert {path.name for path in (run / "classifiers").iterdir()} == before, "nothing was deleted"
    judge(run)
    synthetic = images_made(run, open_splits(run).train.class_names)
    assert synthetic.confidence is not None and torch.equal(synthetic.confidence, torch.full((24,), 0.25))
    done = dinv("train", run, "--restart", "--mixing", "confidence", *SHORT)
    assert done.exit_code == 0, done.output


def test_a_confidence_beside_none_counts_as_none(run: Path) -> None:
    judge(run)
    manifest = Manifest(run / "synthetic" / "manifest.jsonl")
    records = manifest.records()
    next(one for one in records if one["event"] == "commit")["columns"]["confidence"][0] = None
    manifest.rewrite(records)
    assert images_made(run, open_splits(run).train.class_names).confidence is None


def test_it_is_refused_before_anything_is_drawn(bench: Bench, tmp_path: Path) -> None:
    for options in (("--mixing", "confidence"), ("--tune", "mixing=confidence")):
        run = tmp_path / options[0]
        where = ["--generator", bench.checkpoint, "--out", run, "--device", "cpu"]
        done = dinv("run", bench.data, *where, *options)
        assert done.exit_code == 2 and "without a judge's confidence" in done.output, done.output
        assert not (run / "embeddings").exists()


def test_they_are_chosen_on_folds(bench: Bench, tmp_path: Path) -> None:
    done = dinv(
        "run", bench.data, "--generator", bench.checkpoint, "--out", tmp_path / "run", "--device", "cpu", "--json",
        "--steps", "2", "--init", "random", "--variants", "2", "--inference-steps", "2", "--train-steps", "2",
        "--train-batch-size", "4", "--seeds", "0", "--tune", "mixing=curriculum,two-losses,real-last",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (tried,) = json.loads(done.stdout)["chosen"]
    assert {one["value"] for one in tried["candidates"]} == {"curriculum", "two-losses", "real-last"}
