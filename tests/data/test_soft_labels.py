"""Images between two classes: their targets, from the record in the run to the loss."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from harness import SAMPLE, Bench, content, invert, report, train, units
from torch import Tensor
from training_toys import equal, toy

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.data.soft_labels import SoftLabels
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.engine.state import UnitState
from diffusion_inversion.errors import DataError
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.synthetic import SyntheticStore, read_synthetic
from diffusion_inversion.train import training
from diffusion_inversion.train.arms import data_version
from diffusion_inversion.train.augment import make_augmentation

PLAIN = TrainSettings(architecture="resnet20", steps=2, batch_size=8, augmentations=("none",), real_fraction=0.5)


def soft(images: LabelledImages, weight: float = 0.75) -> LabelledImages:
    """The images, each with the next class as its second."""
    second = (images.labels + 1) % len(images.class_names)
    return replace(images, soft=SoftLabels(second, torch.full((len(images),), weight)))


def goals(
    monkeypatch: pytest.MonkeyPatch, settings: TrainSettings, images: LabelledImages, synthetic: LabelledImages | None
) -> list[Tensor]:
    """The targets that the loss gets at each step."""
    seen: list[Tensor] = []
    loss = training.F.cross_entropy

    def look(logits: Tensor, goal: Tensor, **options: float) -> Tensor:
        seen.append(goal)
        return loss(logits, goal, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training.F, "cross_entropy", look)
        training.train(images, synthetic=synthetic, settings=settings, device="cpu")
    return seen


def test_targets_have_the_weights_at_their_classes() -> None:
    labels = SoftLabels(torch.tensor([1, 2, 0]), torch.tensor([0.9, 0.0, 1.0]))
    found = labels.targets(torch.tensor([0, 1, 0]), 3)
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    assert torch.equal(
        SoftLabels.hard(torch.tensor([2])).targets(torch.tensor([2]), 3), torch.tensor([[0.0, 0.0, 1.0]])
    )


@pytest.mark.parametrize("mixing", ["batch", "concatenate", "sequential"])
def test_they_reach_the_loss_beside_hard_ones(monkeypatch: pytest.MonkeyPatch, mixing: str) -> None:
    settings = PLAIN.model_copy(update={"mixing": mixing})
    real, synthetic = toy(24, 0), soft(toy(24, 1, name="synthetic"))
    found = torch.cat(goals(monkeypatch, settings, real, synthetic))
    assert found.shape == (16, 3)
    kinds = {tuple(sorted(row)) for row in found.tolist()}
    assert kinds == {(0.0, 0.0, 1.0), (0.0, 0.25, 0.75)}
    for row in found.tolist():
        if 0.75 in row:
            assert row[(row.index(0.75) + 1) % 3] == 0.25
    (hard, *_) = goals(monkeypatch, settings, real, toy(24, 1, name="synthetic"))
    assert hard.dtype == torch.int64, "without soft labels nothing changes"


def test_hard_labels_written_as_soft_ones_train_the_same() -> None:
    real, synthetic = toy(24, 0), toy(24, 1, name="synthetic")
    written = replace(synthetic, soft=SoftLabels.hard(synthetic.labels))
    one = training.train(real, synthetic=synthetic, settings=PLAIN, device="cpu")
    other = training.train(real, synthetic=written, settings=PLAIN, device="cpu")
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_mixup_blends_soft_targets_with_the_share_of_the_pixels() -> None:
    """Each image is one grey value, so the share of its partner can be read off the pixels."""
    values = torch.tensor([0, 40, 100, 240])
    images = values.to(torch.uint8)[:, None, None, None].expand(4, 3, 8, 8).contiguous()
    targets = torch.tensor([[0.8, 0.2, 0.0], [0.5, 0.5, 0.0], [0.0, 0.9, 0.1], [0.3, 0.0, 0.7]])
    mixed, found = make_augmentation(("mixup",), 3)(images, targets, torch.Generator().manual_seed(2))
    grey = mixed[:, 0, 0, 0].double()
    for row in range(4):
        fits = []
        for partner in range(4):
            if partner != row:
                share = (grey[row] - values[row]) / (values[partner] - values[row])
                blend = (1 - share) * targets[row] + share * targets[partner]
                fits.append(float((found[row] - blend).abs().max()))
        assert min(fits) < 0.02
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    torch.testing.assert_close(found.mean(0), targets.mean(0))
    assert not torch.allclose(found, targets)


def test_adversarial_copies_keep_the_targets_of_their_originals_and_a_kill_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PLAIN.model_copy(update={"steps": 4, "me_ada_every": 1, "me_ada_share": 0.5, "me_ada_steps": 1})
    real, synthetic = toy(12, 0), soft(toy(12, 1, name="synthetic"))
    found = goals(monkeypatch, settings, real, synthetic)
    assert {tuple(sorted(row)) for row in torch.cat(found).tolist()} == {(0.0, 0.0, 1.0), (0.0, 0.25, 0.75)}
    found = goals(monkeypatch, settings, synthetic, None)
    assert {tuple(sorted(row)) for row in torch.cat(found).tolist()} == {(0.0, 0.25, 0.75)}
    whole = training.train(real, synthetic=synthetic, settings=settings, device="cpu")

    class Killed(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Killed

    monkeypatch.setattr("diffusion_inversion.engine.state.EVERY", 0.0)
    with pytest.raises(Killed):
        training.train(
            real, synthetic=synthetic, settings=settings, device="cpu", on_step=stop,
            state=UnitState(tmp_path, ("unit",), "x"),
        )  # fmt: skip
    again = training.train(
        real, synthetic=synthetic, settings=settings, device="cpu", state=UnitState(tmp_path, ("unit",), "x")
    )
    assert equal(again, whole)


def test_what_identifies_images_includes_them() -> None:
    images = toy(6, 0)
    one, other = soft(images), soft(images, 0.5)
    assert len({data_version(images, part, images) for part in (images, one, other)}) == 3
    assert len({part.digest for part in (images, one, other)}) == 3
    part = one.subset([4, 1])
    assert part.soft is not None and part.soft.second.tolist() == [(int(images.labels[row]) + 1) % 3 for row in (4, 1)]
    assert one.resized(16).soft is one.soft


@pytest.mark.parametrize(
    ("second", "weight", "said"),
    [
        ([0, 3], [0.5, 0.5], r"second class lies outside 0\.\.2"),
        ([0, 1], [0.5, 1.5], r"weight of a label lies outside 0\.\.1"),
        ([0, 1], [0.5, float("nan")], r"weight of a label lies outside 0\.\.1"),
        ([0], [0.5], "as many second classes"),
    ],
)
def test_impossible_ones_are_refused(second: list[int], weight: list[float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        replace(toy(2, 0), soft=SoftLabels(torch.tensor(second), torch.tensor(weight)))


# --- in a run ---------------------------------------------------------------------------------------------------------

BETWEEN = SAMPLE.model_copy(update={"partner": "other-class", "interpolation": 0.25})


@pytest.fixture(scope="module")
def between(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose synthetic images lie between two classes; not to be changed."""
    run = tmp_path_factory.mktemp("between") / "run"
    with run_lock(run):
        invert(bench, run)
        pipeline.sample_stage(run, bench.generator(), BETWEEN, sources=open_splits(run).train)
        train(bench, run)
        report(bench, run)
    return run


