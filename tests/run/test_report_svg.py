"""Charts put numbers where they belong: every place is a closed form of its value."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_pages import RUN

from diffusion_inversion.run.report.plots import accuracies, differences, losses
from diffusion_inversion.run.report.svg import COLOURS, Axis, Row, axis, chart, curve


def attributes(svg: str, tag: str, kind: str) -> list[dict[str, str]]:
    """The attributes of each element of a tag whose classes hold `kind`."""
    found = [dict(re.findall(r'([\w-]+)="([^"]*)"', one)) for one in re.findall(f"<{tag} [^>]*>", svg)]
    return [one for one in found if kind in one.get("class", "").split()]


def across(elements: list[dict[str, str]], name: str) -> list[float]:
    return [float(one[name].removesuffix("%")) for one in elements]


def test_a_value_stands_between_the_ends_as_it_does_between_the_numbers() -> None:
    along = Axis(-10, 30, ())
    assert [along.place(value) for value in (-10, 0, 10, 30)] == [0, 25, 50, 100]
    assert along.place(40) > 100 and along.place(-20) < 0


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((-8.5, 4.1), (-10, -5, 0, 5)),
        ((30.2, 36.0), (30, 32, 34, 36)),
        ((75.8, 78.5), (75, 76, 77, 78, 79)),
        ((0.1807, 0.4501), (0.1, 0.2, 0.3, 0.4, 0.5)),
        ((0.0, 0.0), (-1, -0.5, 0, 0.5, 1)),
        ((-150, 320), (-200, -100, 0, 100, 200, 300, 400)),
    ],
)
def test_ticks_are_round(values: tuple[float, ...], ticks: tuple[float, ...]) -> None:
    found = axis(values)
    if len(ticks) > 6:  # more than five steps: the next round one
        assert found.ticks == (-200, 0, 200, 400)
    else:
        assert found.ticks == pytest.approx(ticks)
    assert (found.low, found.high) == pytest.approx((found.ticks[0], found.ticks[-1]))


def test_an_axis_does_not_leave_its_limits() -> None:
    assert (axis((99.0, 100.0), within=(0, 100)).high, axis((0.0, 0.4), within=(0, 100)).low) == (100, 0)
    alone = axis((100.0,), within=(0, 100))
    assert (alone.low, alone.high) == (99, 100)


@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=6))
def test_an_axis_holds_every_value_in_at_most_five_steps(values: list[float]) -> None:
    found = axis(values)
    assert 2 <= len(found.ticks) <= 6
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert all(found.low - slack <= value <= found.high + slack for value in values)


def test_a_row_has_its_dots_above_its_mean_and_interval() -> None:
    svg = chart(
        [
            Row("a", "1", 0, mean=5, dots=(2.5, 7.5), interval=(0, 10)),
            Row("b", "2", COLOURS + 1, mean=-10),  # colours go round
        ],
        Axis(-10, 10, (-10, 0, 10)),
        "title",
        level=0,
    )
    dots, means = attributes(svg, "circle", "dot"), re.findall(r'<svg x="([\d.-]+)%" y="([\d.]+)"', svg)
    assert across(dots, "cx") == [62.5, 87.5] and [float(x) for x, _ in means] == [75, 0]
    (interval,) = attributes(svg, "line", "interval")
    assert across([interval], "x1") == [50] and across([interval], "x2") == [100]
    assert float(dots[0]["cy"]) + 10 < float(means[0][1]) == float(interval["y1"]), "never over dots"
    (zero,) = attributes(svg, "line", "level")
    assert across([zero], "x1") == across([zero], "x2") == [50]
    assert 'class="mean c0"' in svg and 'class="mean c1"' in svg
    assert [one for one in re.findall(r">([^<>]+)</text>", svg)] == ["a", "1", "b", "2", "\u221210", "0", "10"]


def test_the_curve_runs_from_left_to_right_and_up_where_the_loss_rises() -> None:
    svg = curve([0, 50, 200], [0.5, 0.1, 0.3], ([0.4, 0.0, 0.2], [0.5, 0.2, 0.4]), "loss", level=0.25)
    line, band = (re.search(rf'<{tag} [^>]*points="([^"]*)"', svg)[1] for tag in ("polyline", "polygon"))  # type: ignore[index]
    assert [tuple(map(float, p.split(","))) for p in line.split()] == [(0, 0), (25, 80), (100, 40)]
    corners = [tuple(map(float, p.split(","))) for p in band.split()]
    assert corners == [(0, 20), (25, 100), (100, 60), (100, 20), (25, 60), (0, 0)]
    (level,) = attributes(svg, "line", "level")
    assert float(level["y1"]) == float(level["y2"]) == 100  # half of 200 px
    assert "<polyline" in curve([0], [0.5], ([0.4], [0.5]), "one step")


def test_differences_are_in_points_around_zero() -> None:
    svg = differences(RUN, RUN["verdict"]["comparisons"])
    assert svg is not None
    (interval,) = attributes(svg, "line", "interval")  # on an axis from -10 to 5
    assert across([interval], "x1") == [10] and across([interval], "x2") == pytest.approx([94])
    assert across(attributes(svg, "line", "level"), "x1") == pytest.approx([100 * 10 / 15], abs=0.001)
    assert re.findall(r'<svg x="([\d.]+)%', svg) == ["52.000"]
    assert 'aria-label="Difference in points: real+synthetic -2.2 (-8.5 to +4.1)"' in svg
    without: Any = [{"arm": "real+synthetic", "difference": 0.01, "low": None, "high": None}]
    assert "interval" not in str(differences(RUN, without)) and differences(RUN, []) is None


def test_accuracies_are_dots_on_an_axis_that_shows_their_differences() -> None:
    svg = accuracies(RUN)  # 30.2, 33.1, 36.0 with a deviation of 2.9; 35.3: from 30 to 36
    assert across(attributes(svg, "circle", "dot"), "cx") == pytest.approx(
        [100 * d / 6 for d in (0.2, 3.1, 6, 5.3)], abs=1e-3
    )
    (interval,) = attributes(svg, "line", "interval")  # one seed has none
    assert (across([interval], "x1") + across([interval], "x2")) == pytest.approx([20 / 6, 100], abs=1e-3)
    assert "33.1 ± 2.9 % (n=3)" in svg and "30 %" in svg and ">0 %<" not in svg


def test_the_loss_has_the_empty_prompt_as_a_line() -> None:
    svg = losses(RUN)  # 0.1 to 0.6 with the level at 0.482
    (level,) = attributes(svg, "line", "level")
    assert float(level["y1"]) == pytest.approx(200 * (0.6 - 0.482) / 0.5, abs=0.01)


def test_names_are_text() -> None:
    svg = chart([Row('<b>"', "&", 0, mean=1)], axis([0, 1]), '"><script>')
    assert "<b>" not in svg and "<script>" not in svg and "&lt;b&gt;" in svg
