"""Runs side by side: the tables of `dinv compare`, and its page, in the report's style and with its charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...engine.text import visible_values
from ...measure.copies.said import share_of
from .formats import accuracy, duration, points, setting
from .html import page
from .plots import accuracy_chart, accuracy_row, difference_chart, difference_row, scored
from .svg import COLOURS
from .templates import fill

DIFFERING = "Settings that differ"  # title of the first table
Table = Sequence[Sequence[str]]  # the head, then rows


def tables(record: Mapping[str, Any]) -> dict[str, Table]:
    """What `comparing.compare_runs` found, title => table: the settings that differ first."""
    runs, names = record["runs"], [run["name"] for run in record["runs"]]
    arms = list(dict.fromkeys(arm for run in runs for arm in run["arms"]))
    apart = [_by_arm(run) for run in runs]
    rows = [[arm, *(one.get(arm, "") for one in apart)] for arm in arms]
    differ = record["settings"]["differ"]
    found: dict[str, Table] = {
        DIFFERING: [
            ["setting", *names],
            *([key, *map(setting, values)] for key, values in differ.items()),
        ],
        f"Test {_measure(runs)}": [
            ["trained on", *names],
            *([arm, *(_scored(run, arm) for run in runs)] for arm in arms),
        ],
        "Difference to real images alone, each run's own": [
            ["trained on", *names],
            *(row for row in rows if any(row[1:])),
        ],
        f"Run against run: minus {record['reference']}": _against(record["against"]),
        "What was made, and in what time": [["what", *names], *_made(runs)],
    }
    return {title: table for title, table in found.items() if len(table) > 1}


def render_comparison(record: Mapping[str, Any], command: str) -> str:
    """The page of a comparison: one self-contained HTML file without a script; all in `record` is text."""
    shown = visible_values(record)
    runs, colours = shown["runs"], {run["name"]: place % COLOURS for place, run in enumerate(shown["runs"])}
    rows = [accuracy_row(run, arm, colours[run["name"]], run["name"]) for run in runs for arm in run["arms"]]
    to_real = [(run["name"], one) for run in runs for one in run["verdict"]["comparisons"]]
    to_first = [(one["run"], compared) for one in shown["against"] for compared in one["comparisons"]]
    content = fill(
        "parts/comparison.html",
        shown=shown,
        command=command,
        tables=tables(shown),
        differing=DIFFERING,
        dots=accuracy_chart(rows, _measure(runs)),
        measure=_measure(runs),
        to_real=_forest(colours, to_real),
        to_first=_forest(colours, to_first),
    )
    return page(f"{' and '.join(colours)} side by side", [content], scripted=False)


def _forest(colours: Mapping[str, int], found: Sequence[tuple[str, Mapping[str, Any]]]) -> Any:
    """The differences of all runs in one chart, each run in its colour; None without any."""
    return difference_chart([difference_row(one, colours[name], name) for name, one in found])


def _measure(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the runs are judged by; both, where they differ in that."""
    return " or ".join(dict.fromkeys(run["verdict"]["measure"] for run in runs))


def _scored(run: Mapping[str, Any], arm: str) -> str:
    if arm not in run["arms"]:
        return ""
    found = scored(run, arm)
    return accuracy(found["mean"], found["std"], run["arms"][arm]["n"])


def _difference(one: Mapping[str, Any]) -> str:
    if one["low"] is None or one["high"] is None:
        return f"{points(one['difference'])}, no interval"
    return f"{points(one['difference'])} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"


def _by_arm(run: Mapping[str, Any]) -> dict[str, str]:
    return {one["arm"]: _difference(one) for one in run["verdict"]["comparisons"]}


def _against(found: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for one in found:
        rows += [[one["run"], one["why"], "", ""]] if one["why"] is not None else []
        rows += [
            [one["run"], compared["arm"], _difference(compared), f"{compared['n']} {one['unit']}"]
            for compared in one["comparisons"]
        ]
    return [["run", "trained on", "difference", "pairs"], *rows]


def _made(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Counts of images, losses of stage 1, copies and seconds, a row each."""
    data, losses, copies = ([run[key] for run in runs] for key in ("data", "loss", "copies"))
    stages = [stage for stage in ("invert", "sample", "train", "all") if any(stage in run["seconds"] for run in runs)]
    return [
        ["real training images", *(f"{one['n_train']:,}" for one in data)],
        ["test images", *(f"{one['n_test']:,}" for one in data)],
        ["synthetic images", *(f"{run['synthetic']:,}" for run in runs)],
        ["replicates", *(str(run["replicates"]) for run in runs)],
        ["loss of stage 1", *("none" if one is None else f"{one[0]:.4f} to {one[1]:.4f}" for one in losses)],
        ["copies of training images", *("not looked for" if one is None else share_of(one) for one in copies)],
        *(
            [f"time, {stage}", *(duration(run["seconds"][stage]) if stage in run["seconds"] else "" for run in runs)]
            for stage in stages
        ),
    ]
