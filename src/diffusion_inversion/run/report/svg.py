"""Charts as SVG in the page's colours: pure functions from numbers to markup.

Across, places are in % of the chart's width, so that a chart fits every page while its text keeps its size; down they
are in px. Colours are the classes c0 to c5 of `style.css`, so a chart follows the light or dark page around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ...engine.text import cut, cut_inside

COLOURS = 6  # classes c0 to c5
_MOST_STEPS = 5  # between two ends of an axis
_SAME = 1e-9  # of the larger value, or of 1: two values that are nearer than that are one
# Heights in px: a row's name, its dots, its mean with the interval, the space under a row, the axis with its numbers.
_NAME, _DOTS, _MEAN, _SPACE, _AXIS = 20, 14, 14, 10, 26
_CURVE = 200
_LONGEST, _LEAST = 34, 10  # characters of a name beside its numbers, and those of it that a run's name has at least


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high` with the values at which it is named."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Where `value` stands: 0 at `low`, 100 at `high`, in % of the width; beyond the ends it stands outside."""
        return 100 * (value - self.low) / (self.high - self.low)


def axis(values: Iterable[float], within: tuple[float, float] = (-math.inf, math.inf)) -> Axis:
    """The shortest axis of at most five round steps (1, 2 or 5 times a power of ten) that holds all `values`.

    It does not leave `within`, whose ends are to be round themselves. One value alone has 1 on either side.
    """
    found = list(values)
    low, high = min(found), max(found)
    if high - low <= _SAME * max(abs(low), abs(high), 1):
        low, high = low - 1, high + 1
    low, high = max(low, within[0]), min(high, within[1])
    exponent = math.floor(math.log10((high - low) / _MOST_STEPS))
    for factor in (1, 2, 5, 10, 20):
        step = factor * 10.0**exponent
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= _MOST_STEPS:
            break
    return Axis(
        max(first * step, within[0]),
        min(last * step, within[1]),
        tuple(k * step for k in range(first, last + 1) if within[0] <= k * step <= within[1]),
    )


@dataclass(frozen=True)
class Row:
    """What a chart shows of one thing, in the axis' unit."""

    name: str  # whole; what is drawn is `label`
    numbers: str  # the same as text, at the right end
    colour: int  # which of the colours
    mean: float
    dots: tuple[float, ...] = ()  # single measurements, above the mean
    interval: tuple[float, float] | None = None  # around the mean
    run: str = ""  # whose it is, where a chart has several runs

    @property
    def spoken(self) -> str:
        """What a reader without the picture hears, whole."""
        return f"{self.run}: {self.name} {self.numbers}" if self.run else f"{self.name} {self.numbers}"

    @property
    def label(self) -> str:
        """The name beside its numbers. Of one that is too long it is the run's that is shortened, in its middle."""
        if not self.run:
            return cut(self.name, _LONGEST)
        name = cut(self.name, _LONGEST - _LEAST)
        return f"{cut_inside(self.run, _LONGEST - len(name))}: {name}"


def chart(rows: Sequence[Row], along: Axis, title: str, level: float | None = None, unit: str = "") -> Markup:
    """Rows from top to bottom: name and numbers, then the dots, then the mean with its interval, never over dots.

    level: a value that is marked by a line over all rows, such as zero. title: what a reader without the picture hears.
    """
    parts: list[str] = []
    top = 0
    for row in rows:
        shade = f"c{row.colour % COLOURS}"
        parts.append(_text(0, top + 14, row.label, "start", "name") + _text(100, top + 14, row.numbers, "end"))
        top += _NAME
        if row.dots:
            middle = top + _DOTS / 2
            parts += [
                f'<circle class="dot {shade}" cx="{along.place(d):.3f}%" cy="{middle:g}" r="4.5"/>' for d in row.dots
            ]
            top += _DOTS
        middle = top + _MEAN / 2
        if row.interval is not None:
            low, high = (along.place(end) for end in row.interval)
            parts.append(_line(low, middle, high, middle, f"interval {shade}"))
            parts += [_line(end, middle - 5, end, middle + 5, f"end {shade}") for end in (low, high)]
        parts.append(
            f'<svg x="{along.place(row.mean):.3f}%" y="{middle:g}" overflow="visible">'
            f'<path class="mean {shade}" d="M0-6 6 0 0 6-6 0Z"/></svg>'
        )
        top += _MEAN + _SPACE
    grid = [_line(along.place(tick), 0, along.place(tick), top, "grid") for tick in along.ticks]
    if level is not None:
        grid.append(_line(along.place(level), 0, along.place(level), top, "level"))
    return _svg([*grid, *parts, *_numbers_below(along, top, unit)], top + _AXIS, title)


def curve(
    steps: Sequence[float],
    mean: Sequence[float],
    band: tuple[Sequence[float], Sequence[float]],
    title: str,
    level: float | None = None,
) -> Markup:
    """A line of means over `steps`, with a band from low to high around it; at least one step.

    level: a value that is marked by a line over all steps.
    """
    first, last = min(steps), max(steps)
    ticks = tuple(tick for tick in axis(steps).ticks if first <= tick <= last)
    across = Axis(first, last if last > first else first + 1, ticks)
    shown = [*mean, *band[0], *band[1], *([] if level is None else [level])]
    down = axis(shown)

    def points(values: Sequence[float]) -> list[str]:
        return [
            f"{across.place(step):.3f},{100 - down.place(value):.3f}" for step, value in zip(steps, values, strict=True)
        ]

    grid: list[str] = []
    for tick in down.ticks:
        height = _CURVE * (1 - down.place(tick) / 100)
        grid += [_line(0, height, 100, height, "grid"), _text(0, height - 4, f"{tick:.4g}", "start")]
    if level is not None:
        height = _CURVE * (1 - down.place(level) / 100)
        grid.append(_line(0, height, 100, height, "level"))
    around = " ".join([*points(band[0]), *reversed(points(band[1]))])
    drawn = (
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="{_CURVE}" overflow="visible">'
        f'<polygon class="band c0" points="{around}"/>'
        f'<polyline class="curve c0" points="{" ".join(points(mean))}"/></svg>'
    )
    return _svg([*grid, drawn, *_numbers_below(across, _CURVE, "")], _CURVE + _AXIS, title)


def _numbers_below(along: Axis, top: float, unit: str) -> list[str]:
    return [_text(along.place(tick), top + 18, f"{_number(tick)}{unit}", "middle") for tick in along.ticks]


def _number(value: float) -> str:
    """A tick without the noise of binary fractions: 0.30000000000000004 as 0.3, minus as the sign."""
    return f"{round(value, 9) + 0:,.6g}".replace("-", "\N{MINUS SIGN}")


def _text(across: float, down: float, text: str, anchor: str, kind: str = "number") -> str:
    return (
        f'<text class="{kind}" x="{across:.3f}%" y="{down:g}" text-anchor="{anchor}">{escape(" ".join(text.split()))}'
        "</text>"
    )


def _line(left: float, top: float, right: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{left:.3f}%" y1="{top:g}" x2="{right:.3f}%" y2="{bottom:g}"/>'


def _svg(parts: Sequence[str], height: float, title: str) -> Markup:
    opening = f'<svg class="chart" role="img" aria-label="{escape(title)}" width="100%" height="{height:g}">'
    return Markup(opening + "".join(parts) + "</svg>")
