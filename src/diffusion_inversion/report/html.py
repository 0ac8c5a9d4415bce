"""The report's page: one self-contained HTML file without scripts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..engine.store import commit_bytes
from .figures import ReportImages, accuracy_bars, image_grid, loss_curve, png

MOST_PROBLEMS = 200  # rows of the table; the run's data.json lists all


def accuracy(mean: float, std: float | None, n: int) -> str:
    """Format accuracies in [0, 1] as `33.1 ± 2.9 % (n=3)`; one seed has no spread."""
    spread = "" if std is None or n < 2 else f" ± {100 * std:.1f}"
    return f"{100 * mean:.1f}{spread} % (n={n})"


def points(difference: float | None) -> str:
    """Format a difference of accuracies as `+2.2 points`; None was not measured."""
    return "not measured" if difference is None else f"{100 * difference:+.1f} points"


def duration(seconds: float) -> str:
    """Format seconds as `4.2 s`, `3 min 07 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def setting(value: Any) -> str:
    """Show a setting as it is written in JSON, a string without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data_uri(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def write_report(run: Mapping[str, Any], figures: ReportImages, path: Path) -> None:
    """Write the page for `run`, the content of `run.json` (`RunRecord`), to `path`, whole or not at all.

    The labels of `figures` are indices into the run's class names. Everything in `run` is text, never markup.
    Raises DiskError; jinja2.UndefinedError names a field that `run` lacks.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("diffusion_inversion.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "duration": duration, "setting": setting}
    environment.globals |= {"accuracy": accuracy}
    null_loss = run["stages"]["invert"].get("null_loss")
    page = environment.get_template("template.html").render(
        run=run,
        problems=run["data"]["problems"][:MOST_PROBLEMS],
        variants=figures.variants.shape[1],
        bars=_data_uri(png(accuracy_bars(run["arms"]))),
        grid=_data_uri(png(image_grid(figures, run["data"]["class_names"]))),
        curve=_data_uri(png(loss_curve(run["inversion_curve"], null_loss))),
    )
    commit_bytes(path, page.encode())
