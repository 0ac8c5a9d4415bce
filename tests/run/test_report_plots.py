"""The plots show the data that they were given; the report has the confusion of each arm."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib.axes import Axes
from PIL import Image

from diffusion_inversion.run.report import (
    Point,
    accuracy_curve,
    confusion_matrices,
    metric_curves,
    most_confused,
    per_class_accuracy,
    png,
)
from diffusion_inversion.run.report.confusion import MOST_CLASSES, normalised
from diffusion_inversion.run.report.html import render_page

NAMES = ("cat", "dog", "owl")
REAL = [[6, 3, 1], [0, 0, 0], [0, 5, 15]]  # no test image of a dog
BOTH = [[9, 1, 0], [0, 0, 0], [2, 0, 18]]
PICTURES = dict.fromkeys(("bars", "grid", "curve"), b"\x89PNG")
ODD = ("$\\frac{$", "_hidden", "猫", "a\u202eb", "x" * 300, "<b>", "")


def rgb(colour: Any) -> tuple[float, ...]:
    return tuple(matplotlib.colors.to_rgba(colour))


def point(at: float, value: float, half: float | None = None) -> Point:
    return {
        "at": at,
        "value": value,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
    }


def segments(axes: Axes) -> list[tuple[float, float, float]]:
    """(x, low, high) of every vertical error bar."""
    found = []
    for container in axes.containers:
        for bars in container.lines[2]:  # type: ignore[attr-defined]
            found += [(float(s[0, 0]), float(s[:, 1].min()), float(s[:, 1].max())) for s in bars.get_segments()]
    return found


# --- confusion --------------------------------------------------------------------------------------------------------


def test_matrices_are_rows_in_shares_and_never_turned() -> None:
    figure = confusion_matrices({"real": REAL, "real+synthetic": BOTH}, NAMES)
    assert [axes.get_title() for axes in figure.axes] == ["real", "real+synthetic"]
    for axes, counts in zip(figure.axes, (REAL, BOTH), strict=True):
        shown = np.ma.filled(axes.images[0].get_array(), np.nan)
        assert shown[0].tolist() == pytest.approx([count / 10 for count in counts[0]])
        assert np.isnan(shown[1]).all()
        assert shown[2].tolist() == pytest.approx([count / 20 for count in counts[2]])
        assert axes.get_ylabel().startswith("true") and axes.get_xlabel().startswith("predicted")
        assert axes.images[0].origin == "upper"
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert [label.get_text() for label in labels] == list(NAMES)
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    # (x, y) = (predicted, true): cats were taken for dogs in 30 %, owls in 25 %
    assert texts == {(0, 0): "60", (1, 0): "30", (2, 0): "10", (1, 2): "25", (2, 2): "75"}


@pytest.mark.parametrize("count", [2, 10, 20])
@pytest.mark.parametrize("arms", [1, 3])
def test_matrices_stay_legible_and_inside(count: int, arms: int) -> None:
    names = [f"a class with a long name {k}" for k in range(count)]
    figure = confusion_matrices({f"an arm of long name {k}": np.eye(count, dtype=int) * 9 for k in range(arms)}, names)
    assert figure.get_figwidth() <= 9.6
    figure.canvas.draw()
    page = figure.bbox
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert box.x0 >= page.x0 and box.y0 >= page.y0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert axes.bbox.width / count >= 30 and axes.bbox.width == pytest.approx(axes.bbox.height)
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) if a for b in boxes[k + 1 :] if b)


def test_most_confused_pairs_come_by_share() -> None:
    found = most_confused(REAL, NAMES)
    assert [(pair["true"], pair["predicted"], pair["count"]) for pair in found] == [
        ("cat", "dog", 3),
        ("owl", "dog", 5),
        ("cat", "owl", 1),
    ]
    assert [pair["share"] for pair in found] == pytest.approx([0.3, 0.25, 0.1])
    assert len(most_confused(REAL, NAMES, most=2)) == 2
    assert most_confused(np.eye(3, dtype=int).tolist(), NAMES) == []
    tied = most_confused([[0, 1, 1], [2, 0, 2], [0, 0, 1]], NAMES)
    assert [(p["true"], p["predicted"]) for p in tied] == [
        ("dog", "cat"),
        ("dog", "owl"),
        ("cat", "dog"),
        ("cat", "owl"),
    ]


@pytest.mark.parametrize("counts", [[[1, 2], [3, 4]], [[1, 2, 3]], [[1, 0, 0], [0, -1, 0], [0, 0, 1]]])
def test_counts_that_do_not_fit_are_refused(counts: Sequence[Sequence[int]]) -> None:
    with pytest.raises(ValueError, match="give counts"):
        normalised(counts, NAMES)


def test_per_class_accuracy_shows_mean_and_spread_of_each_arm() -> None:
    arms = {
        "real": [[0.5, None, 0.9], [0.7, None, 0.9]],
        "synthetic": [[0.4, None, 1.0]],
    }
    axes = per_class_accuracy(arms, NAMES).axes[0]
    real, synthetic = (container.lines[0] for container in axes.containers)  # type: ignore[attr-defined]
    assert list(real.get_xdata()) == pytest.approx([60, 90]) and list(synthetic.get_xdata()) == pytest.approx([40, 100])
    assert [round(y) for y in real.get_ydata()] == [0, 2] and real.get_ydata()[0] < synthetic.get_ydata()[0]
    (bars,) = axes.containers[0].lines[2]  # type: ignore[attr-defined]
    spread = 100 * 0.02**0.5  # of 0.5 and 0.7, n - 1
    assert bars.get_segments()[0][:, 0].tolist() == pytest.approx([60 - spread, 60 + spread])
    assert axes.yaxis_inverted()  # the first class on top
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["real", "synthetic"]


# --- curves -----------------------------------------------------------------------------------------------------------

ARMS = {
    "real": [point(0, 0.46, 0.02)],
    "synthetic": [point(4000, 0.42), point(500, 0.30, 0.02), point(1000, 0.35, 0.01)],
}


def test_accuracy_against_synthetic_images() -> None:
    axes = accuracy_curve(ARMS).axes[0]
    level, line = axes.lines[0], axes.lines[1]
    assert list(level.get_ydata()) == pytest.approx([46, 46])
    assert list(line.get_xdata()) == [500, 1000, 4000] and list(line.get_ydata()) == pytest.approx([30, 35, 42])
    assert np.array(segments(axes)) == pytest.approx(np.array([(500, 28, 32), (1000, 34, 36)]))  # 4000 has no interval
    assert axes.patches[0].get_y() == pytest.approx(44) and axes.patches[0].get_height() == pytest.approx(4)  # type: ignore[attr-defined]
    assert axes.get_xscale() == "log" and [t.get_text() for t in axes.get_xticklabels()] == ["500", "1,000", "4,000"]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    colours = [rgb(handle.get_color()) for handle in axes.get_legend().get_lines()]
    assert names == ["real", "synthetic"] and colours == [rgb(level.get_color()), rgb(line.get_color())]


def test_the_axis_is_logarithmic_where_that_shows_more() -> None:
    def scale(*places: float) -> str:
        return accuracy_curve({"a": [point(place, 0.5) for place in places]}).axes[0].get_xscale()

    assert scale(1000, 2000, 4000) == "linear" and scale(1000, 8000) == "log"
    assert scale(0, 1000, 8000) == "symlog" and scale(0, 1000, 2000) == "linear"


def test_a_logarithmic_axis_names_strengths_as_they_are() -> None:
    axes = accuracy_curve({"a": [point(place, 0.5) for place in (0, 0.1, 0.4, 1.6)]}).axes[0]
    assert axes.get_xscale() == "symlog"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "0.1", "0.4", "1.6"]


def test_an_interval_beside_its_value_is_drawn_where_it_is() -> None:
    axes = accuracy_curve({"a": [{"at": 1, "value": 0.5, "low": 0.51, "high": 0.53}]}).axes[0]
    assert segments(axes) == [(1, pytest.approx(51), pytest.approx(53))]
    assert list(axes.lines[0].get_ydata()) == [50]


def test_metrics_against_both_strengths() -> None:
    sweeps = {
        "lambda": {
            "precision": [point(0, 0.9, 0.02), point(0.2, 0.7, 0.03)],
            "recall": [point(0, 0.98), point(0.2, 0.95)],
        },
        "alpha": {"recall": [point(0.1, 0.66, 0.01), point(0, 0.64, 0.01)], "density": [point(0, 1.3, 0.1)]},
    }
    figure = metric_curves(sweeps)
    first, second = figure.axes
    assert "noise strength" in first.get_xlabel() and "interpolation" in second.get_xlabel()
    assert [list(line.get_ydata()) for line in first.lines] == [[0.9, 0.7], [0.98, 0.95]]
    assert list(second.lines[0].get_xdata()) == [0, 0.1] and list(second.lines[0].get_ydata()) == [0.64, 0.66]
    assert second.lines[0].get_color() == first.lines[1].get_color() != first.lines[0].get_color()
    band = {(round(x, 9), round(y, 9)) for x, y in first.collections[0].get_paths()[0].vertices.tolist()}
    assert band == {(0, 0.88), (0, 0.92), (0.2, 0.67), (0.2, 0.73)}
    assert len(first.collections) == 1  # recall has no interval there
    low, high = first.get_ylim()
    assert low == 0 and high > 1.4 and second.get_ylim() == (low, high)  # one scale, nothing cut off
    (shown,) = figure.legends
    assert [text.get_text() for text in shown.get_texts()] == ["precision", "recall", "density"]
    figure.canvas.draw()
    assert all(axes.bbox.width > 0.35 * figure.bbox.width for axes in figure.axes)


def test_odd_names_are_drawn_as_text_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    count = len(ODD)
    line = [point(1, 0.5, 0.1), point(20, 0.6, 0.1)]
    counts = np.ones((count, count), dtype=int).tolist()
    figures = [
        confusion_matrices({ODD[0]: counts}, ODD),
        per_class_accuracy({name: [[0.5] * count] for name in ODD}, ODD),
        accuracy_curve({name: line for name in ODD}),
        metric_curves({ODD[0]: {name: line for name in ODD}}),
    ]
    for figure in figures:
        picture = png(figure)
        Image.open(io.BytesIO(picture)).load()
        assert png(figure) == picture
    names = [text.get_text() for text in figures[2].axes[0].get_legend().get_texts()]
    assert names[:2] == ["$\\frac{$", "_hidden"] and "\\u202e" in names[3]
    assert [str(warning.message) for warning in recwarn] == []


# --- report -----------------------------------------------------------------------------------------------------------


class Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.alts += [value or "" for name, value in attributes if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture
def run() -> dict[str, Any]:
    from report_pages import RUN

    found: dict[str, Any] = copy.deepcopy(dict(RUN))
    found["data"]["class_names"] = list(NAMES)
    return found


def test_the_report_has_a_picture_of_confusion_where_it_was_recorded(run: dict[str, Any]) -> None:
    import torch

    from diffusion_inversion.run.report import ReportImages, render_report

    pixels = torch.zeros(1, 3, 3, 4, 4, dtype=torch.uint8)
    images = ReportImages(pixels[:, 0], pixels[:, 1], pixels[:, 2:], torch.tensor([0]))
    without = render_report(run, images)
    assert "confus" not in without and without.count("data:image/png") == 3
    page = Text(render_report(run | {"confusion": {"real": REAL, "real+synthetic": BOTH}}, images))
    assert page.tags.count("img") == 4 and "Which classes are confused" in page.text
    assert sum("confusion matrix" in alt for alt in page.alts) == 1
    run["data"]["class_names"] = [f"c{k}" for k in range(MOST_CLASSES + 1)]
    matrix = np.eye(MOST_CLASSES + 1, dtype=int)
    matrix[4, 7] = 3
    page = Text(render_report(run | {"confusion": {"real": matrix.tolist()}}, images))
    assert page.tags.count("img") == 3
    assert " ".join(page.text.split()).count("c4 c7 75.0 % 3") == 1
    perfect = Text(render_report(run | {"confusion": {"real": np.eye(MOST_CLASSES + 1, dtype=int).tolist()}}, images))
    assert "No test image was taken for another class." in perfect.text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=x>', "{{ 7 * 7 }}", "a\u202eb"])
def test_names_in_the_table_of_confusion_are_text(run: dict[str, Any], name: str) -> None:
    run["data"]["class_names"] = [name, *(f"c{k}" for k in range(MOST_CLASSES))]
    matrix = np.ones((MOST_CLASSES + 1, MOST_CLASSES + 1), dtype=int).tolist()

    def tags(arm: str) -> list[str]:
        return Text(render_page(run | {"confusion": {arm: matrix}}, PICTURES, 3)).tags

    page = render_page(run | {"confusion": {name: matrix}}, PICTURES, 3)
    assert Text(page).tags == tags("real") and "script" not in Text(page).tags and "\u202e" not in page


def test_a_page_without_a_picture_that_it_needs_is_an_error(run: dict[str, Any]) -> None:
    with pytest.raises(UndefinedError, match="grid"):
        render_page(run, {"bars": b"", "curve": b""}, 3)
