"""`dinv audit`: copies of training images among synthetic ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .command import hold
from .given import Fields, Given

if TYPE_CHECKING:
    from ..config.commands import AuditSettings

RunOrReal = Annotated[str, typer.Argument(metavar="RUN|REAL", help="Run folder; or DATA that was trained on.")]
Generated = Annotated[
    str | None, typer.Argument(metavar="GENERATED", help="DATA that may hold copies of REAL. [default: those of RUN]")
]
OF_THE_COMMAND = ("false_positives", "neighbours", "extractor", "weights", "planted", "limit", "seed", "device")


def audit(
    *,
    real: RunOrReal,
    generated: Generated = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="With REAL and GENERATED: DATA of the same kind, never trained on: what no copying looks like. "
            "[default: the test split of REAL, else its images left out one by one]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With REAL and GENERATED: folder for audit.json and the picture of the pairs.")
    ] = None,
    auditing: Annotated[Given[AuditSettings], Fields(only=OF_THE_COMMAND)],
) -> dict[str, Any]:
    """Find synthetic images that copy training images, and say how many such copies would be found."""
    from ..data.sources import at_home
    from ..measure.copies.said import table
    from ..run.copies import audit_data, audit_run, require_own_out, write_audit
    from ..run.layout import AUDIT_FILE, AUDIT_PICTURE, DATA_FILE
    from ..run.reporting import report_command

    settings = auditing.settings()
    if generated is not None:
        if out is not None:
            require_own_out(out, AUDIT_FILE, AUDIT_PICTURE)
        found, record = audit_data(real, generated, test, settings)
        if out is not None:
            write_audit(out, found, record)
        return {**record, "text": table(record)}
    run = at_home("RUN", real)
    if not (run / DATA_FILE).is_file():
        raise UsageError(f"{real}: not a run folder. Give one, or REAL and GENERATED.")
    if test is not None or out is not None:
        raise UsageError(
            "--test and --out go with REAL and GENERATED; a run has its own test images and its own folder."
        )
    with hold(run):
        record = audit_run(run, settings)
    return {
        **record,
        "text": f"{table(record)}\nKept in {run / AUDIT_FILE}; `{report_command(run)}` shows it in the report.",
    }
