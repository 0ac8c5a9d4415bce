"""The command that says beforehand what a run will take: plan."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import data_settings, load
from .given import Given
from .options import OwnSize, Preset, Replicates
from .stages import settings_of_a_run

if TYPE_CHECKING:
    from ..config.planning import PlanSettings
    from ..config.sampling import SampleSettings
    from ..config.settings import DataSettings, GeneratorSettings, InvertSettings
    from ..config.training import TrainSettings


def plan(
    *,
    out: Annotated[
        Path | None, typer.Option(help="Run folder that was begun: only what is missing there counts. [default: none]")
    ] = None,
    where: Given[GeneratorSettings],
    preset: Preset = None,
    source: Given[DataSettings],
    inverting: Given[InvertSettings],
    sampling: Given[SampleSettings],
    training: Given[TrainSettings],
    planning: Given[PlanSettings],
    own_size: OwnSize = True,
    replicates: Replicates = 1,
) -> dict[str, Any]:
    """Say what `dinv run` with these options will take: time, disk, memory, cost. A few real steps are timed for it."""
    from ..config.tuning import Tuning
    from ..run.balancing import check_balance, line
    from ..run.checks import check_run
    from ..run.images import load as load_images
    from ..run.images import read_record
    from ..run.plan.start import BUDGET, Outlook, process_age
    from ..run.plan.time_limit import said, within
    from ..run.replicates import replicate

    asked, chosen = planning.settings(), data_settings(source)
    settings = settings_of_a_run(preset, source.values["data"], inverting, sampling, training)
    generator = load(where.settings())
    with TemporaryDirectory() as nothing:
        folder = out or Path(nothing)
        splits = load_images(folder, chosen, read_record(folder))
        side, own = check_run(splits, generator, *settings, own_size=own_size, tuning=Tuning(), judged=True)
        plans = [replicate(folder, number, chosen, *settings) for number in range(replicates)]
        outlook = Outlook(plans, splits, generator, side, own, asked.workers)
        amounts = outlook.asked
        outlook.time(amounts, 0.0)  # as a run does, with all that is loaded or compiled at its first use
        start = process_age()
        steps = outlook.time(amounts, BUDGET)
        cut: dict[str, Any] = {}
        if asked.time_limit is not None:
            amounts = within(asked.time_limit, amounts, lambda less: outlook.forecast(steps, less).total, gone=start)
            cut = {"time_limit": asked.time_limit, "cut": amounts.cut_from(outlook.asked)}
        found = outlook.forecast(steps, amounts)
        counts = check_balance(chosen, splits.train, amounts.sample)
    found = found.after(start)
    lines = found.lines(asked.price)
    if counts is not None:
        lines.append(line(counts))
    if asked.time_limit is not None:
        lines.append(said(asked.time_limit, cut["cut"]))
    more = {} if counts is None else {"balance": counts}
    return {**found.record(asked.price), "steps": vars(steps), **cut, **more, "text": "\n".join(lines)}
