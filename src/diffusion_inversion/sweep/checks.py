"""What of a cell its jobs would refuse, perhaps after hours of other cells' work, refused before the first job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..data.datasets import Splits
from ..data.images import LabelledImages
from ..engine.ledger import Ledger
from ..errors import ConfigMismatchError
from ..generator.generator import Generator
from ..generator.sides import require_side
from ..invert.inversion import check
from ..run.balancing import counted, values_to_balance
from ..run.checks import check_run
from ..train.arms import check_settings
from ..train.choosing import Folds
from ..train.classifiers import require_form
from . import elsewhere, runs
from .jobs import Job
from .plan import Cell, SweepPlan

MOST_NAMED = 3  # folders in a message


@dataclass
class Checks:
    """Looks at cell after cell of one sweep."""

    plan: SweepPlan
    generator: Generator
    _folded: set[tuple[str, int]] = field(default_factory=set)  # data sets and sides whose folds were looked at

    def check(self, cell: Cell, splits: Splits, home: Path, side: int) -> None:
        """Raise UsageError or DataError for what cannot be of a cell.

        home: the folder of its run, or else of its images; side: that of all arms, in px.
        """
        generator, train = self.generator, splits.train
        if cell.is_run:
            runs.check_cell(cell, self.plan, home, splits, side, generator)
        elif cell.learns:
            check_run(splits, generator, cell.invert, cell.sample, cell.train, own_size=False, tuning=cell.tuning)
        else:
            elsewhere.check_cell(cell, splits, home, side, generator, generator.device.type)
            check_settings(cell.train, train.class_names, side)
        if cell.learns:
            check(generator, cell.invert, cell.invert.resolution or generator.resolution)
            if set(cell.train.arms) != {"real"} or self.plan.metrics is not None:
                _check_balance(cell, train)
        for part, through in cell.autoencode.model_dump().items():
            if through is not None:
                require_side(generator, through, f"autoencode.{part}")
        if cell.chooses_fraction:
            self._check_folds(cell, train, home, side)

    def _check_folds(self, cell: Cell, train: LabelledImages, home: Path, side: int) -> None:
        """Raise DataError where the real share of batches cannot be chosen on folds of these images."""
        key = json.dumps(cell.data.described()), side
        if key not in self._folded:
            self._folded.add(key)
            Folds(home, train.resized(side), str(self.generator.device))


def _check_balance(cell: Cell, train: LabelledImages) -> None:
    """Raise UsageError or DataError where what stage 2 evens, or may choose to, is not known of every image."""
    labels = dict(zip(train.ids, train.labels.tolist(), strict=True))
    settings = (cell.sample, *cell.tuning.candidates("sample", cell.sample))
    for one in {each.balance: each for each in settings}.values():
        counted(labels, train.class_names, one, values_to_balance(cell.data, one))


def require_forms(folder: Path, jobs: Mapping[str, Job]) -> None:
    """Raise ConfigMismatchError where a result in the sweep's folder is of a network that this version builds anew."""
    ledger = Ledger(folder)
    earlier: dict[str, str] = {}  # the folder of a classifier's job => what is wrong with its file
    for job in jobs.values():
        if job.name.startswith("classifiers/") and ledger.holds(job.file):
            try:
                require_form(folder / ledger.read_json(job.file)["classifier"])
            except ConfigMismatchError as error:
                earlier[job.home] = str(error).rpartition(". Use ")[0]
    if not earlier:
        return
    homes = list(earlier) if len(earlier) <= MOST_NAMED else list({one.partition("/")[0]: None for one in earlier})
    results = [f"results/{kind}" for kind in ("classifiers", "tests") if any(one.startswith(kind) for one in jobs)]
    raise ConfigMismatchError(
        f"{next(iter(earlier.values()))} ({len(earlier)} in all). Delete {' and '.join([*homes, *results])} in "
        f"{folder}, whose vectors and images stay, or give another --out."
    )
