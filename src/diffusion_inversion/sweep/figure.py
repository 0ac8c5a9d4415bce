"""The figures of a sweep: accuracy with its standard deviation, and metrics with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..run.report import Point, accuracy_curve, metric_curves, png
from ..run.report.figures import ARM_COLOURS, DPI, legend, whiskers, without_tex
from .outcome import MetricsRow, Row, SweepResult
from .plan import Figure
from .table import label, measures, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

LABELS = {
    "images": "synthetic images",
    "sample.noise_strength": "\N{GREEK SMALL LETTER LAMDA}, noise strength",
    "sample.interpolation": "\N{GREEK SMALL LETTER ALPHA}, interpolation strength",
    "data.limit": "real images",
}
SCALED = ("fid", "kid", "cmmd")  # metrics whose scale is not 0 to 1: one figure each


def draw(found: SweepResult) -> dict[str, bytes]:
    """PNG by file name: one for accuracy, one for all metrics between 0 and 1, one for each other metric."""
    figure = found.plan.figure
    if figure is None:
        return {}
    drawn: dict[str, bytes] = {}
    numbers = all(isinstance(_place(row, figure.x), (int, float)) for row in found.rows if _has(row, figure.x))
    if "accuracy" in figure.y:
        drawn[f"{found.plan.name}.png"] = png(_curve(found) if numbers else _dots(found.rows, figure.x))
    measured = [name for name in figure.y if name != "accuracy"]
    together = [name for name in measured if not name.startswith(SCALED)]
    rows, which = _last_line(found)
    for name, group in {"metrics": together, **{one: [one] for one in measured if one not in together}}.items():
        if group and rows:
            lines = {one: _metric_line(rows, figure.x, one) for one in group}
            drawn[f"{found.plan.name}-{name}.png"] = png(metric_curves({_xlabel(figure) + which: lines}))
    return drawn


def _last_line(found: SweepResult) -> tuple[list[MetricsRow], str]:
    """The metrics at the last value of what the lines stand for, and that value for people."""
    key = found.plan.figure.lines if found.plan.figure is not None else None
    if key is None:
        return list(found.metrics), ""
    last = found.plan.cases[-1].name if key == "case" else found.plan.grid[key][-1]
    rows = [row for row in found.metrics if row.at.get(key, last) == last]
    return rows, f" ({_setting(key)} {shown(last)})"


def _setting(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _xlabel(figure: Figure) -> str:
    return figure.xlabel or LABELS.get(figure.x, _setting(figure.x))


def _has(row: Row | MetricsRow, key: str) -> bool:
    return key in row.at or (key == "images" and _count(row) > 0)


def _count(row: Row | MetricsRow) -> int:
    return row.images if isinstance(row, Row) else row.n_generated


def _place(row: Row | MetricsRow, key: str) -> Any:
    found = _count(row) if key == "images" else row.at[key]
    return found[0] if isinstance(found, (list, tuple)) and len(found) == 1 else found


def _curve(found: SweepResult) -> Drawn:
    figure = found.plan.figure
    assert figure is not None
    lines: dict[str, list[Point]] = {}
    for row in found.rows:
        name = row.arm
        if figure.lines is not None and figure.lines in row.at:
            name += f", {shown(row.at[figure.lines])}"
        spread = row.std or 0.0
        at = float(_place(row, figure.x)) if _has(row, figure.x) else 0.0
        lines.setdefault(name, []).append(
            {"at": at, "value": row.mean, "low": max(row.mean - spread, 0.0), "high": min(row.mean + spread, 1.0)}
        )
    key = "" if figure.lines is None else f"   (lines: {_setting(figure.lines)})"
    return accuracy_curve(lines, _xlabel(figure) + key, measures(found.rows))


def _metric_line(rows: Sequence[MetricsRow], key: str, name: str) -> list[Point]:
    return [
        {"at": float(_place(row, key)), "value": value, "low": found["low"], "high": found["high"]}
        for row in rows
        if _has(row, key) and (value := (found := row.metrics[name])["value"]) is not None
    ]


@without_tex
def _dots(rows: Sequence[Row], key: str) -> Drawn:
    """Mean and standard deviation of every arm, one place for each value that is not a number; rows read downwards."""
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(row.arm for row in rows))
    names = list(dict.fromkeys(label(row.at) or "all" for row in rows))
    figure = Figure(figsize=(7, 1.2 + 0.42 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for place, arm in enumerate(arms):
        own = [row for row in rows if row.arm == arm]
        heights = [names.index(label(row.at) or "all") + 0.18 * (place - (len(arms) - 1) / 2) for row in own]
        handles.append(
            axes.errorbar(
                [100 * row.mean for row in own], heights, xerr=whiskers([(row.mean, row.std) for row in own]),
                fmt="o", color=ARM_COLOURS[place % len(ARM_COLOURS)], capsize=3, markersize=5,
            )
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel=f"test {measures(rows)} in %")
    axes.grid(axis="y", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    legend(axes, handles, arms)
    return figure
