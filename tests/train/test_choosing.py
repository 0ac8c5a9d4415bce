"""Choices by real trainings of small classifiers on hand-made stores, in which one value helps or harms."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toys import toy

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.config.tuning import Tuning, read_tuning
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import DataError
from diffusion_inversion.train.choosing import Candidate, ChoiceRecord, Folds, Material, choose_all, chosen_before
from diffusion_inversion.train.evaluation import evaluate
from diffusion_inversion.train.training import recipe, train

SETTINGS = TrainSettings(architecture="resnet20", steps=16, batch_size=16, seeds=(0, 1), augmentations=("none",))
REAL = toy(60, 0, size=8)
CPU = torch.device("cpu")


@cache
def made(wrong: bool, copies: bool = False) -> Material:
    """One synthetic image of each real one: of its class or another; or its copy, which memory alone can use."""
    images = REAL if copies else toy(60, 1, size=8, name="synthetic")
    ids = tuple(f"synthetic/{i}" for i in REAL.ids)
    labels = (REAL.labels + 1) % 3 if wrong else REAL.labels
    return Material(replace(images, ids=ids, labels=labels), [(i,) for i in REAL.ids])


def choose(
    run: Path, text: str, base: TrainSettings = SETTINGS, seconds: float | None = None, *, wrong: bool = True
) -> ChoiceRecord:
    tuning = read_tuning([text], seconds)

    def make(settings: TrainSettings, purpose: str) -> Candidate:
        return Candidate(settings, lambda: made(wrong).key, lambda: made(wrong))

    (found,), settings = choose_all(
        Folds(run, REAL, "cpu"), "choice.json", base, tuning.axes, make, lambda one: recipe(one, CPU), tuning
    )
    assert getattr(settings, tuning.axes[0].name) == found["chosen"]
    return found


def test_a_share_that_helps_is_chosen_and_one_that_harms_is_not(tmp_path: Path) -> None:
    """Synthetic images of the wrong class: the more real ones a batch has, the better."""
    few = SETTINGS.model_copy(update={"real_fraction": 1 / 8})
    helped = choose(tmp_path / "helped", "real_fraction=0.125,0.875", few)
    assert (helped["default"], helped["chosen"]) == (0.125, 0.875)
    (gain,) = helped["candidates"]
    assert gain["low"] is not None and gain["difference"] is not None and 0 < gain["low"] < gain["difference"]
    assert "0.875 was chosen over 0.125" in helped["sentence"]
    many = SETTINGS.model_copy(update={"real_fraction": 7 / 8})
    harmed = choose(tmp_path / "harmed", "real_fraction=0.125,0.875", many)
    assert harmed["chosen"] == 0.875
    (loss,) = harmed["candidates"]
    assert loss["difference"] == pytest.approx(-gain["difference"]), "the same trainings, the other way round"


def test_where_both_are_as_good_the_default_stays(tmp_path: Path) -> None:
    found = choose(tmp_path, "real_fraction=0.5,0.75", wrong=False)
    assert found["chosen"] == 0.5 and "nothing beat it beyond its interval" in found["sentence"]


def test_settings_of_sampling_are_chosen_by_what_their_images_teach(tmp_path: Path) -> None:
    """A store of which each value of interpolation, and so each noise strength beside it, has images of its own."""
    tuning = read_tuning(["interpolation=0.1,0.4,0.9", "noise_strength=0.1,0.2"])
    base = SampleSettings()
    few = SETTINGS.model_copy(update={"real_fraction": 1 / 8})
    asked: list[SampleSettings] = []

    def make(settings: SampleSettings, purpose: str) -> Candidate:
        asked.append(settings)
        good = settings.interpolation == 0.4 and settings.noise_strength == 0.1
        return Candidate(few, lambda: made(not good).key, lambda: made(not good))

    def describe(settings: SampleSettings) -> dict[str, Any]:
        return settings.described()

    found, settings = choose_all(Folds(tmp_path, REAL, "cpu"), "choice.json", base, tuning.axes, make, describe, tuning)
    assert [one["chosen"] for one in found] == [0.4, 0.1], "0.2 would undo it"
    assert (settings.interpolation, settings.noise_strength) == (0.4, 0.1)
    assert all(one.interpolation == 0.4 for one in asked if one.noise_strength == 0.2), "beside what was chosen"
    assert chosen_before(tmp_path, "choice.json", tuning.axes, base, describe) == (found, settings)
    other = base.model_copy(update={"scheduler": "ddim"})
    assert chosen_before(tmp_path, "choice.json", tuning.axes, other, describe) == ([], other)


def test_a_value_that_an_earlier_choice_rules_out_is_not_tried(tmp_path: Path) -> None:
    """Each can be beside the defaults; a mixture of several has no nearest partner."""
    tuning = read_tuning(["interpolation_kind=lerp,dirichlet", "partner=same-class,nearest"])
    base, few = SampleSettings(), SETTINGS.model_copy(update={"real_fraction": 1 / 8})

    def make(settings: SampleSettings, purpose: str) -> Candidate:
        good = settings.interpolation_kind == "dirichlet"
        return Candidate(few, lambda: made(not good).key, lambda: made(not good))

    def describe(settings: SampleSettings) -> dict[str, Any]:
        return settings.described()

    found, settings = choose_all(Folds(tmp_path, REAL, "cpu"), "choice.json", base, tuning.axes, make, describe, tuning)
    assert (settings.interpolation_kind, settings.partner) == ("dirichlet", "same-class")
    (nearest,) = found[1]["candidates"]
    assert (nearest["value"], nearest["trainings"], nearest["difference"]) == ("nearest", 0, None)
    assert "partner stays same-class" in found[1]["sentence"] and "nearest not tried" in found[1]["sentence"]
    assert chosen_before(tmp_path, "choice.json", tuning.axes, base, describe) == (found, settings)


def test_a_generator_that_copies_is_not_preferred_to_one_that_draws_anew(tmp_path: Path) -> None:
    """Of classes that take hundreds of images to learn: copies add none, what is drawn anew does."""
    real, new = (toy(n, n, name=f"{n}", noise=200, signal=16) for n in (60, 480))
    copies = Material(replace(real, ids=tuple(f"copy/{i}" for i in real.ids)), [(i,) for i in real.ids])
    anew = Material(new, [(real.ids[row % 60],) for row in range(480)])
    settings = SETTINGS.model_copy(update={"steps": 30, "batch_size": 32, "real_fraction": 1 / 4})
    tuning = read_tuning(["interpolation=0.1,0.4"])

    def found(copying: float) -> ChoiceRecord:
        def make(asked: SampleSettings, purpose: str) -> Candidate:
            material = copies if asked.interpolation == copying else anew
            return Candidate(settings, lambda: material.key, lambda: material)

        def describe(asked: SampleSettings) -> dict[str, Any]:
            return asked.described() | {"copying": copying}

        folds = Folds(tmp_path, real, "cpu")  # whose trainings serve both
        return choose_all(folds, f"{copying}.json", SampleSettings(), tuning.axes, make, describe, tuning)[0][0]

    away, towards = found(0.1), found(0.4)
    (gain,), (loss,) = away["candidates"], towards["candidates"]
    assert gain["difference"] is not None and gain["difference"] > 0.1
    assert loss["difference"] == pytest.approx(-gain["difference"]) and towards["chosen"] == 0.1


def test_copies_of_the_training_images_teach_a_fold_nothing_of_its_own(tmp_path: Path) -> None:
    """A generator that copies: were a held-out image's copy trained on, small classes would be known by heart."""
    stream = torch.Generator().manual_seed(3)
    noise = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=stream)
    real = replace(REAL, images=noise, hashes=REAL.ids)  # labels that pixels say nothing of
    copies = Material(replace(real, ids=tuple(f"copy/{i}" for i in real.ids)), [(i,) for i in real.ids])
    settings = SETTINGS.model_copy(update={"steps": 40, "real_fraction": 1 / 8})
    folds = Folds(tmp_path, real, "cpu")
    candidate = Candidate(settings, lambda: copies.key, lambda: copies)
    hits = [folds.trial(candidate, cell, "copies").correct for cell in folds.cells([0])]
    assert float(torch.cat(hits).double().mean()) < 0.6, "chance is a third"
    classifier = train(real, synthetic=copies.synthetic, settings=settings, seed=0, device="cpu")
    assert evaluate(classifier, real).accuracy > 0.8, "by heart, where they are trained on"


