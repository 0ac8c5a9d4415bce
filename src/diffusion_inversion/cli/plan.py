"""The commands that say and show beforehand what a run will take and give: plan, preview."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import command_line, data_settings, load
from .given import Fields, Given
from .options import OwnSize, Preset, Replicates
from .stages import settings_of_a_run

if TYPE_CHECKING:
    from ..config.commands import AuditSettings
    from ..config.fidelity import FilterSettings
    from ..config.planning import PlanSettings, PreviewSettings
    from ..config.sampling import SampleSettings
    from ..config.settings import DataSettings, GeneratorSettings, InvertSettings
    from ..config.training import TrainSettings
    from ..run.plan.start import Outlook

_GLANCE = 1.0  # seconds that steps of one part are timed for; there are five parts


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
    filtering: Given[FilterSettings],
    training: Given[TrainSettings],
    auditing: Annotated[Given[AuditSettings], Fields(only=("copies", "false_positives"))],
    planning: Given[PlanSettings],
    own_size: OwnSize = True,
    replicates: Replicates = 1,
) -> dict[str, Any]:
    """Say what `dinv run` with these options will take: time, disk, memory, cost. A few real steps are timed for it."""
    from ..config.tuning import Tuning
    from ..run.balancing import check_balance, line
    from ..run.fidelity.stage import JUDGED
    from ..run.online import refuse_online
    from ..run.plan.start import BUDGET, process_age
    from ..run.plan.time_limit import said, within

    asked, filters, copies = planning.settings(), filtering.settings(), auditing.settings()
    with outlook_of(
        out, where, preset, source, inverting, sampling, training,
        own_size=own_size, replicates=replicates, workers=asked.workers, judged=filters.filter in JUDGED,
    ) as outlook:  # fmt: skip
        amounts = outlook.asked
        refuse_online(outlook.plans[0].folder, amounts.train, filters, Tuning(), copies, amounts.sample.balance)
        outlook.time(amounts, 0.0)  # as a run does, with all that is loaded or compiled at its first use
        start = process_age()
        steps = outlook.time(amounts, BUDGET)
        cut: dict[str, Any] = {}
        if asked.time_limit is not None:
            amounts = within(asked.time_limit, amounts, lambda less: outlook.forecast(steps, less).total, gone=start)
            cut = {"time_limit": asked.time_limit, "cut": amounts.cut_from(outlook.asked)}
        found, untimed = outlook.forecast(steps, amounts), outlook.untimed(steps, amounts, filters, copies)
        counts = check_balance(outlook.plans[0].data, outlook.splits.train, amounts.sample)
    found = found.after(start)
    lines = [*found.lines(asked.price), *untimed.lines()]
    if counts is not None:
        lines.append(line(counts))
    if asked.time_limit is not None:
        lines.append(said(asked.time_limit, cut["cut"]))
    more = {"untimed": vars(untimed), **({} if counts is None else {"balance": counts})}
    return {**found.record(asked.price), "steps": vars(steps), **cut, **more, "text": "\n".join(lines)}


def preview(
    *,
    where: Given[GeneratorSettings],
    preset: Preset = None,
    source: Given[DataSettings],
    inverting: Given[InvertSettings],
    sampling: Given[SampleSettings],
    filtering: Given[FilterSettings],
    training: Given[TrainSettings],
    auditing: Annotated[Given[AuditSettings], Fields(only=("copies", "false_positives"))],
    looking: Given[PreviewSettings],
    own_size: OwnSize = True,
    replicates: Replicates = 1,
) -> dict[str, Any]:
    """Look before you wait: a few images of DATA, their reconstructions and variants, as a picture and a page.

    And what `dinv run` with these options will take. No run folder is made or touched.
    """
    from ..run.fidelity.stage import JUDGED
    from ..run.foresight import forewarnings
    from ..run.place import default_folder
    from ..run.plan.start import process_age
    from ..run.preview import Wanted, files_of, make

    settings, filters, copies = looking.settings(), filtering.settings(), auditing.settings()
    folder = default_folder(data_settings(source).data)
    files = files_of(settings.out or folder.with_name(f"{folder.name}-preview.png"))
    with outlook_of(
        None, where, preset, source, inverting, sampling, training,
        own_size=own_size, replicates=replicates, judged=filters.filter in JUDGED,
    ) as outlook:  # fmt: skip
        asked, splits = outlook.asked, outlook.splits
        notes = forewarnings(splits, asked.train, outlook.side, replicates=replicates, own_size=own_size)
        outlook.time(asked, 0.0)
        start = process_age()
        steps = outlook.time(asked, _GLANCE)
        found, untimed = outlook.forecast(steps, asked).after(start), outlook.untimed(steps, asked, filters, copies)
        lines = [*found.lines(), *untimed.lines()]
        wanted = Wanted(settings, files, command_line(), notes)
        generator = outlook.generator
        count = make(splits, generator, asked.invert, asked.sample, wanted, side=outlook.side, plan=lines)
    text = "\n".join([*notes, *(f"plan: {line}" for line in lines), f"preview: {files[0]}, page: {files[1]}"])
    return {
        "picture": str(files[0]), "page": str(files[1]), "images": count, "notes": list(notes), "plan": found.record(),
        "untimed": vars(untimed), "text": text,
    }  # fmt: skip


@contextmanager
def outlook_of(
    out: Path | None,
    where: Given[GeneratorSettings],
    preset: str | None,
    source: Given[DataSettings],
    inverting: Given[InvertSettings],
    sampling: Given[SampleSettings],
    training: Given[TrainSettings],
    *,
    own_size: bool,
    replicates: int,
    workers: int = 1,
    judged: bool,
) -> Iterator[Outlook]:
    """A run with these options, refused where `dinv run` would refuse it; without `out` one that was not begun.

    judged: whether each image will have a judge's confidence.
    """
    from ..config.tuning import Tuning
    from ..run.checks import check_run
    from ..run.images import load as load_images
    from ..run.images import read_record
    from ..run.plan.start import Outlook
    from ..run.replicates import replicate

    chosen = data_settings(source)
    settings = settings_of_a_run(preset, source.values["data"], inverting, sampling, training)
    generator = load(where.settings())
    with TemporaryDirectory() as nothing:
        folder = out or Path(nothing)
        splits = load_images(folder, chosen, read_record(folder))
        side, own = check_run(splits, generator, *settings, own_size=own_size, tuning=Tuning(), judged=judged)
        plans = [replicate(folder, number, chosen, *settings) for number in range(replicates)]
        yield Outlook(plans, splits, generator, side, own, workers)
