"""The table of a sweep: as CSV with every seed, as JSON, and as Markdown for a paper or a repository."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .outcome import Checked, MetricsRow, Row, SweepResult


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
    """Mean and standard deviation over seeds in %, and how many seeds."""
    spread = "" if row.std is None else f" ± {100 * row.std:.1f}"
    return f"{100 * row.mean:.1f}{spread} (n={len(row.accuracies)})"


def as_csv(found: SweepResult) -> str:
    """One line for each row and seed, then one for each metric of each set of synthetic images."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = list(dict.fromkeys([key for row in found.rows for key in row.at] + [k for m in found.metrics for k in m.at]))
    writer.writerow([*keys, "arm", "seed", "measure", "value", "low", "high", "n_train", "synthetic_images"])
    for row in found.rows:
        at = [shown(row.at.get(key, "")) for key in keys]
        seeds = found.seeds_of(row)
        for name, values in {"accuracy": row.accuracies, "balanced_accuracy": row.balanced, "ece": row.ece}.items():
            for seed, value in zip(seeds, values, strict=True):
                writer.writerow([*at, row.arm, seed, name, value, "", "", row.n_train, row.images])
    for measured in found.metrics:
        at = [shown(measured.at.get(key, "")) for key in keys]
        for name, estimate in measured.metrics.items():
            numbers = ["" if estimate[key] is None else estimate[key] for key in ("value", "low", "high")]
            writer.writerow([*at, "synthetic", "", name, *numbers, "", measured.n_generated])
    return buffer.getvalue()


def as_json(found: SweepResult, command: str) -> str:
    """All that was found, and the file and the command that ask for it."""
    record = {
        "title": found.plan.title,
        "command": command,
        "generator": found.generator,
        "plan": found.plan.model_dump(mode="json"),
        "rows": [_row(found, row) for row in found.rows],
        "metrics": [
            {"at": dict(m.at), "metrics": m.metrics, "n_real": m.n_real, "n_generated": m.n_generated}
            for m in found.metrics
        ],
        "claims": [
            {"says": c.claim.says, "of": c.claim.of, "outcome": c.outcome, "differences": c.differences}
            for c in found.claims
        ],
    }
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def _row(found: SweepResult, row: Row) -> dict[str, Any]:
    return {
        "at": dict(row.at), "arm": row.arm, "seeds": found.seeds_of(row), "accuracies": row.accuracies,
        "mean": row.mean, "std": row.std, "balanced_accuracies": row.balanced, "ece": row.ece, "n_train": row.n_train,
        "n_test": row.correct.shape[1], "synthetic_images": row.images, "real_fraction": row.real_fraction,
    }  # fmt: skip


def as_markdown(found: SweepResult, command: str, figures: Sequence[str]) -> str:
    """The page as Markdown: what was run, tables, figures, claims."""
    lines = [f"# {found.plan.title}", "", *([found.plan.about.strip(), ""] if found.plan.about else [])]
    lines += [f"`{command}`", "", f"Generator: {found.generator}.", ""]
    head, body = accuracy_table(found)
    lines += ["Test accuracy in %, mean ± standard deviation over n seeds.", "", *_markdown(head, body), ""]
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
    return "" if row.real_fraction is None else f", real share {row.real_fraction:g}"


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
    body = []
    for checked in claims:
        scale, unit = (100, " points") if checked.claim.of == "accuracy" else (1, "")
        parts = []
        for value, low, high in checked.differences:
            span = "" if low is None or high is None else f" [{scale * low:+.3g}, {scale * high:+.3g}]"
            parts.append(f"{scale * value:+.3g}{span}")
        body.append([checked.claim.says, checked.claim.of, "; ".join(parts) + unit, checked.outcome])
    return ["claim", "of", "differences", "outcome"], body


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
