"""Cells with options of `dinv run`: each a run folder of its own, on vectors and images that it has from those shared.

A cell is done by the stages of `dinv run`, so it has what that has: its choices, its answers of judges, its audit.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..config.sampling import SampleSettings
from ..data.datasets import Splits
from ..data.images import LabelledImages
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..engine.lock import run_lock
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest
from ..engine.store import commit_bytes
from ..engine.untrusted import inside
from ..errors import UsageError
from ..generator.generator import Generator
from ..invert.embeddings import FOLDER as EMBEDDINGS
from ..run.checks import check_run
from ..run.fidelity.judging import Judges
from ..run.fidelity.stage import JUDGED
from ..run.images import open_splits, read_record
from ..run.layout import STRENGTHS
from ..run.online import refuse_online
from ..run.stages import invert_stage, sample_stage, train_stage
from ..run.tune import scored_by_real, tune_sampling, tune_training
from ..sample.synthetic import FOLDER as SYNTHETIC
from ..sample.synthetic import SyntheticStore
from ..train.arms import ArmResults, train_arms
from ..train.arms import check_settings as check_training
from ..train.choosing import Folds, choices_of
from .drawn import counts
from .plan import Autoencode, Cell, SweepPlan
from .ways import SECTIONS


def alone(cell: Cell) -> bool:
    """Whether it takes neither vectors nor images: settings of training are chosen, and real images alone score."""
    return bool(cell.tuning.axes) and scored_by_real(cell.tuning, cell.train)


def has_own(cell: Cell, arm: str) -> bool:
    """Whether an arm of a cell is another for its options, so that its classifiers are trained in its run."""
    return cell.is_run and (arm != "real" or bool(cell.tuning.of("train")))


def depends_on(cell: Cell, vectors: str) -> list[Any]:
    """All that its run depends on, of vectors of this name; arms and seeds where a choice is scored by them."""
    axes = [[axis.key, axis.values] for axis in cell.tuning.axes]
    return [
        cell.data.described(),
        cell.asked_sides if alone(cell) else [vectors, cell.sample.described()],
        cell.train.described(() if axes else ("arms", "seeds")),
        cell.run.described(),
        axes,
    ]


def check_cell(cell: Cell, plan: SweepPlan, home: Path, splits: Splits, side: int, generator: Generator) -> None:
    """Raise, before anything is computed, what `dinv run` would: UsageError, DataError."""
    images = splits.train.resized(side)
    named = "autoencode" if cell.autoencode != Autoencode() else SECTIONS.get(type(cell.way))
    if named is not None:  # what makes images, or changes them, in no way that a run does
        raise UsageError(f"{named}: a cell with options of `dinv run` has images around its vectors. Leave it out.")
    if plan.metrics is not None:
        raise UsageError("metrics: of images as they were drawn, which a cell with options of `dinv run` may not have.")
    if plan.own_size and cell.tuning.of("train") and "real" in cell.train.arms:
        raise UsageError("own_size: settings are chosen at one side, that of all arms. Leave it out, or run.tune.")
    if alone(cell):
        for chosen in (*cell.tuning.candidates("train", cell.train), cell.train):
            check_training(chosen, images.class_names, side)
    else:
        check_run(
            splits, generator, cell.invert, cell.sample, cell.train, own_size=False, tuning=cell.tuning,
            judged=cell.run.filter in JUDGED,
        )  # fmt: skip
    if cell.tuning.axes:
        Folds(home, images, str(generator.device))
    if cell.run.filter != "off":
        Judges(images, generator.device)
    refuse_online(home, cell.train, cell.filtering, cell.tuning, cell.copies, cell.sample.balance)


def train_alone(home: Path, cell: Cell, real: LabelledImages, test: LabelledImages, device: str) -> ArmResults:
    """Choose settings of training by real images, and train on these."""
    with run_lock(home):
        settings = tune_training(home, real, lambda: None, cell.train, device, cell.tuning)
        return train_arms(real, None, test, settings=settings, device=device, folder=home)


def train_run(
    home: Path,
    cell: Cell,
    splits: Splits,
    generator: Generator,
    vectors: Path,
    images: Callable[[SampleSettings], Path],
) -> ArmResults:
    """Do in `home` what `dinv run` does of a cell, without a report; what shared folders have is not done again.

    vectors: the folder that has them; images: where those of settings lie, if they do.
    """
    with run_lock(home):
        if read_record(home) is None:
            open_splits(home, cell.data)
        _adopt(vectors, home, EMBEDDINGS, "invert")
        invert_stage(home, splits, generator, cell.invert)
        sample = tune_sampling(home, splits.train, generator, cell.sample, cell.train, cell.tuning)
        for folder in (STRENGTHS, SYNTHETIC):
            _adopt(images(sample), home, folder, "sample")
        _keep_asked(SyntheticStore(home, splits.train.class_names), counts(home, sample, cell.data))
        sample_stage(home, generator, sample, sources=splits.train)
        arms = tuple(arm for arm in cell.train.arms if has_own(cell, arm))
        return train_stage(
            home, splits, cell.train.model_copy(update={"arms": arms}), str(generator.device), own_size=False,
            tuning=cell.tuning, filtering=cell.filtering, copies=cell.copies, generator=generator,
        )  # fmt: skip


def found_in(home: Path, cell: Cell) -> dict[str, Any]:
    """What a run tells of itself: how many synthetic images, what it chose, and where it lies in the sweep."""
    drawn = SyntheticStore(home, ()).manifest.last("complete") or {"count": 0, "variants": 1}
    count = drawn["count"] // drawn["variants"] * cell.train.online if cell.train.online else drawn["count"]
    return {"images": count, "chosen": choices_of(home), "run": f"{home.parent.name}/{home.name}"}


def _adopt(source: Path, home: Path, folder: str, stage: str) -> None:
    """Let a run have the units that another folder has in a store, once: files are linked, where the disk has links."""
    theirs, ours = (Manifest(one / folder / MANIFEST) for one in (source, home))
    records = list(theirs.records())  # before their files: others may add some
    if ours.records() or not records:
        return
    for name in {name for record in records if record["event"] == "commit" for name in record["files"]}:
        path = inside(home / folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError, FileNotFoundError):  # of a killed call; of a unit that was dropped
            _link(inside(source / folder, name), path)
    config = settings_file(stage)
    text = Ledger(source).read(config)
    assert text is not None  # it stands before any unit does
    Ledger(home).commit(config, text, note={"copy": text.decode()})
    ours.rewrite(records)


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        commit_bytes(path, source.read_bytes())  # at once: a part of a file would be taken for all of it


def _keep_asked(store: SyntheticStore, asked: Mapping[str, int]) -> None:
    """Take out of a run's images those that only other cells asked for."""
    rows = store.table("file_name", "source_id", "variant").to_pylist()
    if more := [row["file_name"] for row in rows if row["variant"] >= asked.get(row["source_id"], 0)]:
        store.remove(more)
