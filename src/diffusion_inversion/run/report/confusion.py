"""Which classes an arm confuses, and how well it recognises each of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from .figures import ARM_COLOURS, DPI, legend, short, without_tex

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Counts = Sequence[Sequence[int]]  # (classes, classes): row = true class, column = predicted class
MOST_CLASSES = 20  # that a matrix shows legibly
MOST_PAIRS = 20
# Inches: a cell; a matrix at least; room for class names left of it and below, for the arm above; the figure at most.
_CELL, _MATRIX, _LABELS, _TITLE, _WIDTH = 0.31, 1.5, 1.6, 0.35, 9.5
_MARKERS = "osD^vP"


class ConfusedPair(TypedDict):
    """Images of one class that were taken for another."""

    true: str
    predicted: str
    count: int
    share: float  # of the test images of the class, in (0, 1]


def normalised(counts: Counts, class_names: Sequence[str]) -> NDArray[np.float64]:
    """Each row divided by its sum, (K, K) in [0, 1]; NaN where a class has no test images.

    Raises ValueError where `counts` is not a matrix of counts over the classes.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    if matrix.shape != (len(class_names), len(class_names)) or (matrix < 0).any():
        raise ValueError(f"confusion of shape {matrix.shape} for {len(class_names)} classes: give counts (K, K)")
    sums = matrix.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(matrix, sums, out=np.full_like(matrix, np.nan), where=sums > 0)
    return shares


def most_confused(counts: Counts, class_names: Sequence[str], most: int = MOST_PAIRS) -> list[ConfusedPair]:
    """The pairs of classes with the largest share of the true class's images, largest first, without those at 0.

    Equal shares come in the order of their counts, then of the classes.
    """
    shares = normalised(counts, class_names)
    pairs = [
        (-float(shares[true, predicted]), -int(counts[true][predicted]), int(true), int(predicted))
        for true, predicted in np.argwhere(shares > 0)
        if true != predicted
    ]
    return [
        {"true": class_names[true], "predicted": class_names[predicted], "count": -count, "share": -share}
        for share, count, true, predicted in sorted(pairs)[:most]
    ]


@without_tex
def confusion_matrices(confusions: Mapping[str, Counts], class_names: Sequence[str]) -> Figure:
    """One matrix an arm, rows in % of the true class, the diagonal from top left; a class without images is grey.

    For at most 20 classes: of more, show the `most_confused` pairs.
    """
    from matplotlib.figure import Figure

    side = max(_CELL * len(class_names), _MATRIX)
    width, height = _LABELS + side, _TITLE + side + _LABELS
    columns = max(1, min(len(confusions), int(_WIDTH / width)))
    rows = -(-len(confusions) // columns)
    whole_width, whole_height = columns * width + 0.1, rows * height
    figure = Figure(figsize=(whole_width, whole_height), dpi=DPI)
    names = [short(name) for name in class_names]
    for place, (arm, counts) in enumerate(confusions.items()):
        shares = normalised(counts, class_names)
        row, column = divmod(place, columns)
        left, bottom = column * width + _LABELS, whole_height - row * height - _TITLE - side
        box = (left / whole_width, bottom / whole_height, side / whole_width, side / whole_height)
        axes = figure.add_axes(box, facecolor="#dddddd")
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (true, predicted), share in np.ndenumerate(shares):
            if share > 0:
                colour = "white" if share > 0.5 else "black"
                axes.text(predicted, true, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
        axes.tick_params(length=0)
        axes.set_title(short(arm), fontsize=10, parse_math=False)
        axes.set_xlabel("predicted class", fontsize=9)
        axes.set_ylabel("true class, row = 100 %", fontsize=9)
        axes.spines[:].set_visible(False)
    return figure


@without_tex
def per_class_accuracy(arms: Mapping[str, Sequence[Sequence[float | None]]], class_names: Sequence[str]) -> Figure:
    """One row a class, the first on top; a marker an arm: mean over seeds in %, the line one standard deviation.

    `arms` gives (seeds, classes) rates in [0, 1], None where a class has no test images, as `Evaluation.per_class`.
    """
    from matplotlib.figure import Figure

    height = 1.1 + len(class_names) * max(0.26, 0.13 * len(arms))
    figure = Figure(figsize=(7, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    handles = []
    for place, seeds in enumerate(arms.values()):
        offset = 0.6 * ((place + 0.5) / len(arms) - 0.5)  # so that equal accuracies stay visible
        points = []
        for row in range(len(class_names)):
            rates = [100 * rate for seed in seeds if (rate := seed[row]) is not None]
            if rates:
                mean, spread = statistics.fmean(rates), statistics.stdev(rates) if rates[1:] else 0.0
                points.append((mean, row + offset, min(spread, mean), min(spread, 100 - mean)))  # within 0 to 100
        means, heights, *spreads = zip(*points, strict=True) if points else ((), (), (), ())
        colour, marker = ARM_COLOURS[place % len(ARM_COLOURS)], _MARKERS[place % len(_MARKERS)]
        handles.append(
            axes.errorbar(means, heights, xerr=spreads, fmt=marker, color=colour, markersize=5, linewidth=1.2)
        )
    axes.set_yticks(range(len(class_names)), [short(name) for name in class_names], fontsize=8, parse_math=False)
    axes.set(xlabel="test accuracy of the class in %", xlim=(-2, 102), ylim=(len(class_names) - 0.5, -0.5))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    legend(axes, handles, list(arms))
    return figure
