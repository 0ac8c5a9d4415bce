"""The commands of the method: invert, sample, train, and run and demo, which do all three."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .command import absolute_file, command_line, data_settings, hold, is_watched, load, notes_on, opened
from .given import Fields, Given
from .options import (
    AttributesOption,
    Device,
    Join,
    OwnSize,
    Preset,
    Preview,
    Replicates,
    Restart,
    Run,
    Store,
    Tune,
    TuneSeconds,
    of_ours,
)
from .prompts import ClassesOf, Prompts, draw
from .summary import summarise
from .workers import by_workers

if TYPE_CHECKING:
    from ..config.commands import AuditSettings
    from ..config.fidelity import FilterSettings
    from ..config.planning import LimitSettings, LogSettings
    from ..config.sampling import PromptSettings, SampleSettings
    from ..config.settings import DataSettings, GeneratorSettings, InvertSettings, Settings
    from ..config.training import TrainSettings
    from ..config.working import WorkerSettings
    from ..run.preview import Wanted

Recorded = Annotated[
    "Given[GeneratorSettings]", Fields(unset={"generator": "the one it was inverted with; with --prompts: mini"})
]


def invert(
    *,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    where: Given[GeneratorSettings],
    preset: Preset = None,
    source: Given[DataSettings],
    inverting: Given[InvertSettings],
    logging: Given[LogSettings],
    join: Join = False,
    store: Store = None,
    working: Given[WorkerSettings],
) -> dict[str, Any]:
    """Stage 1: learn one conditioning vector per image of DATA."""
    from ..run.coarseness import coarseness
    from ..run.images import open_splits
    from ..run.logs import logging_of
    from ..run.place import require_place
    from ..run.stages import invert_stage

    data = source.values["data"]
    chosen = data_settings(source)
    require_place(out, chosen.data, chosen.test)
    settings = inverting.settings(preset, of=data)
    logs = _logs(logging, join, store, working)
    shared = opened(store)
    if (done := by_workers(working, out)) is not None:
        return done
    loaded = load(where.settings())
    with hold(out, join, store=shared):
        splits = open_splits(out, chosen)
        side = settings.resolution or loaded.resolution
        coarseness(out, splits.train, loaded, side, min(splits.train.size, side))
        with logging_of(out, logs, _described(data=chosen, invert=settings)) as log:
            embeddings = invert_stage(out, splits, loaded, settings)
            log.vectors(embeddings)
    first, last = float(embeddings.losses[0].mean()), float(embeddings.losses[-1].mean())
    notes = len(splits.train.problems) + len(splits.test.problems)
    next_one = f"{len(embeddings)} vectors in {out}, loss {first:.3f} -> {last:.3f}. Next: dinv sample {out}"
    text = "\n".join([*notes_on(notes, data, source.values.get("test")), next_one])
    images = len(embeddings)
    return {
        "run": str(out), "images": images, "loss_initial": first, "loss_final": last, "notes": notes, "text": text,
    }  # fmt: skip


def sample(
    *,
    run: Annotated[Path, typer.Argument(help="Run folder; with --prompts, the folder to write.", callback=of_ours)],
    where: Recorded,
    preset: Preset = None,
    prompting: Annotated[Given[PromptSettings], Fields(beside="--prompts")],
    sampling: Given[SampleSettings],
    prompts: Prompts = None,
    classes_of: ClassesOf = None,
    logging: Given[LogSettings],
    restart: Restart = False,
    join: Join = False,
    store: Store = None,
    working: Given[WorkerSettings],
) -> dict[str, Any]:
    """Stage 2: draw variants around the learned vectors of RUN. With --prompts: draw from prompts instead."""
    from ..invert.embeddings import read_embeddings
    from ..run.balancing import line, read_counts, whole
    from ..run.images import recorded_data
    from ..run.logs import logging_of
    from ..run.stages import inverted_with, picture_of, sample_stage, sources_of
    from ..sample.synthetic import refused_drawings

    if prompts is not None:
        unused = ["--preset"] if preset is not None else []
        unused += [flag for name, flag in sampling.flags().items() if name not in prompting.values]
        unused += [*logging.flags().values(), *(["--store"] if store is not None else [])]
        if unused:
            raise UsageError(f"{', '.join(unused)}: of learned vectors; leave out with --prompts.")
        return draw(run, prompts, classes_of, where, prompting, restart, join, working)
    if classes_of is not None:
        raise UsageError("--classes-of: goes with --prompts; vectors have their classes.")
    if not run.is_dir():
        raise UsageError(f"{run}: no such run folder. Start with `dinv invert DATA --out {run}`.")
    settings = whole(sampling.settings(preset, of=recorded_data(run)))
    logs = _logs(logging, join, store, working)
    chosen = where.settings()
    if "generator" not in where.values:
        recorded, revision = inverted_with(run)
        chosen = chosen.model_copy(update={"generator": recorded, "revision": chosen.revision or revision})
    shared = opened(store, restart)
    if (done := by_workers(working, run, restart)) is not None:
        return done
    loaded = load(chosen)
    with (
        hold(run, join, restart, shared),
        logging_of(run, logs, _described(sample=settings), "sample" if restart else None) as log,
    ):
        sources = sources_of(run)
        count = sample_stage(run, loaded, settings, anew=restart, sources=sources)
        if sources is not None:
            log.picture("images", lambda: picture_of(run, sources, read_embeddings(run)), 0)
    folder = run / "synthetic"
    lines, balance = [f"{count} images in {folder}. Next: dinv train {run}"], read_counts(run)
    if balance is not None:
        lines = [line(balance), *([balance["uneven"]] if balance["uneven"] else []), *lines]
    return {
        "run": str(run), "images": count, "folder": str(folder), "blanked": refused_drawings(run),
        **({} if balance is None else {"balance": balance}), "text": "\n".join(lines),
    }  # fmt: skip


def train(
    *,
    run: Run,
    where: Device,
    preset: Preset = None,
    filtering: Given[FilterSettings],
    auditing: Annotated[
        Given[AuditSettings],
        Fields(only=("copies", "false_positives"), unset={"copies": "as the run did before, else off"}),
    ],
    training: Given[TrainSettings],
    own_size: OwnSize = True,
    attributes: AttributesOption = None,
    logging: Given[LogSettings],
    restart: Restart = False,
    join: Join = False,
    store: Store = None,
    working: Given[WorkerSettings],
) -> dict[str, Any]:
    """Train a classifier per arm and seed on the images of RUN, test it on real images, and write the report."""
    from ..run.attributes import attributes_of
    from ..run.images import open_splits, recorded_data
    from ..run.logs import logging_of
    from ..run.reporting import read_config, report_stage
    from ..run.stages import forewarn, train_stage

    settings = training.settings(preset, of=recorded_data(run))
    device, logs = where.settings().device, _logs(logging, join, store, working)
    shared = opened(store, restart)
    if (done := by_workers(working, run, restart)) is not None:
        return done
    with hold(run, join, restart, shared):
        splits = open_splits(run)
        tested_by = attributes_of(run, splits, absolute_file(attributes))
        if used := ((read_config(run, "sample") or {}).get("settings") or {}).get("image_size"):
            forewarn(splits, settings, used, own_size=own_size)
        with logging_of(run, logs, _described(train=settings), "train" if restart else None) as log:
            results = train_stage(
                run, splits, settings, device, anew=restart, own_size=own_size, filtering=filtering.settings(),
                copies=_copies(run, auditing), log=log,
            )  # fmt: skip
        record = report_stage(run, splits, results, settings, command_line(), attributes=tested_by)
    return summarise(run, record)


def _copies(run: Path, auditing: Given[AuditSettings]) -> AuditSettings | None:
    """What was asked of copies; None: as the run did before. Raises UsageError for half of it."""
    from ..run.fidelity.copies import recorded_copies

    if not auditing.values:
        return None
    if "copies" not in auditing.values and recorded_copies(run) is None:
        raise UsageError(
            "--false-positives: copies are not looked for here. Give --copies redraw, report or refuse too."
        )
    return auditing.settings()


def run(
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder. [default: runs/<name of DATA, or of the folder above>]"),
    ] = None,
    where: Given[GeneratorSettings],
    preset: Preset = None,
    source: Given[DataSettings],
    inverting: Given[InvertSettings],
    sampling: Given[SampleSettings],
    filtering: Given[FilterSettings],
    training: Given[TrainSettings],
    auditing: Annotated[Given[AuditSettings], Fields(only=("copies", "false_positives"))],
    tune: Tune = None,
    tune_seconds: TuneSeconds = None,
    limiting: Given[LimitSettings],
    own_size: OwnSize = True,
    attributes: AttributesOption = None,
    replicates: Replicates = 1,
    preview: Preview = True,
    logging: Given[LogSettings],
    join: Join = False,
    store: Store = None,
    working: Given[WorkerSettings],
) -> dict[str, Any]:
    """All stages: invert DATA, sample, train, and write run.json and report.html."""
    from ..config.tuning import read_tuning
    from ..run.balancing import whole
    from ..run.place import default_folder, require_place
    from ..run.stages import run_all

    tuning = read_tuning(tune or (), tune_seconds)
    data = source.values["data"]
    chosen = data_settings(source)
    folder = out or default_folder(chosen.data)
    require_place(folder, chosen.data, chosen.test)
    invert, sample, train = settings_of_a_run(preset, data, inverting, sampling, training)
    logs, limit = _logs(logging, join, store, working), limiting.settings().time_limit
    if working.values and (limit is not None or train.online):
        raise UsageError(
            "--workers: goes with neither --time-limit nor --online, which one process decides. Leave it out."
        )
    if store is not None and tune_seconds is not None:
        raise UsageError("--store --tune-seconds: each machine would choose by its own clock. Leave one of them out.")
    shared = opened(store)
    if (done := by_workers(working, folder)) is not None:
        return done
    look = first_look(folder) if preview and is_watched() else None
    with hold(folder, join, store=shared):
        record = run_all(
            folder, chosen, load(where.settings()), invert=invert, sample=whole(sample), train=train,
            command=command_line(),
            replicates=replicates, own_size=own_size, tuning=tuning, time_limit=limit,
            filtering=filtering.settings(), audit=auditing.settings(), attributes=absolute_file(attributes),
            preview=look, logs=logs,
        )  # fmt: skip
    return summarise(folder, record, data, source.values.get("test"))


def _logs(logging: Given[LogSettings], join: bool, store: str | None, working: Given[WorkerSettings]) -> LogSettings:
    """Where a command logs, refused where that cannot be."""
    from ..run.trackers import require_trackers

    logs = logging.settings()
    require_trackers(logs.log_to)
    if logs.log_to and logs.log_dir is not None and logs.log_dir.exists() and not logs.log_dir.is_dir():
        raise UsageError(f"--log-dir {logs.log_dir}: is a file. Name a folder, which need not be there yet.")
    if logs.log_to and (join or store is not None or working.values):
        raise UsageError(
            "--log-to --join, --store or --workers: several processes would write one log. Leave one of them out."
        )
    return logs


def _described(**stages: Settings) -> dict[str, dict[str, Any]]:
    """Settings by stage, as a log has them."""
    return {stage: settings.model_dump(mode="json") for stage, settings in stages.items()}


def first_look(folder: Path) -> Wanted | None:
    """The preview of a run, beside its folder; None where other files have its names."""
    from ..config.planning import PreviewSettings
    from ..run.preview import Wanted, files_of

    try:
        return Wanted(PreviewSettings(), files_of(folder.with_name(f"{folder.name}-preview.png")), command_line())
    except UsageError:
        return None


def settings_of_a_run(
    preset: str | None,
    data: str,
    inverting: Given[InvertSettings],
    sampling: Given[SampleSettings],
    training: Given[TrainSettings],
) -> tuple[InvertSettings, SampleSettings, TrainSettings]:
    """The checked settings of all stages. One --group-size is for stages 1 and 2; refused where neither has a use."""
    invert = inverting.settings(preset, of=data, without=("group_size",))
    sample = sampling.settings(preset, of=data, without=("group_size",))
    joint = invert.grouping == "joint"
    if joint:
        invert = inverting.settings(preset, of=data)
    if sample.has_groups or not joint:
        sample = sampling.settings(preset, of=data)
    return invert, sample, training.settings(preset, of=data)


def demo(
    data: Annotated[str, typer.Option(help="elpv (solar cells; needs the extra `demo`) or digits.")] = "elpv",
    out: Annotated[Path | None, typer.Option(help="Run folder. [default: runs/demo-<data>]")] = None,
    *,
    where: Device,
) -> dict[str, Any]:
    """The whole job on a small data set in minutes, on a CPU."""
    from ..config.sampling import SampleSettings
    from ..config.settings import DEMOS, DataSettings, InvertSettings
    from ..config.training import TrainSettings
    from ..run.stages import run_all

    if data not in DEMOS:
        raise UsageError(f"--data {data}: no such demo. Use one of: {', '.join(DEMOS)}.")
    folder, chosen = out or Path("runs") / f"demo-{data}", DEMOS[data]
    with hold(folder):
        record = run_all(
            folder,
            DataSettings.model_validate({"data": data, **chosen["data"]}),
            load(where.settings()),
            invert=InvertSettings.model_validate(chosen["invert"]),
            sample=SampleSettings.model_validate(chosen["sample"]),
            train=TrainSettings.model_validate(chosen["train"]),
            command=command_line(),
            own_size=False,  # it takes longer than all else; the summary says that the real images are shrunk
        )
    return summarise(folder, record)
