"""What choosing on folds gained on test images, from finished sweeps of experiments/tuned*.toml.

Command:  python benchmarks/tuned.py SWEEP.json...
Reads:    JSON files of `dinv sweep`: its plan, accuracies of every replicate, and what was chosen in each.
Writes:   Markdown on stdout: each case beside the fixed recipe, paired over replicates; how often the value that the
          folds chose was the best on the test images, and the regret: the accuracy of the best less that of the chosen
          one; what it cost.
Method:   A choice counts where each of its values, beside what was chosen before it, is a case of the same sweep: then
          each was trained on all training images and tested. Which is the best on one draw of test images is partly
          luck: the regret of a perfect choice would be above 0 as well. Test images choose nothing.
Cost:     seconds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusion_inversion.config.tuning import Axis, changed
from diffusion_inversion.sweep.plan import Cell, RunOptions, SweepPlan, cells

FIXED, WHOLE = "fixed recipe", "tuned whole"


@dataclass(frozen=True)
class Choice:
    """One setting in one replicate: test accuracies in [0, 1] of its values, and which was chosen."""

    setting: str
    tested: Mapping[str, float]  # by value, as JSON
    chosen: str

    @property
    def regret(self) -> float:
        """Of the best value the accuracy less that of the chosen one, >= 0."""
        return max(self.tested.values()) - self.tested[self.chosen]


def row_of(rows: Sequence[dict[str, Any]], at: Mapping[str, Any], arm: str) -> dict[str, Any] | None:
    """The result of an arm in a cell: rows name what their cells have in common, the most telling one is the cell's."""
    fitting = [row for row in rows if row["arm"] == arm and row["at"].items() <= at.items()]
    return max(fitting, key=lambda row: len(row["at"]), default=None)


def per_replicate(row: Mapping[str, Any]) -> list[float]:
    """In the measure that the sweep judges by; of one replicate the mean over its seeds."""
    if "replicates" in row:
        return list(row["replicates"])
    name = "accuracies" if row["measure"] == "accuracy" else "balanced_accuracies"
    return [statistics.fmean(row[name])]


def settings_of(cell: Cell) -> str:
    """All that a classifier of one arm depends on, where nothing is left to choose."""
    parts = [cell.data, cell.invert, cell.sample, cell.train, cell.run]
    return json.dumps([part.described(("arms", "tune", "tune_seconds")) for part in parts], sort_keys=True)


def choices(record: Mapping[str, Any]) -> Iterator[Choice]:
    """Every choice of a sweep whose values are all cases of it."""
    every = cells(SweepPlan.model_validate(record["plan"]))
    known = {
        (settings_of(cell), arm): found
        for cell in every
        if not cell.tuning.axes
        for arm in cell.train.arms
        if (found := row_of(record["rows"], cell.at, arm)) is not None
    }
    for cell in every:
        arm = "real" if cell.train.arms == ("real",) else "real+synthetic"
        row = row_of(record["rows"], cell.at, arm) if cell.tuning.axes else None
        for place, made in enumerate(row.get("chosen", ()) if row is not None else ()):
            base = replace(cell, run=RunOptions())
            for one in made:
                stage, _, name = one["setting"].partition(".")
                values = [one["default"], *(tried["value"] for tried in one["candidates"])]
                tried = {json.dumps(value): _with(base, stage, name, value) for value in values}
                tested = {value: known.get((settings_of(other), arm)) for value, other in tried.items()}
                if all(found is not None for found in tested.values()):
                    accuracies = {value: per_replicate(found)[place] for value, found in tested.items() if found}
                    yield Choice(one["setting"], accuracies, json.dumps(one["chosen"]))
                base = tried[json.dumps(one["chosen"])]


def _with(cell: Cell, stage: str, name: str, value: Any) -> Cell:
    if stage == "sample":
        return replace(cell, sample=changed(cell.sample, Axis("sample", name, ()), value))
    return replace(cell, train=changed(cell.train, Axis("train", name, ()), value))


def results(record: Mapping[str, Any]) -> Iterator[tuple[str, str, list[float]]]:
    """Grid values in words, case and arm, and accuracies of the replicates; the arm real where a case has its own."""
    for at in (cell.at for cell in cells(SweepPlan.model_validate(record["plan"]))):
        group = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in at.items() if key != "case")
        for arm in ("real", "real+synthetic"):
            row = row_of(record["rows"], at, arm)
            # The arm real of most cases is one: it is shown beside the fixed recipe.
            if row is not None and (arm != "real" or "case" in row["at"] or at["case"] == FIXED):
                yield group, f"{at['case']}: {arm}", per_replicate(row)


def estimate(values: Sequence[float]) -> str:
    """In points, with the standard deviation and n."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread} (n={len(values)})"


def page(name: str, record: Mapping[str, Any]) -> str:
    """The tables of a sweep."""
    found = list(results(record))
    fixed = {group: values for group, case, values in found if case == f"{FIXED}: real+synthetic"}
    lines = [f"## {name}: {record['title']}", "", "| | case: arm | test accuracy, % | less the fixed recipe, points |"]
    lines.append("| --- | --- | --- | --- |")
    for group, case, values in found:
        apart = [ours - theirs for ours, theirs in zip(values, fixed.get(group, values), strict=True)]
        lines.append(f"| {group} | {case} | {estimate(values)} | {estimate(apart)} |")
    made = list(choices(record))
    lines += [
        "",
        "| chosen on folds | of values | the best on test images | regret, points |",
        "| --- | --- | --- | --- |",
    ]
    for setting in dict.fromkeys(one.setting for one in made):
        same = [one for one in made if one.setting == setting]
        best = sum(one.regret == 0 for one in same)
        values = " or ".join(same[0].tested)
        lines.append(f"| {setting} | {values} | {best} of {len(same)} | {estimate([one.regret for one in same])} |")
    if not made:
        lines.append("| none whose values are all cases | | | |")
    lines += ["", "| | tuned | trainings on folds a replicate | seconds a replicate |", "| --- | --- | --- | --- |"]
    for row in record["rows"]:
        if cost := [
            (sum(one[key] for one in made) for key in ("trainings", "seconds")) for made in row.get("chosen", ())
        ]:
            trainings, seconds = (statistics.fmean(values) for values in zip(*cost, strict=True))
            if trainings:
                case = ", ".join(map(str, row["at"].values()))
                lines.append(f"| {case} | {row['arm']} | {trainings:.1f} | {seconds:,.0f} (n={len(row['chosen'])}) |")
    held = [claim for claim in record["claims"] if claim["outcome"] == "holds"]
    return "\n".join([*lines, "", f"Claims that hold: {len(held)} of {len(record['claims'])}.", ""])


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        print(page(path.stem, json.loads(path.read_text())))


if __name__ == "__main__":
    main()
