"""`dinv run --tune`: chosen on training images before it is used, kept, gone on with, shown; no image is left of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import (
    INVERT,
    SAMPLE,
    TRAIN,
    Bench,
    Kill,
    assert_same,
    content,
    finish,
    invert,
    kill_during,
    race,
    tuned,
)  # fmt: skip
from report_pages import Page
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.cli.summary import summarise
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.config.tuning import read_tuning
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, UsageError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.replicates import replicate_folders
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.tune import _Pictures, prepared, tune_sampling
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.train.choosing import SAMPLE_FILE, TRAIN_FILE, Folds, Material
from diffusion_inversion.train.halving import trials_of

FOLDS = 5


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that chose first, done at once; not to be changed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(bench, run, "tuned")
    return run


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def trials(run: Path) -> list[dict[str, Any]]:
    return [one for one in Manifest(run / "tuning" / "manifest.jsonl").units().values() if "fold" in one]


def decide(run: Path, file: str, value: Any) -> None:
    """The first choice as it would be if a value had won."""
    kept = json.loads((run / file).read_text())
    kept["choices"][0]["found"]["chosen"] = value
    kept["choices"] = kept["choices"][:1]
    text = json.dumps(kept, indent=1) + "\n"
    Ledger(run).commit(file, text.encode(), note={"copy": text})


def test_a_run_chooses_shows_what_and_leaves_no_image_of_a_candidate(whole: Path) -> None:
    found = record(whole)
    assert [one["setting"] for one in found["chosen"]] == ["sample.interpolation", "train.real_fraction"]
    first, second = found["chosen"]
    assert first["default"] == first["chosen"] == 0.1, "of 12 images nothing is sure"
    assert [one["value"] for one in first["candidates"]] == [0.4, 0.9]
    assert sorted(one["trainings"] for one in first["candidates"]) == [3, FOLDS], "one was halved away"
    assert [one["confidence"] for one in first["candidates"]] == pytest.approx([1 - 0.05 / 3] * 2), "three in all"
    assert first["trainings"] == trials_of(2, FOLDS) and second["trainings"] == trials_of(1, FOLDS)
    assert len(trials(whole)) == trials_of(2, FOLDS) + FOLDS, "the default of the second was trained for the first"
    assert {file.name for file in (whole / "tuning").iterdir()} == {"manifest.jsonl"}
    rows = SyntheticStore(whole, ("cat", "dog")).table("interpolation")["interpolation"].to_pylist()
    assert set(rows) == {0.1} and len(rows) == 12 * SAMPLE.variants
    assert verify(whole).findings == () and verify(whole).foreign == ()
    page, summary = (whole / "report.html").read_text(), summarise(whole, found)  # type: ignore[arg-type]
    assert summary["chosen"] == found["chosen"]
    for one in found["chosen"]:
        assert one["sentence"] in page and one["sentence"] in summary["text"]
        assert f"{one['trainings']} trainings" in one["sentence"] and " s)" in one["sentence"]


def test_no_variant_of_a_held_out_image_is_trained_on(whole: Path) -> None:
    """On the store of a run, partners and all; and what a record measured is its own fold, once."""
    real = open_splits(whole).train
    store = SyntheticStore(whole, real.class_names)
    folds = Folds(whole, real.resized(store.read().size), "cpu")
    material = Material(store.read(), store.sources())
    assert any(source != partner for source, partner in material.sources)
    for number in folds.numbers:
        found = folds.split(material, number)
        held = {real.ids[row] for row in found.held_out}
        assert held.isdisjoint(real.ids[row] for row in found.training)
        assert all(held.isdisjoint(material.sources[row]) for row in found.synthetic)
        lengths = {len(one["correct"]) for one in trials(whole) if one["fold"] == number}
        assert lengths == {len(held)}


def test_what_was_chosen_is_drawn_trained_and_mended_with(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    invert(bench, run)
    tuning = prepared(read_tuning(["interpolation=0.4", "augmentations=none"]), SAMPLE, TRAIN)
    with run_lock(run):
        tune_sampling(run, open_splits(run).train, bench.generator(), SAMPLE, TRAIN, tuning)
    decide(run, SAMPLE_FILE, 0.4)

    def again() -> None:
        with run_lock(run):
            pipeline.run_all(
                run, DataSettings(data=str(bench.data)), bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN,
                command="dinv run data", tuning=read_tuning(["interpolation=0.4", "augmentations=none"]),
            )  # fmt: skip

    again()
    found = record(run)
    assert found["settings"]["sample"]["interpolation"] == 0.4
    assert found["chosen"][0]["chosen"] == 0.4 and "interpolation 0.4 was" not in found["chosen"][1]["sentence"]
    rows = SyntheticStore(run, ("cat", "dog")).table("interpolation")["interpolation"].to_pylist()
    assert set(rows) == {0.4}
    before = content(run)
    again()
    assert content(run) == before, "the same command finds the choice"
    next((run / "synthetic" / "cat").glob("*.png")).unlink()
    with run_lock(run):
        discard(run, verify(run))
    assert resume(run, "cpu") == [] and content(run) == before


def test_images_of_a_candidate_are_those_that_a_run_would_draw(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    embeddings, real = read_embeddings(run), open_splits(run).train
    pictures = _Pictures(Folds(run, real, "cpu"), embeddings, bench.generator())
    few = SAMPLE.model_copy(update={"variants": 1})
    both, one = pictures.material(SAMPLE), pictures.material(few)
    made = SyntheticStore(run, embeddings.class_names)
    assert both.key == Material(made.read(), made.sources()).key
    assert torch.equal(
        one.synthetic.images, made.read(dict.fromkeys({source for source, *_ in made.sources()}, 1)).images
    )
    homes = list((run / "tuning" / "images").iterdir())
    assert len(homes) == 1, "values of `variants` share them"
    mixed = pictures.material(SAMPLE.model_copy(update={"interpolation": 0.9}))
    assert mixed.key != both.key and mixed.sources == both.sources, "the same partners"
    found = verify(run)
    assert not found.lost and found.foreign == ()
    assert {finding.kind for finding in found.findings} == {"unfinished"}
    with run_lock(run):
        discard(run, found)
    assert verify(run).findings == ()


@pytest.mark.slow
@pytest.mark.parametrize("nths", [(20, 9, 30), (45, 15)])
def test_a_killed_choice_goes_on_to_the_same(bench: Bench, whole: Path, tmp_path: Path, nths: tuple[int, ...]) -> None:
    run = tmp_path / "run"
    killed = sum(kill_during(bench, run, "tuned", Kill("recorded", nth)) for nth in nths)
    assert killed == len(nths)
    finish(bench, run, "tuned")
    assert_same(run, whole)


def test_processes_share_a_run_that_chooses(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert race(bench, run, "tuned", 2, shared=True) == [0, 0]
    found = [record(one)["chosen"] for one in (run, whole)]
    for ours, theirs in zip(*found, strict=True):
        assert ours | {"seconds": 0, "sentence": ""} == theirs | {"seconds": 0, "sentence": ""}
    assert len(trials(run)) == len(trials(whole)) and verify(run).findings == ()


def test_replicates_choose_for_themselves(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_lock(run):
        pipeline.run_all(
            run, DataSettings(data=str(bench.data)), bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN,
            command="dinv run data", tuning=read_tuning(["train.learning_rate=0.01"]), replicates=2,
        )  # fmt: skip
    found = record(run)
    assert [one["chosen"] for one in found["replicates"]] == [{"train.learning_rate": None}] * 2
    seeds = [{one["seed"] for one in trials(folder)} for folder in replicate_folders(run)]
    assert len(seeds) == 2 and seeds[0].isdisjoint(seeds[1])
    assert verify(run).findings == ()


def test_images_that_were_drawn_before_leave_nothing_to_choose(bench: Bench, run: Path) -> None:
    before = content(run)
    with pytest.raises(ConfigMismatchError, match=r"interpolation: images were drawn here before it was chosen"):
        tuned(bench, run)
    assert content(run) == before and not (run / "tuning").exists()


def test_forget_takes_the_choices_and_their_trainings(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    forget(run, read_embeddings(run).ids[:1])
    assert not any((run / name).exists() for name in (SAMPLE_FILE, TRAIN_FILE, "tuning"))
    assert "candidates" not in (run / "manifest.jsonl").read_text()
    assert verify(run).findings == ()


def test_what_cannot_be_chosen_is_refused_before_stage_1(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def dinv(*options: str) -> Any:
        where = ["--generator", str(bench.checkpoint), "--out", str(run), "--device", "cpu"]
        return CliRunner().invoke(app, ["run", str(bench.data), *where, *options])

    for options, said in (
        (("--tune", "tokens=2,3"), "a setting of stage 1"),
        (("--tune-seconds", "60"), "nothing is to be chosen"),
        (("--tune", "eta=0.5"), "dpm++ has no eta"),
        (("--tune", "kept_steps=7"), "vectors of these steps are not kept"),
        (("--tune", "real_fraction=0.25", "--real-fraction", "auto"), "leave out one of them"),
        (("--tune", "fast", "--arms", "real"), "choices are scored by real+synthetic"),
        (
            ("--tune", "augmentations=none", "--arms", "real", "--real-fraction", "auto"),
            "choices are scored by real+synthetic",
        ),
        (("--tune", "balance=none,class+site"), "--balance class,site: site is balanced, but no --attributes is given"),
        (("--online", "3", "--copies", "off", "--tune", "balance=none,class"), "--online --balance class"),
        (("--tune", "variants=1", "--mixing", "confidence", "--filter", "drop"), "images that no judge has looked at"),
    ):
        done = dinv(*options)
        assert done.exit_code in (2, 4) and said in done.output, done.output
        assert not (run / "embeddings").exists()


def test_the_command_says_what_it_chose(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = CliRunner().invoke(app, [
        "run", str(bench.data), "--generator", str(bench.checkpoint), "--out", str(run), "--device", "cpu", "--json",
        "--steps", "2", "--init", "random", "--variants", "2", "--inference-steps", "2", "--train-steps", "2",
        "--train-batch-size", "4", "--seeds", "0,1", "--tune", "variants=1", "--tune", "mixing=concatenate",
        "--tune-seconds", "500",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["chosen"]
    assert [(one["setting"], one["default"], one["chosen"]) for one in found] == [
        ("sample.variants", 2, 2), ("train.mixing", "batch", "batch"),
    ]  # fmt: skip
    assert found[0]["budget"] == 250 and 250 < found[1]["budget"] <= 500, "what is left goes to the last"
    assert found[0]["trainings"] == trials_of(1, 2 * FOLDS), "with a budget at both seeds"
    assert found == record(run)["chosen"]
    page = Page((run / "report.html").read_text())
    assert "What was chosen on the training images" in page.text and "batch, chosen" in page.text
    assert len(list((run / "synthetic").glob("*/*.png"))) == 24


def test_auto_beside_a_choice_of_the_same_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="leave out one"):
        prepared(read_tuning(["fast"]), SAMPLE, TRAIN.model_copy(update={"real_fraction": "auto"}))
    auto = prepared(None, None, TRAIN.model_copy(update={"real_fraction": "auto"}))
    assert auto.family == 4 and prepared(None, SAMPLE, TRAIN).axes == ()
