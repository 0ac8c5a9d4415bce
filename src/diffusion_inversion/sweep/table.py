"""The table of a sweep: as CSV with every seed, as JSON, and as Markdown for a paper or a repository."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..config.sampling import RetrieveSettings
from .claims import in_words
from .outcome import Checked, MetricsRow, Row, SweepResult
from .plan import Cell
from .worst import WORST


def label(at: Mapping[str, Any]) -> str:
    """The varied values of a row: the name of its case, and each setting by the last part of its key."""
    case = [str(at["case"])] if "case" in at else []
    return ", ".join(
        [*case, *(f"{key.rpartition('.')[2]} {shown(value)}" for key, value in at.items() if key != "case")]
    )


def shown(value: Any) -> str:
    """A value of a grid for people: lists joined, text as it is."""
    return ", ".join(map(shown, value)) if isinstance(value, (list, tuple)) else str(value)


def percent(row: Row) -> str:
    """Mean and standard deviation over seeds or replicates in %, and how many there are."""
    spread = "" if row.std is None else f" ± {100 * row.std:.1f}"
    side = "" if row.side is None else f", {row.side} px"
    return f"{100 * row.mean:.1f}{spread} (n={len(row.units)}{side})"


def measures(rows: Sequence[Row]) -> str:
    """What the rows are judged by, in words; rows of uneven test classes by balanced accuracy."""
    names = {row.measure for row in rows}
    return "accuracy, balanced where the test classes are uneven" if len(names) > 1 else next(iter(names), "accuracy")


def as_csv(found: SweepResult) -> str:
    """One line for each row, replicate and seed, then one for each metric of each set of synthetic images."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = list(dict.fromkeys([key for row in found.rows for key in row.at] + [k for m in found.metrics for k in m.at]))
    head = ["arm", "replicate", "seed", "measure", "value", "low", "high", "error"]
    head += ["n_train", "n_test", "synthetic_images"]
    writer.writerow([*keys, *head])
    for row in found.rows:
        at = [shown(row.at.get(key, "")) for key in keys]
        for number, draw in enumerate(row.draws):
            measures = {
                "accuracy": draw.accuracies, "balanced_accuracy": draw.balanced, WORST: row.worst_of_seeds[number],
                "ece": draw.ece,
            }  # fmt: skip
            for name, values in measures.items():
                for seed, value in zip(draw.seeds, values, strict=True):
                    row_of = [row.arm, number, seed, name, value, "", "", ""]
                    writer.writerow([*at, *row_of, row.n_train, len(draw.test_ids), row.images])
    for measured in found.metrics:
        at = [shown(measured.at.get(key, "")) for key in keys]
        for number, metrics in enumerate(measured.draws):
            for name, estimate in metrics.items():
                parts = [estimate.get(key) for key in ("value", "low", "high", "error")]
                numbers = ["" if part is None else part for part in parts]
                row_of = ["synthetic", number, "", name, *numbers, "", "", measured.n_generated]
                writer.writerow([*at, *row_of])
    return buffer.getvalue()


def as_json(found: SweepResult, command: str) -> str:
    """All that was found, and the file and the command that ask for it."""
    record = {
        "title": found.plan.title,
        "command": command,
        "generator": found.generator,
        "plan": found.plan.model_dump(mode="json"),
        "rows": [_row(row) for row in found.rows],
        "metrics": [
            {"at": dict(m.at), "metrics": m.metrics, "n_real": m.n_real, "n_generated": m.n_generated, "draws": m.draws}
            for m in found.metrics
        ],
        "claims": [
            {
                "says": c.claim.says, "of": c.claim.of, "measure": c.measure, "outcome": c.outcome,
                "differences": c.differences, "errors": [error.model_dump() for error in c.errors],
            }
            for c in found.claims
        ],
    }  # fmt: skip
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def _row(row: Row) -> dict[str, Any]:
    """Lists run over seeds; with replicates over the seeds of replicate 0, then of replicate 1, ..."""
    draws = row.draws
    record: dict[str, Any] = {
        "at": dict(row.at), "arm": row.arm, "measure": row.measure, "side": row.side,
        "seeds": _flat(draw.seeds for draw in draws),
        "accuracies": _flat(draw.accuracies for draw in draws), "mean": row.mean, "std": row.std, "n": len(row.units),
        "balanced_accuracies": _flat(draw.balanced for draw in draws), "ece": _flat(draw.ece for draw in draws),
        "worst_class_accuracies": _flat(row.worst_of_seeds),
        "n_train": row.n_train, "n_test": draws[0].correct.shape[1], "synthetic_images": row.images,
        "real_fraction": draws[0].real_fraction,
    }  # fmt: skip
    if len(draws) > 1:
        record |= {"replicates": row.units, "real_fractions": [draw.real_fraction for draw in draws]}
        record |= {"between": row.spread.between, "within": row.spread.within}
    if draws[0].run is not None:
        record |= {"runs": [draw.run for draw in draws], "chosen": [draw.chosen for draw in draws]}
    return record


