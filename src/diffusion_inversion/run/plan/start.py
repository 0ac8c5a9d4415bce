"""What a run says of its time before it begins, what a time limit leaves out of it, and the same without a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...config.commands import AuditSettings
from ...config.fidelity import OFF, FilterSettings
from ...config.training import TrainSettings
from ...config.tuning import Tuning
from ...data.datasets import Splits
from ...engine.disk import human
from ...engine.lock import is_shared, say
from ...engine.progress import duration
from ...errors import UsageError
from ...generator.generator import Generator
from ..fidelity.redraw import TRIES
from ..preview import EACH, Wanted, make
from ..replicates import Replicate
from ..room import png_bytes
from .forecast import Forecast, Left, forecast, seconds, sum_left
from .steps import Steps, time_steps
from .time_limit import Amounts, record, recorded, said, within

BUDGET = 4.0  # seconds that steps of one part are timed for, where a single one is not longer; there are five parts
LONG = 300.0  # seconds of work from which on a run says what it will take
MOST = 60.0  # seconds that a run looks first for, by the same forecast


@dataclass(frozen=True)
class Untimed:
    """Work that is not in a forecast, since how much it is depends on what is drawn; no more than is said here."""

    options: list[str]  # that ask for it
    images: int  # that are drawn again at most, each `TRIES` times at most
    seconds: float  # that this takes at most
    disk: int  # bytes, likewise

    def lines(self) -> list[str]:
        """What to say of it."""
        work = f"{duration(self.seconds)}, {human(self.disk)}"
        most = f"up to {self.images:,} images, each up to {TRIES} times: up to {work}"
        return [f"not in it: {', '.join(self.options)}{f' ({most})' if self.images else ''}"] if self.options else []


@dataclass(frozen=True)
class Outlook:
    """A run that may have begun, and whose steps can be timed; `side` and `own` as `check_run` gives them."""

    plans: Sequence[Replicate]
    splits: Splits  # of replicate 0
    generator: Generator
    side: int
    own: int | None
    workers: int = 1

    @property
    def asked(self) -> Amounts:
        first = self.plans[0]
        return Amounts(first.invert, first.sample, first.train)

    def left(self, amounts: Amounts) -> Left:
        """What is missing of so much."""
        plans = [replace(plan, sample=amounts.sample, train=_seeded(plan.train, amounts)) for plan in self.plans]
        return sum_left(plans, len(self.splits.train), own=self.own is not None)

    def untimed(
        self, steps: Steps, amounts: Amounts, filtering: FilterSettings, audit: AuditSettings | None
    ) -> Untimed:
        """What a forecast has not of a run that looks for wrong labels and copies before it trains."""
        copies = "off" if audit is None else audit.copies
        asked = {"--filter": filtering.filter, "--copies": copies} if self.left(amounts).classifiers else {}
        options = [f"{name} {how}" for name, how in asked.items() if how != "off"]
        again = len(self.plans) * len(self.splits.train) * amounts.sample.variants if "redraw" in asked.values() else 0
        return Untimed(options, again, TRIES * again * steps.drawing, again * png_bytes(self.side))

    def time(self, amounts: Amounts, seconds: float) -> Steps:
        """Do real steps, of each part for so many seconds; see `time_steps`."""
        return time_steps(self.splits, self.generator, **vars(amounts), side=self.side, own=self.own, seconds=seconds)

    def forecast(self, steps: Steps, amounts: Amounts) -> Forecast:
        """What is left with these settings."""
        todo, workers = self.left(amounts), self.workers
        return forecast(steps, todo, self.splits, self.generator, **vars(amounts), side=self.side, workers=workers)


def _seeded(train: TrainSettings, amounts: Amounts) -> TrainSettings:
    """The settings of training of a replicate, which has seeds of its own, with as many of them."""
    return amounts.train.model_copy(update={"seeds": train.seeds[: len(amounts.train.seeds)]})


def begin(
    plans: Sequence[Replicate],
    splits: Splits,
    generator: Generator,
    *,
    side: int,
    own: int | None,
    limit: float | None,
    tuning: Tuning,
    filtering: FilterSettings = OFF,
    audit: AuditSettings | None = None,
    preview: Wanted | None = None,
) -> Amounts:
    """Say on stderr what the run will take where that is long, and return its settings, within `limit` seconds.

    Without a limit a first look at two images decides whether the steps are timed in earnest; whatever goes wrong
    there, the run goes on. `filtering` and `audit` ask for work that no plan has. With `preview` it says so in any
    case, and a run that has no vector yet is looked at first, where that takes no longer than a minute. Call it inside
    `run_lock`.
    Raises as `within` and `recorded` do, and UsageError for a limit in a shared run or beside a choice of settings
    whose time has no end.
    """
    outlook = Outlook(plans, splits, generator, side, own)
    run, asked = plans[0].folder, outlook.asked
    if limit is None:
        if not outlook.left(asked).nothing:
            _foretell(outlook, filtering, audit, preview)
        return asked
    if is_shared(run):
        raise UsageError(
            "--time-limit --join: several processes would decide it. Give what `dinv plan` says for this limit instead."
        )
    if tuning.axes and tuning.seconds is None:
        raise UsageError("--time-limit --tune: a choice has no end of its own; give --tune-seconds too.")
    also = {"replicates": len(plans), "own_size": own is not None}
    chosen = recorded(run, limit, asked, **also)
    if chosen is None:
        steps = outlook.time(asked, BUDGET)
        gone = process_age() + len(plans) * (
            (tuning.seconds or 0.0) if tuning.axes else 0.0
        )  # each replicate chooses for itself
        chosen = within(limit, asked, lambda amounts: outlook.forecast(steps, amounts).total, gone=gone)
        record(run, limit, asked, chosen, **also)
        also_done = outlook.untimed(steps, chosen, filtering, audit)
        lines = [*outlook.forecast(steps, chosen).lines(), *also_done.lines()]
        _say(lines)
        say({"plan_ends": time.time() + outlook.forecast(steps, chosen).total})
        _look_first(outlook, chosen, steps, preview, lines)
    _say([said(limit, chosen.cut_from(asked))])
    return chosen


def _foretell(outlook: Outlook, filtering: FilterSettings, audit: AuditSettings | None, preview: Wanted | None) -> None:
    try:
        steps = outlook.time(outlook.asked, 0.0)
        if long := outlook.forecast(steps, outlook.asked).total >= LONG:
            steps = outlook.time(outlook.asked, BUDGET)
        also_done = outlook.untimed(steps, outlook.asked, filtering, audit)
        lines = [*outlook.forecast(steps, outlook.asked).lines(), *also_done.lines()]
    except Exception as error:  # whatever it is, the run can do without
        _say([f"how long this will take is not known: {str(error).partition(chr(10))[0]}"])
        return
    say({"plan_ends": time.time() + outlook.forecast(steps, outlook.asked).total})
    if long or preview is not None:
        _say(lines)
    _look_first(outlook, outlook.asked, steps, preview, lines)


def _look_first(outlook: Outlook, amounts: Amounts, steps: Steps, preview: Wanted | None, lines: Sequence[str]) -> None:
    """Make the preview of a run that has no vector yet and that nobody shares, and say where it lies."""
    begun = outlook.left(amounts).vectors < len(outlook.plans) * len(outlook.splits.train)
    if preview is None or begun or is_shared(outlook.plans[0].folder):
        return
    images = preview.settings.images
    todo = Left(2 * images, 2 * EACH * images, images, 0, 0, 0, 0)  # each with a partner, at most
    takes = sum(seconds(steps, todo, 0, 0, *vars(amounts).values()).values())
    if takes > MOST:
        _say([f"left out, it would take about {duration(takes)}; `dinv preview` makes it all the same"], "preview")
        return
    first, generator = outlook.splits, outlook.generator
    try:
        make(first, generator, amounts.invert, amounts.sample, preview, side=outlook.side, plan=lines)
    except Exception as error:  # the run can do without this too
        _say([f"none: {str(error).partition(chr(10))[0]}"], "preview")
        return
    _say([f"{preview.files[0]} (and {preview.files[1].name}): Ctrl-C stops, --no-preview leaves it out"], "preview")


def _say(lines: Sequence[str], what: str = "plan") -> None:
    for line in lines:
        print(f"{what}: {line}", file=sys.stderr, flush=True)


def process_age() -> float:
    """Seconds since this process began; since it began to compute where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        booted = float(Path("/proc/uptime").read_text().split()[0])
        return booted - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.process_time()
