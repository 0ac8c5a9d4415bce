"""`--filter`: images that show another class are left out, drawn again or relabelled; kept, mended, shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from coloured_images import COLOURS, picture
from harness import Bench, content, finish
from image_files import save
from toy import MINI_SCHEDULER, build_checkpoint

from diffusion_inversion.config.fidelity import FilterSettings
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.run.fidelity.redraw import TRIES, redrawn_store
from diffusion_inversion.run.fidelity.stage import filtered, read_fidelity
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.layout import identify
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.train.choosing import Material

CPU = torch.device("cpu")
NAMES = tuple(sorted(COLOURS))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """15 red and 15 green images to learn, and a generator of random weights, whose images are neither."""
    folder = tmp_path_factory.mktemp("coloured")
    for place, (name, colour) in enumerate(COLOURS.items()):
        for row in range(18):
            part = "train" if row < 15 else "test"
            save(folder / "data" / part / name / f"{row}.png", picture(colour, 100 * place + row))
    return Bench(build_checkpoint(folder / "toy", MINI_SCHEDULER), folder / "data")


@pytest.fixture(scope="module")
def sampled(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after stage 2; not to be changed."""
    run = tmp_path_factory.mktemp("sampled") / "run"
    for stage in ("invert", "sample"):
        finish(bench, run, stage)
    return run


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that drew again, done at once; not to be changed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(bench, run, "redrawn")
    return run


def material(run: Path) -> Material:
    store = SyntheticStore(run, NAMES)
    return Material(store.read(), store.sources())


def kept(run: Path, how: str) -> Material:
    """What is trained on."""
    made = material(run)
    real = open_splits(run).train.resized(made.synthetic.size)
    with run_lock(run):
        found = filtered(run, real, lambda: made, FilterSettings.model_validate({"filter": how}), CPU)
    assert found is not None
    return found


def test_drop_keeps_the_number_of_each_class_and_nothing_that_failed(sampled: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sampled, tmp_path / "run"))
    before, found = material(run), kept(run, "drop")
    fidelity = read_fidelity(run)
    assert fidelity is not None and any(fidelity.failed) and not all(fidelity.failed) and all(fidelity.judged)
    assert torch.equal(found.synthetic.labels, before.synthetic.labels)
    names = [name.partition(" (")[0] for name in found.synthetic.ids]
    bad = {name for name, failed in zip(before.synthetic.ids, fidelity.failed, strict=True) if failed}
    assert bad.isdisjoint(names) and set(names) == set(before.synthetic.ids) - bad
    row_of = {name: row for row, name in enumerate(before.synthetic.ids)}
    rows = [row_of[name] for name in names]
    assert torch.equal(found.synthetic.images, before.synthetic.images[rows])
    assert found.sources == [before.sources[row] for row in rows], "what an image was made from goes along"


def test_soft_gives_those_that_failed_the_judges_answer_and_leaves_the_others(sampled: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sampled, tmp_path / "run"))
    before, found, fidelity = material(run), kept(run, "soft"), read_fidelity(run)
    assert fidelity is not None and found.synthetic.soft is not None
    targets = found.synthetic.soft.targets(before.synthetic.labels, len(NAMES))
    failed = torch.tensor(fidelity.failed)
    assert torch.allclose(targets[failed], torch.tensor(fidelity.answers, dtype=torch.float32), atol=1e-5)
    assert (
        torch.equal(targets[~failed].argmax(1), before.synthetic.labels[~failed])
        and (targets[~failed].amax(1) == 1).all()
    )
    assert (targets[failed].argmax(1) != before.synthetic.labels[failed]).all()
    assert found.synthetic.ids == before.synthetic.ids


def test_redraw_puts_what_passes_in_its_place(whole: Path) -> None:
    fidelity, store = read_fidelity(whole), redrawn_store(whole, NAMES)
    assert fidelity is not None
    rows = store.table("source_id", "variant", "attempt", "failed").to_pylist()
    assert len(rows) == sum(fidelity.failed), "each that failed, once"
    assert {row["attempt"] for row in rows if row["failed"]} <= {5 * TRIES}, "after five tries"
    assert all(row["attempt"] % 5 == 0 and 5 <= row["attempt"] <= 5 * TRIES for row in rows)
    assert not verify(whole).findings and not verify(whole).foreign
    assert {identify(name) is None for name in content(whole)} == {False}
