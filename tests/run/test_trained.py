"""Which classifiers of a run are put to use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_toys import TINY, equal, toy

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.run.report.record import VerdictRecord
from diffusion_inversion.run.trained import recommended, trained
from diffusion_inversion.train.arms import ArmRun, train_arms
from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.ensemble import probabilities
from diffusion_inversion.train.store import ClassifierStore

ARMS = ("real", "synthetic", "real+synthetic", "real (own size)")


def verdict(outcome: str, arm: str | None = None, baseline: str = "real") -> VerdictRecord:
    compared = {"arm": "synthetic", "baseline": baseline, "difference": 0.0, "low": None, "high": None}
    record = {"outcome": outcome, "sentence": "", "comparisons": [compared]}
    return record | ({} if arm is None else {"arm": arm})  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("record", "arm"),
    [
        (verdict("helps", "synthetic"), "synthetic"),
        (verdict("helps", "real+synthetic"), "real+synthetic"),
        (verdict("harms", "synthetic"), "real"),
        (verdict("does not help", "synthetic", "real (own size)"), "real (own size)"),
        (verdict("not enough evidence", "synthetic"), "real+synthetic"),
        (None, "real+synthetic"),
    ],
)
def test_the_arm_is_the_one_that_the_verdict_recommends(record: VerdictRecord | None, arm: str) -> None:
    assert recommended(record, ARMS, "real+synthetic")[0] == arm


def test_an_arm_that_was_not_trained_is_not_recommended() -> None:
    assert (
        recommended(verdict("helps", "synthetic"), ("real", "real+synthetic"), "real+synthetic")[0] == "real+synthetic"
    )
    assert recommended(None, ("real",), "real+synthetic")[0] == "real"


def train_on(folder: Path, seed: int, settings: TrainSettings = TINY, stop_after: int = 99) -> None:
    """Train on toys drawn by `seed`; stop as a killed process would after so many classifiers."""
    now: set[tuple[str, int]] = set()  # those that are trained now, not found in the folder

    def count(run: ArmRun) -> None:
        if (run.arm, run.seed) in now and len(now) > stop_after:
            raise KeyboardInterrupt

    arms = (toy(20, seed), toy(30, seed + 1, name="synthetic"), toy(12, seed + 2, name="test"))
    train_arms(
        *arms, settings=settings, device="cpu", folder=folder, on_run=count, on_step=lambda *step: now.add(step[:2])
    )


def test_of_images_that_changed_the_last_classifiers_count(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Run `dinv train"):
        trained(tmp_path)
    train_on(tmp_path, 0)
    before = trained(tmp_path)
    assert (before.arm, list(before.by_seed)) == ("real+synthetic", [0, 1])
    first = {path.name for path in (tmp_path / "classifiers").glob("*.safetensors")}
    train_on(tmp_path, 50)
    after = trained(tmp_path)
    for seed, classifier in after.by_seed.items():
        (path,) = [
            path
            for path in (tmp_path / "classifiers").glob(f"real+synthetic-seed{seed}-*.safetensors")
            if path.name not in first
        ]
        assert equal(classifier, Classifier.load(path)) and not equal(classifier, before.by_seed[seed])


def test_images_that_are_those_of_before_again_have_their_classifiers_again(tmp_path: Path) -> None:
    """As after --variants 2, 4 and 2 once more, of which the last finds all that it needs."""
    train_on(tmp_path, 0)
    before, store = trained(tmp_path, "real").by_seed, ClassifierStore(tmp_path)
    train_on(tmp_path, 50)
    with pytest.raises(KeyboardInterrupt):
        train_on(tmp_path, 70, stop_after=1)
    train_on(tmp_path, 0)
    assert all(equal(one, before[seed]) for seed, one in trained(tmp_path, "real").by_seed.items())
    assert {one["unit"] for one in store.current("real").values()} < store.manifest.units().keys()
    again = store.manifest.path.read_bytes()
    train_on(tmp_path, 0)
    assert store.manifest.path.read_bytes() == again
    old = [{key: value for key, value in record.items() if key != "data"} for record in store.manifest.records()]
    store.manifest.rewrite(old)  # as earlier versions wrote it: the last ones count
    with pytest.raises(UsageError, match=r"of arm real the classifiers of seeds 1 are not there"):
        trained(tmp_path, "real")


def test_half_a_training_is_refused_and_seeds_that_were_not_finished_do_not_count(tmp_path: Path) -> None:
    train_on(tmp_path, 0)
    with pytest.raises(KeyboardInterrupt):
        train_on(tmp_path, 0, TINY.model_copy(update={"seeds": (0, 1, 2)}), stop_after=1)
    assert list(trained(tmp_path, "real").by_seed) == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        train_on(tmp_path, 50, stop_after=1)
    with pytest.raises(UsageError, match=r"arm real the classifiers of seeds 1 are not there"):
        trained(tmp_path, "real")


def test_a_classifier_that_was_changed_is_refused(tmp_path: Path) -> None:
    train_on(tmp_path, 0)
    (path,) = (tmp_path / "classifiers").glob("real-seed1-*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert trained(tmp_path, "synthetic").arm == "synthetic"
    with pytest.raises(DataError, match=r"changed since it was written. `dinv repair"):
        trained(tmp_path, "real")


def test_an_ensemble_is_the_mean_of_probabilities_not_of_logits() -> None:
    torch.manual_seed(0)
    members = [Classifier("resnet20", ("a", "b", "c"), 8).eval() for _ in range(3)]
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        each = [one.logits(images / 255) for one in members]
    expected = sum(logits.exp() / logits.exp().sum(1, keepdim=True) for logits in each) / 3
    assert torch.allclose(probabilities(members, images), expected.double(), atol=1e-6)
    assert not torch.allclose(expected, torch.stack(each).mean(0).softmax(1), atol=1e-4)