def test_a_run_keeps_them(bench: Bench, between: Path) -> None:
    images = read_synthetic(between, ("cat", "dog"))
    assert images.soft is not None
    torch.testing.assert_close(images.soft.weight, torch.full((24,), 0.75))
    assert torch.equal(images.soft.second, 1 - images.labels)
    rows = pq.read_table(between / "synthetic" / "metadata.parquet").to_pylist()
    assert {(row["label"], row["partner_label"], row["label_weight"]) for row in rows} == {(0, 1, 0.75), (1, 0, 0.75)}
    assert {row["partner"] for row in rows} == {"other-class"}
    assert verify(between).findings == ()


def test_repair_brings_them_back(between: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(between, tmp_path / "run"))
    for path in sorted((run / "synthetic").rglob("*.png"))[::5]:
        path.write_bytes(b"gone")
    with run_lock(run):
        discard(run, verify(run))
        assert resume(run) == []
    assert verify(run).findings == ()
    assert content(run) == content(between) and units(run) == units(between)


def test_forget_takes_images_of_both_parents(between: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(between, tmp_path / "run"))
    store = SyntheticStore(run, ("cat", "dog"))
    rows = store.table().to_pylist()
    victim = rows[0]["source_id"]
    gone = [row for row in rows if victim in (row["source_id"], row["partner_id"])]
    assert any(row["partner_id"] == victim for row in gone)
    forget(run, [victim], keep_averages=True)
    kept = {row["file_name"]: row for row in rows if row not in gone}
    assert {row["file_name"]: row for row in store.table().to_pylist()} == kept