def _flat(parts: Iterable[Iterable[Any]]) -> list[Any]:
    return [value for part in parts for value in part]


def over(found: SweepResult) -> str:
    """What the means and standard deviations are over."""
    count = found.plan.replicates
    return "n seeds" if count == 1 else f"n={count} replicates, each the mean over its classifier seeds"


def as_markdown(found: SweepResult, command: str, figures: Sequence[str]) -> str:
    """The page as Markdown: what was run, tables, figures, claims."""
    lines = [f"# {found.plan.title}", "", *([found.plan.about.strip(), ""] if found.plan.about else [])]
    lines += [f"`{command}`", "", f"Generator: {found.generator}.", ""]
    head, body = accuracy_table(found)
    lines += [
        f"Test {measures(found.rows)} in %, mean ± standard deviation over {over(found)}.",
        "",
        *_markdown(head, body),
        "",
    ]
    lines += [f"{scope(found)}", ""]
    if spread := spread_table(found):
        lines += ["## Where the spread comes from", "", *_markdown(*spread), ""]
    if shows_classes(found):
        lines += ["## Classes", "", *_markdown(*classes_table(found.rows)), ""]
    if chosen := choices_table(found):
        note = "Trainings on folds: those of the value before among them, some of which had served a choice before."
        lines += ["## What was chosen on the training images", "", *_markdown(*chosen), "", note, ""]
    if found.metrics:
        n = sorted({row.n_real for row in found.metrics})
        lines += [f"Against {' or '.join(f'{count:,}' for count in n)} real images; 95 % intervals in brackets.", ""]
        lines += [*_markdown(*metrics_table(found.metrics)), ""]
    for name in figures:
        lines += [f"![{found.plan.title}]({name})", ""]
    if found.claims:
        lines += ["## Claims", "", *_markdown(*claims_table(found.claims)), ""]
    return "\n".join(lines)


