"""What of a cell its jobs would refuse, perhaps after hours of other cells' work, refused before the first job."""

from __future__ import annotations

from pathlib import Path

from ..data.datasets import Splits
from ..data.images import LabelledImages
from ..generator.generator import Generator
from ..generator.sides import require_side
from ..invert.inversion import check
from ..run.balancing import counted, values_to_balance
from ..run.checks import check_run
from ..train.arms import check_settings
from . import elsewhere, runs
from .plan import Cell, SweepPlan


def check_cell(cell: Cell, plan: SweepPlan, splits: Splits, home: Path, side: int, generator: Generator) -> None:
    """Raise UsageError or DataError for what cannot be of a cell.

    home: the folder of its run, or else of its images; side: that of all arms, in px.
    """
    if cell.is_run:
        runs.check_cell(cell, plan, home, splits, side, generator)
    elif cell.learns:
        check_run(splits, generator, cell.invert, cell.sample, cell.train, own_size=False, tuning=cell.tuning)
    else:
        elsewhere.check_cell(cell, splits, home, side, generator, generator.device.type)
        check_settings(cell.train, splits.train.class_names, side)
    if cell.learns:
        check(generator, cell.invert, cell.invert.resolution or generator.resolution)
        if set(cell.train.arms) != {"real"} or plan.metrics is not None:
            _check_balance(cell, splits.train)
    for part, through in cell.autoencode.model_dump().items():
        if through is not None:
            require_side(generator, through, f"autoencode.{part}")


def _check_balance(cell: Cell, train: LabelledImages) -> None:
    """Raise UsageError or DataError where what stage 2 evens, or may choose to, is not known of every image."""
    labels = dict(zip(train.ids, train.labels.tolist(), strict=True))
    settings = (cell.sample, *cell.tuning.candidates("sample", cell.sample))
    for one in {each.balance: each for each in settings}.values():
        counted(labels, train.class_names, one, values_to_balance(cell.data, one))
