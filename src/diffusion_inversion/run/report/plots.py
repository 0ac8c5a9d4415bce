"""The charts of the report, from the run's record: differences, accuracies, the loss of the inversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from .formats import accuracy
from .svg import COLOURS, Row, axis, chart, curve


def arm_colours(run: Mapping[str, Any]) -> dict[str, int]:
    """The colour of each arm, the same in every chart and table."""
    return {arm: place % COLOURS for place, arm in enumerate(run["arms"])}


def differences(colours: Mapping[str, int], comparisons: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Each arm's difference to its baseline in points with its interval, and a line at zero; None without any."""
    return difference_chart([difference_row(one, colours.get(one["arm"], 0)) for one in comparisons])


def difference_row(compared: Mapping[str, Any], colour: int, run: str = "") -> Row:
    """The difference of an arm as a row of `difference_chart`, with its run's name where there are several."""
    ends = _in_percent(compared["low"], compared["high"])
    numbers = f"{100 * compared['difference']:+.1f}"
    if ends is not None:
        numbers = f"{numbers} ({ends[0]:+.1f} to {ends[1]:+.1f})"
    return Row(
        name=compared["arm"],
        numbers=numbers,
        colour=colour,
        mean=100 * compared["difference"],
        interval=ends,
        run=run,
    )


def difference_chart(rows: Sequence[Row]) -> Markup | None:
    """The rows on one axis with a line at zero; None without any."""
    if not rows:
        return None
    along = axis([0.0, *(row.mean for row in rows), *(end for row in rows for end in row.interval or ())])
    return chart(rows, along, f"Difference in points: {_spoken(rows)}", level=0.0)


def scored(run: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
    """What an arm scored (`MeasureRecord`), in the measure of the run's verdict: accuracy, or balanced accuracy."""
    record = run["arms"][arm]
    if run["verdict"].get("measure") == "balanced accuracy":
        found: Mapping[str, Any] = record["balanced_accuracy"]
        return found
    return {"values": record["accuracies"], "mean": record["mean"], "std": record["std"]}


def accuracies(run: Mapping[str, Any]) -> Markup:
    """What each arm scored in %, one dot each, and the mean with one standard deviation to either side below.

    In the verdict's measure: accuracy, or balanced accuracy.
    """
    colours = arm_colours(run)
    rows = [accuracy_row(run, arm, colours[arm]) for arm in run["arms"]]
    return accuracy_chart(rows, run["verdict"].get("measure", "accuracy"))


def accuracy_row(run: Mapping[str, Any], arm: str, colour: int, name: str = "") -> Row:
    """An arm of a run as a row of `accuracy_chart`, with the run's name where there are several."""
    found = scored(run, arm)
    mean, std = 100 * found["mean"], found["std"]
    return Row(
        name=arm,
        numbers=accuracy(found["mean"], std, run["arms"][arm]["n"]),
        colour=colour,
        mean=mean,
        dots=tuple(100 * value for value in found["values"]),
        interval=None if std is None else (max(mean - 100 * std, 0.0), min(mean + 100 * std, 100.0)),
        run=name,
    )


def accuracy_chart(rows: Sequence[Row], measure: str) -> Markup:
    """The rows on one axis, which does not begin at 0."""
    shown = [value for row in rows for value in (row.mean, *row.dots, *(row.interval or ()))]
    return chart(rows, axis(shown, within=(0, 100)), f"Test {measure}: {_spoken(rows)}", unit=" %")


def losses(run: Mapping[str, Any]) -> Markup:
    """The mean loss of stage 1 over its steps, the 10th to 90th percentile of the images, the empty prompt's line."""
    found = run["inversion_curve"]
    return curve(
        found["steps"],
        found["mean"],
        (found["p10"], found["p90"]),
        f"Mean loss from {found['mean'][0]:.4g} at step {found['steps'][0]} to {found['mean'][-1]:.4g} at the last",
        level=run["stages"]["invert"].get("null_loss"),
    )


def _in_percent(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (100 * low, 100 * high)


def _spoken(rows: Sequence[Row]) -> str:
    return "; ".join(row.spoken for row in rows)
