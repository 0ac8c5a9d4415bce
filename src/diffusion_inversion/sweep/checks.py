"""What of a cell its jobs would refuse, perhaps after hours of other cells' work, refused before the first job."""

from __future__ import annotations

from pathlib import Path

from ..data.datasets import Splits
from ..generator.generator import Generator
from ..generator.sides import require_side
from ..invert.inversion import check
from ..sample.sampling import check_settings
from ..train.mixing import refuse_unjudged
from . import elsewhere, runs
from .plan import Cell, SweepPlan


def check_cell(cell: Cell, plan: SweepPlan, splits: Splits, home: Path, side: int, generator: Generator) -> None:
    """Raise UsageError or DataError for what cannot be of a cell.

    home: the folder of its run, or else of its images; side: that of all arms, in px.
    """
    learned_at = cell.invert.resolution or generator.resolution
    if cell.is_run:
        runs.check_cell(cell, plan, home, splits, side, generator)
    elif cell.learns:
        check_settings(
            generator, cell.sample, steps=cell.invert.checkpoints, resolution=learned_at,
            image_size=cell.data.size or learned_at, classes=2,
        )  # fmt: skip
        refuse_unjudged(cell.train)
    else:
        elsewhere.check_cell(cell, splits, home, side, generator, generator.device.type)
    if cell.learns:
        check(generator, cell.invert, learned_at)
    for part, through in cell.autoencode.model_dump().items():
        if through is not None:
            require_side(generator, through, f"autoencode.{part}")
