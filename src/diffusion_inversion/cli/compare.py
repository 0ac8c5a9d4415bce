"""`dinv compare`: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .command import command_line


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders; others are set against the first.")],
    out: Annotated[Path | None, typer.Option(help="Page to write, a name that ends in .html. [default: none]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page where it exists.")] = False,
) -> dict[str, Any]:
    """Set finished runs side by side: settings that differ, accuracies, differences with intervals, time.

    Run against run is paired where both have the same test images. Nothing is computed anew and no run is changed.
    """
    from ..data.problems import aligned
    from ..engine.store import commit_bytes
    from ..run.comparing import compare_runs
    from ..run.report.comparison import render_comparison, tables

    if out is not None and out.suffix.lower() != ".html":
        raise UsageError(f"--out {out}: the page is HTML; give a name that ends in .html.")
    if out is not None and (out.is_dir() or (out.exists() and not overwrite)):
        raise UsageError(f"--out {out}: exists already; give another name, or --overwrite to replace a file.")
    record = compare_runs(runs)
    lines: list[str] = []
    for title, table in tables(record).items():
        lines += [title, *aligned(table), ""]
    lines.append(f"{len(record['settings']['same'])} settings are the same (--json has them)")
    if out is not None:
        commit_bytes(out, render_comparison(record, command_line()).encode())
        lines.append(f"page: {out}")
    return {**record, "page": None if out is None else str(out), "text": "\n".join(lines)}
