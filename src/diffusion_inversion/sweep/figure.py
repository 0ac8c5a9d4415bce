"""The figures of a sweep: accuracy with its standard deviation, and metrics with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..run.report import Point, accuracy_curve, metric_curves, png
from ..run.report.figures import ARM_COLOURS, DPI, legend, without_tex
from .outcome import MetricsRow, Row, SweepResult
from .plan import Figure, SweepPlan
from .table import label, measures, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

LABELS = {
    "images": "synthetic images",
    "sample.noise_strength": "\N{GREEK SMALL LETTER LAMDA}, noise strength",
    "sample.interpolation": "\N{GREEK SMALL LETTER ALPHA}, interpolation strength",
    "data.limit": "real images",
}
Dot = tuple[str, float, tuple[float, float] | None]  # place in words, value, and the ends of its bar
AMOUNTS = ("sample.variants", "data.limit", "data.per_class")  # what the number of images comes from
SCALED = ("fid", "kid", "cmmd")  # metrics whose scale is not 0 to 1: one figure each


def draw(found: SweepResult) -> dict[str, bytes]:
    """PNG by file name: one for accuracy, one for all metrics between 0 and 1, one for each other metric."""
    figure = found.plan.figure
    if figure is None:
        return {}
    drawn: dict[str, bytes] = {}
    numbers = all(isinstance(_place(row, figure.x), (int, float)) for row in found.rows if _has(row, figure.x))
    if "accuracy" in figure.y:
        drawn[f"{found.plan.name}.png"] = png(_curve(found) if numbers else _accuracy_dots(found.rows))
    measured = [name for name in figure.y if name != "accuracy"]
    together = [name for name in measured if not name.startswith(SCALED)]
    rows, which = _last_line(found)
    for name, group in {"metrics": together, **{one: [one] for one in measured if one not in together}}.items():
        if group and rows:
            if numbers:
                others = {_others(row, found.plan): None for row in rows}
                lines = {
                    ", ".join(filter(None, [one, other])): _metric_line(
                        [row for row in rows if _others(row, found.plan) == other], figure.x, one
                    )
                    for one in group
                    for other in others
                }
                picture = metric_curves(lines, _xlabel(figure) + which)
            else:
                picture = _dots(_metric_dots(rows, group), ", ".join(map(_setting, group)) + which)
            drawn[f"{found.plan.name}-{name}.png"] = png(picture)
    return drawn


def _last_line(found: SweepResult) -> tuple[list[MetricsRow], str]:
    """The metrics at the last value of what the lines stand for, and that value for people."""
    key = found.plan.figure.lines if found.plan.figure is not None else None
    if key is None:
        return list(found.metrics), ""
    last = found.plan.cases[-1].name if key == "case" else found.plan.grid[key][-1]
    rows = [row for row in found.metrics if row.at.get(key, last) == last]
    return rows, f" ({_setting(key)} {shown(last)})"


def _others(row: Row | MetricsRow, plan: SweepPlan) -> str:
    """Values, for people, of what varies beside the figure's axis and its lines: each has a line of its own."""
    figure = plan.figure
    assert figure is not None
    vary = {key for key, values in plan.grid.items() if len(values) > 1} | ({"case"} if len(plan.cases) > 1 else set())
    shown_otherwise = {figure.x, figure.lines, *(AMOUNTS if figure.x == "images" else ())}
    return label({key: value for key, value in row.at.items() if key in vary - shown_otherwise})


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
        line = shown(row.at[figure.lines]) if figure.lines is not None and figure.lines in row.at else ""
        name = ", ".join(filter(None, [row.arm, line, _others(row, found.plan)]))
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


def _accuracy_dots(rows: Sequence[Row]) -> Drawn:
    lines: dict[str, list[Dot]] = {}
    for row in rows:
        spread = None if row.std is None else (max(row.mean - row.std, 0.0), min(row.mean + row.std, 1.0))
        ends = None if spread is None else (100 * spread[0], 100 * spread[1])
        lines.setdefault(row.arm, []).append((_name(row), 100 * row.mean, ends))
    return _dots(lines, f"test {measures(rows)} in %", [_name(row) for row in rows])


def _metric_dots(rows: Sequence[MetricsRow], names: Sequence[str]) -> dict[str, list[Dot]]:
    lines: dict[str, list[Dot]] = {}
    for name in names:
        for row in rows:
            value, low, high = (row.metrics[name][key] for key in ("value", "low", "high"))
            if value is not None:
                ends = None if low is None or high is None else (low, high)
                lines.setdefault(name, []).append((_name(row), value, ends))
    return lines


def _name(row: Row | MetricsRow) -> str:
    return label(row.at) or "all"


@without_tex
def _dots(lines: Mapping[str, Sequence[Dot]], xlabel: str, names: Sequence[str] = ()) -> Drawn:
    """Values and their ends, one line of the picture for each place that is no number, a colour for each of `lines`.

    names: places from above downwards, by default as they come.
    """
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys([*names, *(name for line in lines.values() for name, *_ in line)]))
    figure = Figure(figsize=(7, 1.2 + 0.42 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for place, line in enumerate(lines.values()):
        colour, shift = ARM_COLOURS[place % len(ARM_COLOURS)], 0.18 * (place - (len(lines) - 1) / 2)
        heights = [rows.index(name) + shift for name, *_ in line]
        handles += axes.plot([value for _, value, _ in line], heights, "o", color=colour, markersize=5)
        for height, (_, _, ends) in zip(heights, line, strict=True):
            if ends is not None:  # which need not hold the value, where a bootstrap gave them
                axes.errorbar(sum(ends) / 2, height, xerr=(ends[1] - ends[0]) / 2, fmt="none", color=colour, capsize=3)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel, parse_math=False)
    axes.grid(axis="y", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    legend(axes, handles, list(lines))
    return figure
