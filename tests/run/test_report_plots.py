"""The plots show the data that they were given; the report has the confusion of each arm."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from diffusion_inversion.run.report import (
    Point,
    ReportImages,
    accuracy_curve,
    metric_curves,
    most_confused,
    png,
    render_report,
)
from diffusion_inversion.run.report.confusion import MOST_CLASSES, normalised

NAMES = ("cat", "dog", "owl")
REAL = [[6, 3, 1], [0, 0, 0], [0, 5, 15]]  # no test image of a dog
BOTH = [[9, 1, 0], [0, 0, 0], [2, 0, 18]]
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


def test_metrics_against_a_strength() -> None:
    metrics = {
        "precision": [point(0, 0.9, 0.02), point(0.2, 0.7, 0.03)],
        "recall": [point(0.2, 0.95), point(0, 0.98)],
        "density": [point(0, 1.3, 0.1)],
    }
    figure = metric_curves(metrics, "noise_strength")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "noise_strength"
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.9, 0.7], [0.98, 0.95], [1.3]]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[0, 0.2]] * 2
    assert len({line.get_color() for line in axes.lines}) == 3
    band = {(round(x, 9), round(y, 9)) for x, y in axes.collections[0].get_paths()[0].vertices.tolist()}
    assert band == {(0, 0.88), (0, 0.92), (0.2, 0.67), (0.2, 0.73)}
    assert len(axes.collections) == 2  # recall has no interval
    low, high = axes.get_ylim()
    assert low == 0 and high > 1.4  # nothing cut off
    (shown,) = figure.legends
    assert [text.get_text() for text in shown.get_texts()] == ["precision", "recall", "density"]
    figure.canvas.draw()
    assert axes.bbox.width > 0.7 * figure.bbox.width


def test_odd_names_are_drawn_as_text_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    line = [point(1, 0.5, 0.1), point(20, 0.6, 0.1)]
    figures = [
        accuracy_curve({name: line for name in ODD}),
        metric_curves({name: line for name in ODD}, ODD[0]),
    ]
    for figure in figures:
        picture = png(figure)
        Image.open(io.BytesIO(picture)).load()
        assert png(figure) == picture
    names = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
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


PIXELS = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
IMAGES = ReportImages(PIXELS, PIXELS, (PIXELS,), torch.tensor([0]))


def test_the_report_says_which_images_ended_early(run: dict[str, Any]) -> None:
    assert "ended early" not in render_report(run, IMAGES)
    inverted = run["stages"]["invert"] | {"ended": {"12": 3, "25": 40}}
    source = render_report(run | {"stages": run["stages"] | {"invert": inverted}}, IMAGES)
    assert "Images that ended early: 3 at step 12, 40 at step 25; the curve goes on" in source


def test_the_report_has_the_confusion_that_was_recorded(run: dict[str, Any]) -> None:
    assert "confused" not in render_report(run, IMAGES)
    source = render_report(run | {"confusion": {"real": REAL, "real+synthetic": BOTH}}, IMAGES)
    first, second = re.findall(r'<table class="matrix">(.*?)</table>', source, re.DOTALL)
    shares = re.findall(r"--share: ([\d.]+)\">(\d*)<", first)  # shaded at half the share, so that text stays legible
    assert shares == [
        ("0.300", "60"),
        ("0.150", "30"),
        ("0.050", "10"),
        ("0.000", ""),
        ("0.125", "25"),
        ("0.375", "75"),
    ]
    assert first.count('class="none"') == 3, "no test image of a dog"
    heads = re.findall(r'<th scope="(?:col|row)">(?:<span>)?([^<]*)', first)
    assert heads == ["true, taken for", *NAMES, *NAMES] and "<caption>real+synthetic</caption>" in second
    run["data"]["class_names"] = [f"c{k}" for k in range(MOST_CLASSES + 1)]
    matrix = np.eye(MOST_CLASSES + 1, dtype=int)
    matrix[4, 7] = 3
    page = Text(render_report(run | {"confusion": {"real": matrix.tolist()}}, IMAGES))
    assert " ".join(page.text.split()).count("c4 c7 75.0 % 3") == 1
    perfect = Text(render_report(run | {"confusion": {"real": np.eye(MOST_CLASSES + 1, dtype=int).tolist()}}, IMAGES))
    assert "No test image was taken for another class." in perfect.text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=x>', "{{ 7 * 7 }}", "a\u202eb"])
@pytest.mark.parametrize("few", [True, False])
def test_names_in_the_tables_of_confusion_are_text(run: dict[str, Any], name: str, few: bool) -> None:
    count = 3 if few else MOST_CLASSES + 1
    matrix = np.ones((count, count), dtype=int).tolist()

    def page(called: str) -> str:
        run["data"]["class_names"] = [called, *(f"c{k}" for k in range(1, count))]
        return render_report(run | {"confusion": {called: matrix}}, IMAGES)

    assert Text(page(name)).tags == Text(page("tame")).tags and "\u202e" not in page(name)


def test_an_arm_has_one_colour_in_every_chart_and_table(run: dict[str, Any]) -> None:
    for record, recall in zip(run["arms"].values(), ([0.25, 0.5, None], [0.1, 0.75, None]), strict=True):
        record["recall"] = recall
    source = render_report(run, IMAGES)
    cell = r'<td class="share c(\d)">([\d.]+)[^<]*<span style="--share: ([\d.]+)%'
    assert re.findall(cell, source) == [
        ("0", "25.0", "25.0"), ("1", "10.0", "10.0"), ("0", "50.0", "50.0"), ("1", "75.0", "75.0"),
    ]  # fmt: skip
    (forest,) = re.findall(r'<svg class="chart" role="img" aria-label="Difference.*?</div>', source)
    assert set(re.findall(r"mean c(\d)", forest)) == {"1"}