def accuracy_table(found: SweepResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row for each combination that makes a difference, one column for each arm."""
    arms = list(dict.fromkeys(row.arm for row in found.rows))
    places: dict[str, dict[str, Row]] = {}
    for row in found.rows:
        name = label(row.at)
        if row.arm in places.get(name, {}):  # what its cells have in common does not tell it from another
            name = "; ".join(label(found.cells[place].at) for place in row.cells)
        places.setdefault(name, {})[row.arm] = row
    body = []
    for name, by_arm in places.items():
        first = next(iter(by_arm.values()))
        images = max(row.images for row in by_arm.values())
        cells = [percent(by_arm[arm]) + _chosen(by_arm[arm]) if arm in by_arm else "" for arm in arms]
        body.append([name or "all", f"{first.n_train:,}", f"{images:,}" if images else "", *cells])
    return ["", "real images", "synthetic images", *arms], body


def _chosen(row: Row) -> str:
    shares = dict.fromkeys(f"{d.real_fraction:g}" for d in row.draws if d.real_fraction is not None)
    return f", real share {' or '.join(shares)}" if shares else ""


def scope(found: SweepResult) -> str:
    """What the spread and the intervals speak of, in a sentence or two."""
    with_images = [cell for cell in found.cells if set(cell.train.arms) != {"real"} or found.plan.metrics is not None]
    drawn = [cell for cell in with_images if not isinstance(cell.way, RetrieveSettings)]
    limited = any(cell.data.limit is not None or cell.data.per_class is not None for cell in found.cells)
    if found.plan.replicates == 1:
        return _of_one(limited, bool(drawn))
    parted = limited or any(cell.data.test is None for cell in found.cells)
    learned = [cell for cell in drawn if cell.learns]
    made = [_where(learned, with_images, "vectors", "they are learned")]
    made += [_where(drawn, with_images, "synthetic images", "they are drawn")]
    parts = [*filter(None, made), "classifiers"]
    first = f"its own subset or hold-out where there is one, {'' if parts[1:] else 'and '}" if parted else ""
    text = f"Each replicate has {first}its own {_listed(parts)}."
    if len(drawn) < len(with_images):
        text += f" Images of a pool are {'found for its training images' if parted else 'the same in all'}."
    if spread_table(found):
        return text
    return f"{text} One classifier seed each: the spread between seeds is in that between them."


def _of_one(limited: bool, drawn: bool) -> str:
    """The same without replicates: whether training images are limited, and synthetic ones drawn."""
    subset = "one subset of the training images"
    if not limited and not drawn:
        return "All is of the same images: the spread is that of the classifiers alone."
    of = f"{subset} and one draw of the synthetic ones" if limited and drawn else subset
    of = of if limited else "one draw of the synthetic images"
    return f"Of {of}: what another would give is not in this (--replicates 5)."


def _where(some: Sequence[Cell], every: Sequence[Cell], what: str, where: str) -> str:
    return "" if not some else what if len(some) == len(every) else f"{what} where {where}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def spread_table(found: SweepResult) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows: the standard deviation between replicates, apart from seeds, and that between seeds, in points.

    None where the two cannot be told apart.
    """
    parts = [(row, row.spread) for row in found.rows]
    if found.plan.replicates == 1 or all(part.within is None for _, part in parts):
        return None
    body = [
        [label(row.at) or "all", row.arm, *("" if v is None else f"{100 * v:.1f}" for v in (part.between, part.within))]
        for row, part in parts
    ]
    return ["", "arm", "between replicates, points", "between seeds of one, points"], body


def shows_classes(found: SweepResult) -> bool:
    """Whether it is about what single classes gain: where counts are balanced, and where a claim is about the worst."""
    balanced = any(cell.sample.balance != "none" for cell in found.cells)
    return balanced or any(claim.of == WORST for claim in found.plan.claims)


def classes_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: of each arm the accuracy of its worst class, balanced accuracy and accuracy."""
    body = []
    for row in rows:
        measured = (
            row.worst_of_seeds,
            [draw.balanced for draw in row.draws],
            [draw.accuracies for draw in row.draws],
        )
        body.append([label(row.at) or "all", row.arm, *map(_mean_and_spread, measured)])
    return ["", "arm", "worst class, %", "balanced accuracy, %", "accuracy, %"], body


def choices_table(found: SweepResult) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows: every setting that was chosen, replicate by replicate; what was tried, and what that cost.

    None where nothing was. Arms of one run share its choices.
    """
    body = []
    for row in found.rows:
        for number, draw in enumerate(row.draws):
            for one in draw.chosen:
                values = ", ".join(shown(tried["value"]) for tried in one["candidates"])
                cost = f"{one['trainings']}", f"{one['seconds']:,.0f}"
                at = [label(row.at) or "all", str(number), one["setting"], shown(one["default"]), values]
                if (line := [*at, shown(one["chosen"]), *cost]) not in body:
                    body.append(line)
    head = ["", "replicate", "setting", "before", "tried", "chosen", "trainings on folds", "seconds"]
    return (head, body) if body else None


def _mean_and_spread(of_seeds: Sequence[Sequence[float]]) -> str:
    units = of_seeds[0] if len(of_seeds) == 1 else [statistics.fmean(one) for one in of_seeds]
    spread = f" ± {100 * statistics.stdev(units):.1f}" if len(units) > 1 else ""
    return f"{100 * statistics.fmean(units):.1f}{spread} (n={len(units)})"


def metrics_table(rows: Sequence[MetricsRow]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row for each set of synthetic images, one column for each metric."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    body = [
        [label(row.at) or "all", f"{row.n_generated:,}", *(_bounded(row.metrics[name]) for name in names)]
        for row in rows
    ]
    return ["", "images", *names], body


def _bounded(found: Mapping[str, float | None]) -> str:
    value, low, high = found["value"], found["low"], found["high"]
    if value is None:
        return "undefined"
    return f"{value:.3g}" if low is None or high is None else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def claims_table(claims: Sequence[Checked]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: every claim, the differences it rests on, and what became of it."""
    body = [[c.claim.says, c.measure, in_words(c.claim.of, c.differences), c.outcome] for c in claims]
    return ["claim", "of", "differences", "outcome"], body


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
