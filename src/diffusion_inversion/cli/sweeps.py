"""The commands that vary settings and judge what was claimed of them: sweep, claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import command_line, hold, load
from .given import Given
from .options import DeviceAndType, Join
from .workers import by_workers

if TYPE_CHECKING:
    from ..config.working import WorkerSettings


def sweep(
    *,
    file: Annotated[Path, typer.Argument(help="Experiment file (TOML): settings, what varies, what is drawn.")],
    out: Annotated[Path | None, typer.Option(help="Folder, which files may share. [default: sweeps]")] = None,
    data: Annotated[str | None, typer.Option(help="Training images. [default: the file's]")] = None,
    test: Annotated[str | None, typer.Option(help="Test images. [default: the file's]")] = None,
    generator: Annotated[str | None, typer.Option(help="[default: the file's, else mini]")] = None,
    replicates: Annotated[
        int | None,
        typer.Option(min=1, help="Do every cell so often, with all of it drawn anew. [default: the file's, else 1]"),
    ] = None,
    where: DeviceAndType,
    join: Join = False,
    working: Given[WorkerSettings],
) -> dict[str, Any]:
    """Run an experiment file: every combination of its settings, each stage once for all that share it."""
    from ..data.problems import aligned
    from ..sweep import read_plan, run_sweep
    from ..sweep.table import accuracy_table, choices_table, classes_table, scope, shows_classes, spread_table

    plan = read_plan(file, data, test, replicates)
    folder = out or Path("sweeps")
    if (done := by_workers(working, folder)) is not None:
        return done
    named = {"generator": generator or plan.generator, "revision": None if generator else plan.revision}
    loaded = load(where.settings().model_copy(update=named))
    with hold(folder, join):
        found = run_sweep(plan, folder, loaded, command=command_line())
    head, body = accuracy_table(found)
    lines = aligned([head, *body], indent="")
    if spread := spread_table(found):
        lines += ["", "where the spread comes from", *aligned([spread[0], *spread[1]], indent="")]
    if shows_classes(found):
        head, body = classes_table(found.rows)
        lines += ["", "classes", *aligned([head, *body], indent="")]
    if chosen := choices_table(found):
        lines += ["", "chosen on the training images", *aligned([chosen[0], *chosen[1]], indent="")]
    lines += [scope(found)]
    lines += [f"{c.outcome}: {c.claim.says}" for c in found.claims]
    claims = [{"says": c.claim.says, "outcome": c.outcome} for c in found.claims]
    return {
        "folder": str(folder),
        "page": str(folder / f"{plan.name}.html"),
        "rows": len(found.rows),
        "claims": claims,
        "text": "\n".join([*lines, f"table, figures and page: {folder / plan.name}.*"]),
    }


def claims(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Folders of `dinv sweep`, or JSON files in them.")
    ],
    confidence: Annotated[float, typer.Option(help="Of all statements together, in (0, 1).")] = 0.95,
) -> dict[str, Any]:
    """Judge the claims of several sweeps together: with many claims some hold by chance if each is judged alone."""
    from ..sweep.claims import claims_text, judge_together, read_claims

    judged = judge_together(read_claims(paths), confidence)
    text = claims_text(judged, confidence)
    return {"confidence": confidence, "claims": [one.record for one in judged], "text": text}
