"""The recipe learns, repeats itself, mixes as told, and a killed run ends as if it had not been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from training_toys import TINY, batches_seen, equal, run_toy, toy

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, DataError, DinvError, UsageError
from diffusion_inversion.train.arms import ArmRun, train_arms
from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.evaluation import evaluate
from diffusion_inversion.train.mixing import RowOrder, real_per_batch
from diffusion_inversion.train.training import fingerprint, train


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_separable_images_are_learned() -> None:
    losses: list[float] = []
    settings = TrainSettings(steps=40, batch_size=32)
    classifier = train(
        toy(90, 0, size=16), settings=settings, device="cpu", on_step=lambda _, loss: losses.append(loss)
    )
    assert classifier.architecture == "resnet20" and not classifier.training
    assert evaluate(classifier, toy(300, 1, size=16)).accuracy > 0.95
    assert len(losses) == 40 and sum(losses[-5:]) < 0.2 * sum(losses[:5])


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = train(toy(20, 0), settings=TINY, seed=1, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert equal(first, train(toy(20, 0), settings=TINY, seed=1, device="cpu"))
    assert not equal(first, train(toy(20, 0), settings=TINY, seed=2, device="cpu"))


def test_the_optimizer_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    groups: list[dict[str, object]] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD) -> None:
        groups.append(dict(self.param_groups[0]))
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    train(toy(20, 0), settings=TrainSettings(steps=10, batch_size=4), device="cpu")
    assert rates == pytest.approx([0.05 * (1 + torch.cos(torch.tensor(torch.pi * k / 10)).item()) for k in range(10)])
    assert {(g["momentum"], g["weight_decay"], g["nesterov"]) for g in groups} == {(0.9, 5e-4, False)}


def test_rows_come_in_whole_epochs_and_full_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    order = RowOrder(10, generator)
    batches = [order.draw(4) for _ in range(10)]
    assert all(len(batch) == 4 for batch in batches)
    drawn = torch.cat(batches).tolist()
    epochs = [drawn[k : k + 10] for k in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len({tuple(e) for e in epochs}) == 4
    # A batch larger than the data set repeats each image as evenly as it can.
    counts = Counter(RowOrder(3, generator).draw(8).tolist())
    assert sorted(counts.values()) == [2, 3, 3]


@pytest.mark.parametrize(
    ("fraction", "batch", "real"), [(0.5, 128, 64), (0.25, 128, 32), (0.001, 128, 1), (0.999, 128, 127), (0.3, 2, 1)]
)
def test_real_fraction_counts_images(fraction: float, batch: int, real: int) -> None:
    assert real_per_batch(TrainSettings(real_fraction=fraction, batch_size=batch)) == real


def test_mixed_batches_hold_real_images_at_the_real_fraction() -> None:
    real, synthetic = toy(20, 0), toy(30, 1, name="synthetic")
    real = replace(real, images=real.images.clamp(min=1))
    synthetic = replace(synthetic, images=synthetic.images // 2 * 2)
    settings = TrainSettings(steps=6, batch_size=8, real_fraction=0.25, augmentations=("none",))
    known = {image.numpy().tobytes() for image in real.images}
    mixed = batches_seen(settings, real, synthetic)
    assert [sum(i.numpy().tobytes() in known for i in batch) for batch in mixed] == [2] * 6
    alone = batches_seen(settings, real)
    assert [sum(i.numpy().tobytes() in known for i in batch) for batch in alone] == [8] * 6
    # Paired: at one seed the real images come in the same order in both arms.
    assert torch.equal(torch.cat([batch[:2] for batch in mixed]), torch.cat(alone)[:12])


def test_arms_of_a_seed_start_from_the_same_weights() -> None:
    frozen = TrainSettings(steps=1, batch_size=8, learning_rate=1e-30, weight_decay=0)
    one, other = (train(toy(20, s), settings=frozen, seed=4, device="cpu") for s in (0, 1))
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-20) for a, b in pairs)
    assert not equal(one, other), "the batch statistics saw different images"


def test_a_fingerprint_changes_with_pixels_labels_names_and_order() -> None:
    images = toy(6, 0)
    pixels = images.images.clone()
    pixels[5, 2, 7, 7] ^= 1
    others = [
        replace(images, images=pixels),
        replace(images, labels=images.labels.flip(0)),
        replace(images, class_names=("red", "green", "violet")),
        images.subset([1, 0, 2, 3, 4, 5]),
    ]
    assert len({fingerprint(i) for i in (images, *others)}) == 5
    assert fingerprint(replace(images, name="other")) == fingerprint(toy(6, 0))


def test_unusable_input_fails_before_anything_is_trained() -> None:
    real, small, test = toy(9, 0), toy(9, 1, size=16), toy(9, 2)

    def never(*_: object) -> None:
        pytest.fail("a step was taken")

    with pytest.raises(DataError, match="no images"):
        train(real.subset([]), settings=TINY, on_step=never)
    with pytest.raises(DataError, match="16 px"):
        train(real, synthetic=small, settings=TINY, on_step=never)
    with pytest.raises(UsageError, match="dinv sample"):
        train_arms(real, None, test, settings=TINY, on_step=never)
    with pytest.raises(DataError, match="16 px"):
        train_arms(real, real, small, settings=TINY, on_step=never)
    with pytest.raises(DataError, match="violet"):
        train_arms(real, real, replace(test, class_names=("red", "green", "violet")), settings=TINY, on_step=never)
    with pytest.raises(UsageError, match="Give each once"):
        train_arms(real, real, test, settings=TINY.model_copy(update={"seeds": (1, 1, 1)}), on_step=never)


def test_divergence_is_an_error_that_names_the_learning_rate() -> None:
    with pytest.raises(DinvError, match="learning_rate"):
        train(toy(20, 0), settings=TrainSettings(steps=60, batch_size=4, learning_rate=1e12), device="cpu")


def test_every_arm_and_seed_is_trained_for_the_same_steps(tmp_path: Path) -> None:
    steps: Counter[tuple[str, int]] = Counter()
    runs: list[ArmRun] = []
    results = run_toy(tmp_path, on_step=lambda arm, seed, _step, _loss: steps.update([(arm, seed)]), on_run=runs.append)
    pairs = [(arm, seed) for seed in (0, 1) for arm in ("real", "synthetic", "real+synthetic")]
    assert steps == Counter(dict.fromkeys(pairs, 3)) and [(r.arm, r.seed) for r in runs] == pairs
    assert list(results.accuracies()) == ["real", "synthetic", "real+synthetic"]
    for arm, hits in results.correct().items():
        assert hits.shape == (2, 12) and hits.double().mean(1).tolist() == pytest.approx(results.accuracies()[arm])
    # The saved files are the classifiers that were measured, and say how they were made.
    for run in results.runs:
        assert run.classifier is not None
        loaded = Classifier.load(run.classifier)
        assert torch.equal(evaluate(loaded, toy(12, 2)).predictions, run.evaluation.predictions)
        assert loaded.provenance["seed"] == run.seed and loaded.provenance["settings"]["steps"] == 3
        assert (loaded.provenance["synthetic"] is not None) == (run.arm == "real+synthetic")
    assert results.verdict().outcome == "not enough evidence"


KILLED = """
import os, sys
from pathlib import Path
import torch
from training_toys import run_toy
torch.set_num_threads(1)
def die(*where):
    if where[:3] == ("synthetic", 1, 2):
        os._exit(9)
