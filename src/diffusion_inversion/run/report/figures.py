"""The report's figures as PNG bytes, drawn without a display."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ...engine.text import visible
from .record import ArmRecord, CurveRecord, MajorityRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Given = ParamSpec("Given")
Result = TypeVar("Result")
# Okabe and Ito's palette, which the colour-blind tell apart.
ARM_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
DPI = 100
_CELL = 64  # px, the least side of an image in the grid
_GAP = 6  # px between images
_LABEL = 150  # px left of the images for the class name
_HEADER = 24  # px above them
_UNDER = 16  # px under each row for its distance
_LONGEST_LABEL = 20  # characters


@dataclass(frozen=True)
class ReportImages:
    """R source images with what was made of them, all RGB uint8 of one side S."""

    real: Tensor  # (R, 3, S, S)
    reconstruction: Tensor | None  # (R, 3, S, S): sampled from the learned vector itself; None where there is none
    variants: Tensor  # (R, V, 3, S, S)
    labels: Tensor  # (R,) int64, index into the run's class names
    distances: tuple[float, ...] | None = None  # of each reconstruction to its source; None: not measured
    called: str = "variant"  # what a variant is called
    copies: bytes | None = None  # PNG of synthetic images above the training images that they are too near to

    def __post_init__(self) -> None:
        rows, sides = len(self.real), self.real.shape[1:]
        reconstruction = self.real if self.reconstruction is None else self.reconstruction
        shapes = (reconstruction.shape, self.variants.shape[:1] + self.variants.shape[2:])
        if (
            self.real.ndim != 4
            or self.variants.ndim != 5
            or any(shape != (rows, *sides) for shape in shapes)
            or len(self.labels) != rows
            or len(self.distances or self.labels) != rows
        ):
            raise ValueError(
                f"real {tuple(self.real.shape)}, reconstruction {tuple(reconstruction.shape)}, variants "
                f"{tuple(self.variants.shape)}, labels {tuple(self.labels.shape)}: not R images of one side"
            )
        if any(images.dtype != torch.uint8 for images in (self.real, reconstruction, self.variants)):
            raise ValueError("the report's images must be uint8")


def without_tex(draw: Callable[Given, Result]) -> Callable[Given, Result]:
    """Keep a matplotlibrc, which may lie in the current folder, from handing names to TeX, a language that runs."""

    @wraps(draw)
    def drawn(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        import matplotlib

        with matplotlib.rc_context({"text.usetex": False}):
            return draw(*args, **kwargs)

    return drawn


def short(name: str) -> str:
    """A name as a label: one line of at most 20 characters. Draw it with parse_math=False."""
    text = " ".join(visible(name).split())
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def legend(place: Axes | Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend above the axes or the figure; names are text, whatever they begin with or hold."""
    from matplotlib.figure import Figure

    where: dict[str, Any] = {"loc": "outside upper left", "ncols": 4}
    if not isinstance(place, Figure):
        where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3}
    shown = place.legend(handles, ["-"] * len(names), frameon=False, **where)
    for text, name in zip(shown.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(short(name))


@without_tex
def png(figure: Figure) -> bytes:
    """Draw a figure; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that matplotlib's font lacks shows as boxes; the page's text has it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


@without_tex
def image_grid(images: ReportImages, class_names: Sequence[str]) -> Figure:
    """One row per source: class name, real image, reconstruction, variants. One pixel becomes a k x k square.

    Where it was measured, the distance of each reconstruction to its source stands under it.
    """
    from matplotlib.figure import Figure

    factor = -(-_CELL // images.real.shape[-1])
    again = [] if images.reconstruction is None else [images.reconstruction[:, None]]
    rows = torch.cat([images.real[:, None], *again, images.variants], dim=1)
    rows = rows.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    count, columns, _, side, _ = rows.shape
    step, fall = side + _GAP, side + _GAP + (_UNDER if images.distances else 0)
    width, height = _LABEL + columns * step, _HEADER + count * fall
    canvas = torch.full((height, width, 3), 255, dtype=torch.uint8)
    for row in range(count):
        for column in range(columns):
            top, left = _HEADER + row * fall, _LABEL + column * step
            canvas[top : top + side, left : left + side] = rows[row, column].permute(1, 2, 0)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    # figimage puts one pixel on one pixel: nothing is interpolated.
    figure.figimage(canvas.numpy(), origin="upper")

    def write(x: float, y: float, text: str, **style: Any) -> None:
        # parse_math off: a class name may hold a dollar sign.
        figure.text(x / width, 1 - y / height, text, fontsize=9, color="black", parse_math=False, **style)

    named = [f"{images.called} {number}" for number in range(1, columns - len(again))]
    for column, title in enumerate(["real", *(["reconstr."] if again else []), *named]):
        middle = _LABEL + column * step + side / 2
        write(middle, _HEADER / 2, title, ha="center", va="center")
    for row, label in enumerate(images.labels.tolist()):
        write(_LABEL - 8, _HEADER + row * fall + side / 2, short(class_names[label]), ha="right", va="center")
    for row, distance in enumerate(images.distances or ()):
        write(_LABEL + 1.5 * side + _GAP, _HEADER + row * fall + side + 1, f"{distance:.2f}", ha="center", va="top")
    return figure


@without_tex
def loss_curve(curve: CurveRecord, null_loss: float | None = None) -> Figure:
    """Mean loss over the images against the step, with the band from the 10th to the 90th percentile."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    steps = curve["steps"]
    axes.fill_between(steps, curve["p10"], curve["p90"], color=ARM_COLOURS[0], alpha=0.2, linewidth=0)
    axes.plot(steps, curve["mean"], color=ARM_COLOURS[0], marker="o", markersize=3, label="mean")
    axes.fill_between([], [], [], color=ARM_COLOURS[0], alpha=0.2, linewidth=0, label="10-90 % of the images")
    if null_loss is not None:
        axes.axhline(null_loss, color="#555555", linestyle="--", linewidth=1, label="empty prompt")
    axes.set(xlabel="step", ylabel="loss on the evaluation bank", xlim=(min(steps, default=0), None))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@without_tex
def accuracy_bars(arms: Mapping[str, ArmRecord], line: MajorityRecord | None = None) -> Figure:
    """Mean test accuracy of each arm in %, error bars of one standard deviation, every seed as a dot.

    The dashed line is what always answering the most frequent class scores.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.0, 1.2 + 1.5 * len(arms)), 3.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for place, arm in enumerate(arms.values()):
        colour = ARM_COLOURS[place % len(ARM_COLOURS)]
        axes.bar(place, 100 * arm["mean"], width=0.6, color=colour, alpha=0.45)
        if arm["std"] is not None:
            reach = [[100 * min(arm["std"], arm["mean"])], [100 * min(arm["std"], 1 - arm["mean"])]]  # within 0 to 100
            axes.errorbar(place, 100 * arm["mean"], yerr=reach, color="black", capsize=5, linewidth=1.2)
        count = len(arm["accuracies"])
        # Spread sideways so that equal accuracies stay visible.
        places = [place + (0.0 if count == 1 else 0.3 * (seed / (count - 1) - 0.5)) for seed in range(count)]
        points = [100 * accuracy for accuracy in arm["accuracies"]]
        axes.scatter(places, points, s=22, color=colour, edgecolor="black", linewidth=0.6, zorder=3)
    if line is not None:
        drawn = axes.axhline(100 * line["accuracy"], color="#555555", linestyle="--", linewidth=1)
        legend(axes, [drawn], [f"always {line['class_name']}"])
    axes.set_xticks(range(len(arms)), [short(arm) for arm in arms], parse_math=False)
    axes.set(ylabel="test accuracy in %", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