def test_guided_away_from_no_average_an_image_descends_from_its_parents_alone(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_lock(run):
        invert(bench, run)
        settings = SAMPLE.model_copy(update={"unconditional": "empty", "guidance_scales": (2.0,)})
        pipeline.sample_stage(run, bench.generator(), settings)
    rows = SyntheticStore(run, ("cat", "dog")).table().to_pylist()
    victim = rows[0]["source_id"]
    direct = [row for row in rows if victim in (row["source_id"], row["partner_id"])]
    done = forget(run, [victim])
    assert done.synthetic == len(direct) < len(rows)


def test_records_of_earlier_versions_are_read_and_gone_on_with(bench: Bench, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    manifest = Manifest(run / "synthetic" / "manifest.jsonl")
    new = (
        "interpolation_kind", "partner", "unconditional", "group_size", "guidance_interval", "eta", "resolution",
        "shared_noise", "rival_weight",
    )  # fmt: skip
    records = []
    for record in manifest.records():
        if record["event"] == "commit":
            columns = {k: v for k, v in record["columns"].items() if k not in ("partner_label", "label_weight")}
            shared = {k: v for k, v in record["shared"].items() if k not in new}
            record = {**record, "columns": columns, "shared": shared}
        records.append(record)
    manifest.rewrite(records)
    before = SyntheticStore(finished, ("cat", "dog")).table().to_pylist()
    known = [{k: v for k, v in row.items() if k not in ("group_size", "resolution")} for row in before]
    found = SyntheticStore(run, ("cat", "dog")).table().to_pylist()
    assert [{k: v for k, v in row.items() if k not in ("group_size", "resolution")} for row in found] == known
    assert read_synthetic(run, ("cat", "dog")).soft is None
    victim = next((run / "synthetic").rglob("*.png"))
    victim.write_bytes(b"gone")
    with run_lock(run):
        discard(run, verify(run))
        assert resume(run) == []
    assert verify(run).findings == ()
    pictures = [path.relative_to(run) for path in (run / "synthetic").rglob("*.png")]
    assert all((run / name).read_bytes() == (finished / name).read_bytes() for name in pictures)


def test_impossible_records_are_refused(between: Path, tmp_path: Path) -> None:
    for key, value in (("partner_label", 2), ("label_weight", 1.5)):
        run = Path(shutil.copytree(between, tmp_path / key))
        manifest = Manifest(run / "synthetic" / "manifest.jsonl")
        records = manifest.records()
        first = next(record for record in records if record["event"] == "commit")
        first["columns"][key][0] = value
        manifest.rewrite(records)
        with pytest.raises(DataError, match="unknown label, a weight"):
            SyntheticStore(run, ("cat", "dog")).table().to_pylist()


def test_answers_have_the_rest_of_the_weight_whatever_the_classes_are_numbered() -> None:
    answers = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    labels = torch.tensor([0, 1])
    found = SoftLabels(labels, torch.tensor([0.5, 0.25]), answers)
    expected = torch.tensor([[0.75, 0.15, 0.1], [0.075, 0.325, 0.6]])
    torch.testing.assert_close(found.targets(labels, 3), expected)
    number = torch.tensor([2, 0, 3])
    moved = found.renumbered(number, 4).targets(number[labels], 4)
    torch.testing.assert_close(moved[:, number], expected)
    assert torch.equal(moved[:, 1], torch.zeros(2))
    both = SoftLabels.cat([SoftLabels(labels, torch.tensor([1.0, 0.75])), found]).targets(labels.repeat(2), 3)
    torch.testing.assert_close(both[2:], expected)
    assert torch.equal(both[:2], torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))


def test_answers_reach_the_loss_and_adversarial_copies_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PLAIN.model_copy(update={"steps": 4, "me_ada_every": 1, "me_ada_share": 0.5, "me_ada_steps": 1})
    images = toy(12, 1, name="synthetic")
    answers = torch.tensor([0.5, 0.3, 0.2]).expand(12, -1)
    answered = replace(images, soft=SoftLabels(images.labels, torch.full((12,), 0.5), answers))
    assert data_version(images, None, images) != data_version(answered, None, images)
    found = torch.cat(goals(monkeypatch, settings, answered, None))
    wanted = {0: (0.75, 0.15, 0.1), 1: (0.25, 0.65, 0.1), 2: (0.25, 0.15, 0.6)}
    assert {tuple(round(v, 6) for v in row) for row in found.tolist()} <= set(wanted.values())
    with pytest.raises(DataError, match="do not sum to 1"):
        replace(images, soft=SoftLabels(images.labels, torch.ones(12), 2 * answers))
