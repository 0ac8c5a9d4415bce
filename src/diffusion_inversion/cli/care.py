"""The commands that look after data and runs: inspect, doctor, verify, repair, forget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError, PartialError, UsageError
from .command import data_settings, hold, load
from .given import Fields, Given
from .options import Device, Run

if TYPE_CHECKING:
    from ..config.settings import DataSettings, GeneratorSettings
    from ..run.verify import Verification

SHOWN = 20  # findings in a message; --json has all
Beside = Annotated[
    "Given[GeneratorSettings]",
    Fields(unset={"generator": "none; with one: what its autoencoder keeps of the training images too"}),
]


def inspect(
    *,
    csv: Annotated[Path | None, typer.Option(help="Write every problem to this CSV file too.")] = None,
    source: Given[DataSettings],
    where: Beside,
) -> dict[str, Any]:
    """Look at DATA before anything is computed: every problem of every image, in a table."""
    from ..data.inspection import inspect as look
    from ..data.inspection import require_own_csv

    settings = data_settings(source)
    if where.values and "generator" not in where.values:
        flags = ", ".join(where.flags().values())
        raise UsageError(f"{flags}: of a generator, which inspect loads with --generator alone. Give it too.")
    if csv is not None:
        require_own_csv(csv)
    drop = settings.drop_test_duplicates
    found = look(**settings.model_dump(exclude={"drop_test_duplicates"}), drop_duplicates=drop)
    if csv is not None:
        found.write_csv(csv)
    if not found.usable:
        raise DataError(found.table(), found.record())
    summary = {**found.record(), "text": found.table()}
    if "generator" in where.values:
        from ..run.coarseness import measure
        from ..run.images import load_as

        loaded, images = load(where.settings()), load_as(settings).train
        side = loaded.resolution
        try:
            kept = measure(images, loaded, resolution=side, used=min(images.size, side))
        except DataError as error:
            said = f"how much {loaded.name} keeps of these images is not known: {error}."
        else:
            said = kept.warning or f"{loaded.name}: {kept.sentence}. No loss that matters was seen."
            summary["coarseness"] = kept.record()
        summary["text"] = f"{summary['text']}\n\n{said}"
    return summary


def doctor(
    out: Annotated[Path | None, typer.Argument(help="A run folder whose disk is looked at. [default: here]")] = None,
) -> dict[str, Any]:
    """Say what this machine has for a run: versions, device, memory, disk, caches, weights."""
    from ..run.doctor import examine, table

    checks = examine(out)
    record = {"checks": [vars(check) for check in checks]}
    if any(check.ok is False for check in checks):
        wrong = ", ".join(check.name for check in checks if check.ok is False)
        raise UsageError(f"{wrong}: not as a run needs it (!!)\n{table(checks)}", record)
    return {**record, "text": table(checks)}


def verify(run: Run) -> dict[str, Any]:
    """Read every file of RUN and compare it with what was written."""
    from ..engine.disk import human
    from ..engine.text import shown

    found = _verified(run)
    if found.lost:
        raise DataError(f"{_lines(run, found)}\n`dinv repair {run}` makes them again.", _record(found))
    if found.findings:
        raise PartialError(
            f"{_lines(run, found)}\nNothing that was committed is lost. Run the command that was interrupted "
            f"again, or `dinv repair {run}`.",
            _record(found),
        )
    text = f"{run}: {found.files} files, {human(found.size)}: all as written"
    if found.foreign:
        names = [*map(shown, found.foreign[:SHOWN]), *(["..."] if len(found.foreign) > SHOWN else [])]
        text += f". Not of this run, and left alone: {', '.join(names)}"
    return {**_record(found), "text": text}


def repair(*, run: Run, where: Device) -> dict[str, Any]:
    """Make again what is damaged or missing in RUN, and only that."""
    from ..engine.lock import run_lock
    from ..run.forget import finish_pending
    from ..run.methods import method_of
    from ..run.resume import resume
    from ..run.verify import discard

    device = where.settings().device
    with run_lock(run):
        before = _verified(run)
        discard(run, before)
        finish_pending(run)
        unfinished = resume(run, device)
        after = _verified(run)
    text = f"{run}: {len(before.findings)} findings mended; {after.files} files are as written"
    if after.lost:
        raise DataError(f"{_lines(run, after)}\nThese could not be mended.", _record(after))
    if unfinished and (again := method_of(run).again) is not None:
        text = (
            f"{run}: {len(before.findings)} findings; {after.files} files are as written, damaged ones are taken "
            f"out. The same `{again}` command draws what is missing."
        )
    elif unfinished:
        text += f". Stage {unfinished[0]} was never finished: run its command again to go on."
    return {"repaired": len(before.findings), "unfinished": unfinished, **_record(after), "text": text}


def forget(
    run: Run,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Id of an image, as in data.json; train:ID or test:ID where both have it. Can be repeated."),
    ] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Every image that DATA no longer holds, or holds otherwise.")
    ] = False,
    keep_averages: Annotated[
        bool, typer.Option("--keep-averages", help="Keep what the image went into only as part of a mean.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
) -> dict[str, Any]:
    """Delete images from RUN with everything that was made from them; --source also keeps them out for good."""
    from ..run.forget import changed as changed_ids
    from ..run.forget import forget as delete

    if bool(source) == changed:
        raise UsageError(f"dinv forget {run}: give --source ID (as often as needed) or --changed, one of the two.")
    with hold(run):
        ids = source or changed_ids(run)
        done = delete(run, ids, never_again=not changed, keep_averages=keep_averages, dry_run=dry_run)
    if dry_run:
        text = (
            f"{run}: nothing was deleted. Without --dry-run {done.images} images would be forgotten: {done.vectors} "
            f"vectors, {done.synthetic} synthetic images and {done.classifiers} classifiers deleted."
        )
        return {"run": str(run), "dry_run": True, **vars(done), "text": text}
    text = (
        f"{run}: forgot {done.images} images: {done.vectors} vectors, {done.synthetic} synthetic images and "
        f"{done.classifiers} classifiers deleted. Run the stages again for what is left. Copies outside the run, "
        "the data itself and caches of it are yours to delete."
    )
    return {"run": str(run), **vars(done), "text": text}


def _verified(run: Path) -> Verification:
    from ..engine.progress import track
    from ..run.verify import count_files
    from ..run.verify import verify as check

    with track("verify", count_files(run), "files") as advance:
        return check(run, lambda: advance(1))


def _record(found: Verification) -> dict[str, object]:
    findings = [vars(finding) for finding in found.findings]
    return {"files": found.files, "bytes": found.size, "findings": findings, "foreign": list(found.foreign)}


def _lines(run: Path, found: Verification) -> str:
    from ..engine.text import shown

    lines = [f"{run}: {len(found.findings)} findings in {found.files} files"]
    for finding in found.findings[:SHOWN]:
        place = f", line {finding.line}" if finding.line is not None else ""
        if finding.images:
            more = f" and {len(finding.images) - 1} more" if len(finding.images) > 1 else ""
            place += f": image {shown(finding.images[0])}{more}"
        lines.append(f"  {finding.kind:<10}  {finding.file}{place}")
    if len(found.findings) > SHOWN:
        lines.append(f"  and {len(found.findings) - SHOWN} more (--json lists all)")
    return "\n".join(lines)