def test_a_trial_is_done_once_and_measures_the_fold_that_it_left_out(tmp_path: Path) -> None:
    folds = Folds(tmp_path, REAL, "cpu")
    candidate = Candidate(SETTINGS, lambda: made(False).key, lambda: made(False))
    cell = folds.cells(SETTINGS.seeds)[FOLD]
    first = folds.trial(candidate, cell, "one")
    kept = Manifest(tmp_path / "tuning" / "manifest.jsonl").records()
    again = folds.trial(candidate, cell, "another")
    assert Manifest(tmp_path / "tuning" / "manifest.jsonl").records() == kept
    assert torch.equal(first.correct, again.correct) and first.seconds > 0 and again.seconds == 0
    part = folds.split(made(False), cell.fold)
    classifier = train(
        REAL.subset(part.training), synthetic=made(False).synthetic.subset(part.synthetic), settings=SETTINGS,
        seed=cell.seed, device="cpu",
    )  # fmt: skip
    held = REAL.subset(part.held_out)
    assert torch.equal(evaluate(classifier, held).predictions == held.labels, first.correct)
    assert list(first.rows) == list(part.held_out)


FOLD = 7  # the third fold at the second seed


def test_a_budget_of_seconds_ends_a_choice_at_its_default(tmp_path: Path) -> None:
    found = choose(tmp_path, "real_fraction=0.125,0.25,0.5,0.75", seconds=1e-3)
    assert found["trainings"] == 1 and found["cut_short"] and found["chosen"] == 0.5
    assert [one["difference"] for one in found["candidates"]] == [None] * 3 and "not tried" in found["sentence"]


def test_too_few_images_are_no_ground_for_a_choice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 of 3 images to validate on, in 0 folds"):
        Folds(tmp_path, REAL.subset(range(3)), "cpu")
    folds = Folds(tmp_path, REAL, "cpu")
    everywhere = replace(made(False), sources=[REAL.ids] * 60)
    with pytest.raises(DataError, match="0 synthetic ones that were made without them"):
        folds.check(everywhere)
    assert Tuning().of("train") == ()