run_toy(Path(sys.argv[1]), on_step=die)
"""


def listed(trained: list[tuple[str, int]]) -> Callable[[str, int, int, float], None]:
    """An `on_step` that lists what is trained now, not read from the folder."""
    return lambda arm, seed, step, _: None if step > 1 else trained.append((arm, seed))


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert forked.run(KILLED, killed).returncode == 9
    assert [(r["arm"], r["seed"]) for r in Manifest(killed / "classifiers" / "manifest.jsonl").records()] == [
        ("real", 0), ("synthetic", 0), ("real+synthetic", 0), ("real", 1),
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in killed.glob("classifiers/*.safetensors")}

    trained: list[tuple[str, int]] = []
    resumed = run_toy(killed, on_step=listed(trained))
    uninterrupted = run_toy(whole)
    assert trained == [("synthetic", 1), ("real+synthetic", 1)]
    assert resumed.accuracies() == uninterrupted.accuracies()
    for one, other in zip(resumed.runs, uninterrupted.runs, strict=True):
        assert (one.arm, one.seed) == (other.arm, other.seed)
        assert torch.equal(one.evaluation.predictions, other.evaluation.predictions)
        assert one.evaluation.confusion.equal(other.evaluation.confusion)
        assert one.evaluation.per_class == other.evaluation.per_class
        assert one.evaluation.ece == other.evaluation.ece is not None
    files = [{p.name: p.read_bytes() for p in run.glob("classifiers/*.safetensors")} for run in (killed, whole)]
    assert files[0] == files[1] and len(files[0]) == 6
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), "what was done is not redone"


def test_changed_settings_refuse_more_seeds_go_on_and_changed_data_trains_anew(tmp_path: Path) -> None:
    one = TrainSettings(architecture="resnet20", steps=2, batch_size=8, seeds=(0,))
    first = run_toy(tmp_path, one)
    real, synthetic, test = toy(20, 0), toy(30, 1, name="synthetic"), toy(12, 2, name="test")
    with pytest.raises(ConfigMismatchError, match="steps"):
        run_toy(tmp_path, one.model_copy(update={"steps": 4}))
    trained: list[tuple[str, int]] = []
    more = run_toy(tmp_path, one.model_copy(update={"seeds": (1, 0)}), on_step=listed(trained))
    assert trained == [(arm, 1) for arm in one.arms]
    assert more.accuracies()["real"][1] == first.accuracies()["real"][0], "accuracies are in seed order"
    before = {path.name: path.read_bytes() for path in (tmp_path / "classifiers").glob("*.safetensors")}
    for images in ((toy(20, 9), synthetic, test), (real, toy(30, 9), test), (real, synthetic, toy(12, 9))):
        trained.clear()
        train_arms(*images, settings=one, device="cpu", folder=tmp_path, on_step=listed(trained))
        assert trained == [(arm, 0) for arm in one.arms]
    assert all((tmp_path / "classifiers" / name).read_bytes() == content for name, content in before.items())
    assert len(list((tmp_path / "classifiers").glob("*.safetensors"))) == 6 + 3 * 3
    trained.clear()
    run_toy(tmp_path, one, on_step=listed(trained))
    assert trained == []
