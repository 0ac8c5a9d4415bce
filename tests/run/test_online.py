"""`--online`: classifiers of images that are drawn while they train are those of images that were drawn before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from harness import SAMPLE, TRAIN, Bench, Kill, content, invert, kill_during
from safetensors.torch import load_file
from training_toys import pair

from diffusion_inversion.config.fidelity import FilterSettings
from diffusion_inversion.config.tuning import read_tuning
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import UsageError
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.layout import identify
from diffusion_inversion.run.online import ahead_of, refuse_online
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.train.mixing import Pool, make_pools, measure, queue

QUEUED = TRAIN.model_copy(update={"steps": 12, "mixing": "queue", "arms": ("real+synthetic", "real"), "seeds": (0, 1)})
ONLINE = QUEUED.model_copy(update={"online": 3})


@pytest.fixture(scope="module")
def learned(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after stage 2 with one variant; not to be changed."""
    run = tmp_path_factory.mktemp("learned") / "run"
    with run_lock(run):
        invert(bench, run)
        pipeline.sample_stage(
            run, bench.generator(), SAMPLE.model_copy(update={"variants": 1}), sources=open_splits(run).train
        )
    return run


def train(bench: Bench, run: Path, settings: object = ONLINE) -> None:
    with run_lock(run):
        pipeline.train_stage(run, open_splits(run), settings, "cpu", generator=bench.generator())  # type: ignore[arg-type]


def weights(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """By arm and seed."""
    return {path.name.rpartition("-")[0]: load_file(path) for path in (run / "classifiers").glob("*.safetensors")}


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name][key]) for name, file in ours.items() for key, value in file.items()
    )


@pytest.fixture(scope="module")
def online(bench: Bench, learned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose images were drawn while it trained; not to be changed."""
    run = Path(shutil.copytree(learned, tmp_path_factory.mktemp("online") / "run"))
    train(bench, run)
    return run


def test_it_is_what_a_queue_drawn_beforehand_gives(bench: Bench, learned: Path, online: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(learned, tmp_path / "run"))
    with run_lock(run):
        more = SAMPLE.model_copy(update={"variants": 3})
        pipeline.sample_stage(run, bench.generator(), more, sources=open_splits(run).train)
    train(bench, run, QUEUED)
    assert same(online, run) and len(weights(run)) == 4
    found = load_file(next((online / "classifiers").glob("real+synthetic-seed0-*")))
    other = load_file(next((online / "classifiers").glob("real-seed0-*")))
    assert any(not torch.equal(found[key], other[key]) for key in found)
    # Kept, the images are those that stage 2 draws.
    kept = Path(shutil.copytree(learned, tmp_path / "kept"))
    train(bench, kept, ONLINE.model_copy(update={"online_keep": True}))
    own = SyntheticStore(kept, (), "online").manifest.units().values()
    files = {name: digest for unit in own for name, digest in unit["files"].items()}
    drawn = SyntheticStore(run, ()).manifest.units().values()
    there = {name: digest for unit in drawn for name, digest in unit["files"].items()}
    assert len(files) == 24 and files.items() <= there.items() and same(kept, run)
    assert verify(kept).findings == () and all(identify(name) is not None for name in content(kept))


def test_the_arm_synthetic_has_a_queue_where_images_are_drawn_ahead_alone() -> None:
    """Drawn beforehand it draws from all variants from the first step on; real+synthetic has the same queue twice."""
    real, synthetic = pair()
    row_of = {image.numpy().tobytes(): row for row, image in enumerate(synthetic.images)}
    generations = measure(real, synthetic, "queue")
    assert generations is not None
    window = queue(generations.argsort(stable=True), 12)

    def rows(pool: Pool) -> list[int]:
        return [row_of[image.numpy().tobytes()] for image in pool.draw(12, 1, 36)[0]]

    alone = make_pools(synthetic, None, QUEUED, 0), make_pools(synthetic, None, ONLINE, 0, None, window)
    before, ahead = (rows(pools[-1]) for pools in alone)
    assert {generations[row].item() for row in ahead} == {0} and len({generations[row].item() for row in before}) == 3
    both = (
        make_pools(real, synthetic, QUEUED, 0, generations),
        make_pools(real, synthetic, ONLINE, 0, None, window),
    )
    before, ahead = (rows(pools[-1]) for pools in both)
    assert before == ahead


def test_nothing_of_it_stays_on_the_disk(bench: Bench, learned: Path, online: Path) -> None:
    assert not list((online / "online").rglob("*.png")) and not list((online / "classifiers").glob("state-*"))
    assert SyntheticStore(online, ()).complete() == 1 and verify(online).findings == ()
    frozen = json.loads((online / "train.config.json").read_text())["settings"]
    assert (frozen["online"], frozen["online_keep"]) == (3, False)


def test_at_most_two_generations_are_there(bench: Bench, learned: Path, tmp_path: Path) -> None:
    """Of a queue of five, whatever is asked for."""
    run = Path(shutil.copytree(learned, tmp_path / "run"))
    settings = ONLINE.model_copy(update={"online": 5})
    with run_lock(run):
        ahead = ahead_of(run, open_splits(run).train, settings, torch.device("cpu"), bench.generator())
        assert ahead is not None
        for stretch in ahead.stretches(12):
            ahead.release(stretch.generations[0])
            images = ahead.images(stretch.generations)
            assert len(images) == 12 * len(stretch.generations)
            there = {int(path.stem[-3:]) for path in (run / "online").rglob("*.png")}
            assert there == {*stretch.generations} - {0}


@pytest.mark.parametrize("kill", [Kill("recorded", 5)], ids=str)
def test_a_killed_run_goes_on_with_the_same_bits(
    bench: Bench, learned: Path, online: Path, tmp_path: Path, kill: Kill
) -> None:
    run = Path(shutil.copytree(learned, tmp_path / "run"))
    assert kill_during(bench, run, "online", kill)
    train(bench, run)
    assert same(run, online) and not list((run / "online").rglob("*.png")) and verify(run).findings == ()


def test_a_lost_classifier_is_trained_again(online: Path, tmp_path: Path) -> None:
    """Its images are drawn again, from the generator on record."""
    run = Path(shutil.copytree(online, tmp_path / "run"))
    next((run / "classifiers").glob("real+synthetic-seed1-*")).unlink()
    from diffusion_inversion.run.verify import discard

    with run_lock(run):
        discard(run, verify(run))
        assert resume(run, "cpu") == []
    assert same(run, online)


def test_what_needs_all_images_is_refused_before_the_work(bench: Bench, learned: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(learned, tmp_path / "run"))
    before = content(run)
    with run_lock(run), pytest.raises(UsageError, match="--online --filter drop"):
        pipeline.train_stage(run, open_splits(run), ONLINE, "cpu", filtering=FilterSettings(filter="drop"))
    with pytest.raises(UsageError, match=r"--online --tune train\.mixing"):
        refuse_online(run, ONLINE, FilterSettings(), read_tuning(["mixing=batch,queue"]))
    assert content(run) == before
