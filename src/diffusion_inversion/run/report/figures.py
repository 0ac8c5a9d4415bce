"""What figures of matplotlib have in common: colours, names, legends, PNG bytes; drawn without a display."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ...engine.text import cut, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Given = ParamSpec("Given")
Result = TypeVar("Result")
# Okabe and Ito's palette, which the colour-blind tell apart.
ARM_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
DPI = 100
_LONGEST_LABEL = 20  # characters


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
    return cut(" ".join(visible(name).split()), _LONGEST_LABEL)


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


def whiskers(scores: Sequence[tuple[float, float | None]]) -> list[list[float]]:
    """Standard deviations below and above means in [0, 1], both in %, no further than 0 and 100; none is 0."""
    return [
        [100 * min(std or 0.0, mean) for mean, std in scores],
        [100 * min(std or 0.0, 1 - mean) for mean, std in scores],
    ]


@without_tex
def png(figure: Figure, made_by: str | None = None) -> bytes:
    """Draw a figure; the same figure gives the same bytes. `made_by` is kept in the file, in plain text."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that matplotlib's font lacks shows as boxes; the page's text has it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": made_by})
    return buffer.getvalue()
