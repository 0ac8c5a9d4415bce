"""Curves: accuracy against the number of synthetic images or a strength, metrics against what was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from .figures import ARM_COLOURS, DPI, legend, without_tex

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_DECADE = 8.0  # largest by smallest place from which on a logarithmic axis shows more
_MOST_TICKS = 8


class Point(TypedDict):
    """A measured value with its interval; low and high are None where there is none."""

    at: float  # how many images, or how strong
    value: float
    low: float | None
    high: float | None


Line = Sequence[Point]


@without_tex
def accuracy_curve(arms: Mapping[str, Line], xlabel: str = "synthetic images", measure: str = "accuracy") -> Figure:
    """Test accuracy in % of each arm, values in [0, 1], against the number of images; an error bar is the interval.

    An arm that was measured once, at 0 images, such as `real`, is a level line with its interval as a band. Places
    are on a logarithmic axis from a ratio of 8 on.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for place, line in enumerate(arms.values()):
        colour = ARM_COLOURS[place % len(ARM_COLOURS)]
        if _level(line):
            point = line[0]
            handles.append(axes.axhline(100 * point["value"], color=colour, linestyle="--", linewidth=1.4))
            if point["low"] is not None and point["high"] is not None:
                axes.axhspan(100 * point["low"], 100 * point["high"], color=colour, alpha=0.15, linewidth=0)
        else:
            handles.append(_with_bars(axes, line, colour))
    drawn = [line for line in arms.values() if not _level(line)]
    places = sorted({point["at"] for line in drawn for point in line})
    above = [place for place in places if place > 0]
    if above and above[-1] >= _DECADE * above[0]:
        if places[0] == 0:
            axes.set_xscale("symlog", linthresh=above[0])
        else:
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_number)
        if len(places) <= _MOST_TICKS:
            axes.set_xticks(places)
            axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=f"test {measure} in %")
    axes.spines[["top", "right"]].set_visible(False)
    legend(axes, handles, list(arms))
    return figure


@without_tex
def metric_curves(metrics: Mapping[str, Line], xlabel: str) -> Figure:
    """Metrics against what was varied, one line for each metric by name, its interval as a band.

    All of them on one scale, as precision, recall, density and coverage are: FID belongs in a figure of its own.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for place, line in enumerate(metrics.values()):
        colour = ARM_COLOURS[place % len(ARM_COLOURS)]
        ordered = sorted(line, key=lambda point: point["at"])
        bounded = [(p["at"], p["low"], p["high"]) for p in ordered if p["low"] is not None and p["high"] is not None]
        if bounded:
            places, lows, highs = zip(*bounded, strict=True)
            axes.fill_between(places, lows, highs, color=colour, alpha=0.2, linewidth=0)
        values = [point["value"] for point in ordered]
        handles += axes.plot([p["at"] for p in ordered], values, color=colour, marker="o", markersize=4)
    axes.set_xlabel(xlabel, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0)
    legend(figure, handles, list(metrics))
    return figure


def _level(line: Line) -> bool:
    return len(line) == 1 and line[0]["at"] == 0


def _with_bars(axes: Axes, line: Line, colour: str) -> Line2D:
    """A line through the values in %, in the order of their places, with error bars where there are any."""
    ordered = sorted(line, key=lambda point: point["at"])
    places, values = [point["at"] for point in ordered], [100 * point["value"] for point in ordered]
    (drawn,) = axes.plot(places, values, color=colour, marker="o", markersize=5, linewidth=1.4)
    # From the bounds, not from the value: a bootstrap's interval need not hold it.
    bounds = [(p["at"], p["low"], p["high"]) for p in ordered if p["low"] is not None and p["high"] is not None]
    if bounds:
        where, lows, highs = zip(*bounds, strict=True)
        middles = [100 * (low + high) / 2 for low, high in zip(lows, highs, strict=True)]
        halves = [100 * (high - low) / 2 for low, high in zip(lows, highs, strict=True)]
        axes.errorbar(where, middles, yerr=halves, fmt="none", color=colour, capsize=4, linewidth=1.2)
    return drawn


def _number(value: float, _: float) -> str:
    """A place on an axis of counts or strengths: 1000 as 1,000, 0.1 as it is."""
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"
