"""The result of few-shot learners as CSV, JSON, Markdown and a figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...engine.text import visible
from ...train.few_shot.tip_adapter import Choice
from ..report.figures import ARM_COLOURS, DPI, legend, png, short, whiskers, without_tex
from .outcome import ZERO_SHOT, FewShotResult, Row, record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "few-shot"
_HEAD = (
    "method", "with", "shots", "seed", "accuracy", "balanced_accuracy", "synthetic_images", "alpha", "beta",
    "fold_accuracy",
)  # fmt: skip


def pages(found: FewShotResult, command: str) -> dict[str, bytes]:
    """File name => content."""
    return {
        f"{NAME}.csv": as_csv(found).encode(),
        f"{NAME}.json": (json.dumps({"command": command, **record(found)}, indent=1, allow_nan=False) + "\n").encode(),
        f"{NAME}.md": as_markdown(found, command).encode(),
        f"{NAME}.png": png(figure(found)),
    }


def as_csv(found: FewShotResult) -> str:
    """One line a training."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEAD)
    for row in found.rows:
        for one in row.trainings:
            fixed = row.method == ZERO_SHOT
            writer.writerow(
                [row.method, row.addition, "" if fixed else row.shots, "" if fixed else one.seed, one.accuracy,
                 one.balanced_accuracy, one.synthetic_images, *_chosen(one.choice)]
            )  # fmt: skip
    return buffer.getvalue()


def _chosen(choice: Choice | None) -> list[Any]:
    values = (None, None, None) if choice is None else (choice.alpha, choice.beta, choice.accuracy)
    return ["" if value is None else value for value in values]


def accuracy_table(found: FewShotResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows: one row a learner and addition, one column a number of shots."""
    shots = sorted({row.shots for row in found.rows if row.method != ZERO_SHOT})
    body: dict[str, dict[int, str]] = {}
    for row in found.rows:
        for place in shots or [0] if row.method == ZERO_SHOT else [row.shots]:
            body.setdefault(row.label, {})[place] = _percent(row)
    columns = shots or [0]
    head = ["", *(f"{n} shot{'s' * (n > 1)}" if n else found.measure for n in columns)]
    return head, [[name, *(cells.get(n, "") for n in columns)] for name, cells in body.items()]


def _percent(row: Row) -> str:
    if row.method == ZERO_SHOT:
        return f"{100 * row.mean:.1f}"
    spread = "" if row.std is None else f" ± {100 * row.std:.1f}"
    return f"{100 * row.mean:.1f}{spread} (n={len(row.trainings)})"


def images_table(found: FewShotResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows: how many synthetic images the trainings of a row had, fewest to most over seeds."""
    rows = [row for row in found.rows if row.trainings[0].synthetic_images]
    places: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        counts = [one.synthetic_images for one in row.trainings]
        places.setdefault((row.addition, row.shots), []).extend(counts)
    body = [
        [name, str(shots), f"{min(counts):,}" + (f" to {max(counts):,}" if max(counts) > min(counts) else "")]
        for (name, shots), counts in places.items()
    ]
    return ["with", "shots", "synthetic images"], body


def difference_lines(found: FewShotResult) -> list[str]:
    """One line a paired difference: what, at how many shots, how much, what the interval says."""
    return [
        f"{one.shots} shot{'s' * (one.shots > 1)}: {one.comparison.summary}: {one.comparison.outcome()}"
        for one in found.differences
    ]


def notes(found: FewShotResult) -> list[str]:
    """What a reader of the table must know."""
    lines = []
    if found.measure != "accuracy":
        lines.append(
            f"The test classes are uneven: all is of {found.measure}, the mean over classes of the share of each that "
            "was recognised."
        )
    lines += [
        "Learners end with their last epoch; alpha and beta of Tip-Adapter were chosen on folds of the shots, with one "
        "shot they are the values to begin with. No test image was used to choose anything."
    ]
    lines += [
        f"{name}: nobody knows from which real images it was made, so it may hold more than the shots."
        for name in found.unknown
    ]
    return lines


def as_markdown(found: FewShotResult, command: str) -> str:
    """Tables, differences and figure."""
    lines = [f"# Few-shot learners on {visible(found.data)}", "", f"`{visible(command)}`", ""]
    lines += [f"CLIP: {visible(found.clip)}. {found.n_test:,} test images, {len(found.class_names)} classes.", ""]
    lines += [f"Test {found.measure} in %, mean ± standard deviation over n seeds, each with shots of its own.", ""]
    lines += [*_markdown(*accuracy_table(found)), ""]
    head, body = images_table(found)
    if body:
        lines += [*_markdown(head, body), ""]
    if found.differences:
        lines += ["Paired over seeds; intervals count seeds and test images.", ""]
        lines += [*(f"- {visible(line)}" for line in difference_lines(found)), ""]
    lines += [
        *(line for note in notes(found) for line in (visible(note), "")),
        f"![{found.measure} against shots]({NAME}.png)",
    ]
    return "\n".join([*lines, ""])


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(visible(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]


@without_tex
def figure(found: FewShotResult) -> Figure:
    """One panel a learner: the measure in % against shots, a line an addition, bars of one standard deviation.

    The dashed line is zero-shot classification.
    """
    from matplotlib.figure import Figure

    learners = list(dict.fromkeys(row.method for row in found.rows if row.method != ZERO_SHOT)) or [ZERO_SHOT]
    additions = list(dict.fromkeys(row.addition for row in found.rows if row.method != ZERO_SHOT))
    fixed = next((row for row in found.rows if row.method == ZERO_SHOT), None)
    drawn = Figure(figsize=(max(4.0, 3.2 * len(learners)), 3.8), dpi=DPI, layout="constrained")
    first = None
    handles: dict[str, Any] = {}
    for place, method in enumerate(learners):
        axes = drawn.add_subplot(1, len(learners), place + 1, sharey=first)
        first = first or axes
        if fixed is not None:
            handles[ZERO_SHOT] = axes.axhline(100 * fixed.mean, color="#555555", linestyle="--", linewidth=1.2)
        for number, addition in enumerate(additions):
            own = sorted((r for r in found.rows if (r.method, r.addition) == (method, addition)), key=lambda r: r.shots)
            if not own:
                continue
            handles[addition] = axes.errorbar(
                [row.shots for row in own], [100 * row.mean for row in own],
                yerr=whiskers([(row.mean, row.std) for row in own]), marker="o", markersize=4, capsize=3,
                linewidth=1.4, color=ARM_COLOURS[number % len(ARM_COLOURS)],
            )  # fmt: skip
        shots = sorted({row.shots for row in found.rows if row.method == method and row.shots})
        if shots:
            axes.set_xscale("log", base=2)
            axes.set_xticks(shots, [str(n) for n in shots])
            axes.minorticks_off()
        axes.set_title(short(method), fontsize=10, parse_math=False)
        axes.set_xlabel("images of each class")
        axes.spines[["top", "right"]].set_visible(False)
    if first is not None:
        first.set_ylabel(f"test {found.measure} in %")
    legend(drawn, list(handles.values()), ["no addition" if name == "none" else name for name in handles])
    return drawn
