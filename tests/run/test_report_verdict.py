"""The report and the terminal show what the verdict could hide: classes that are lost, the constant answer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from report_pages import RUN, page, words

from diffusion_inversion.cli.summary import summarise
from diffusion_inversion.run.report import ReportImages
from diffusion_inversion.run.report.sections import found_of_class


@pytest.fixture
def images() -> ReportImages:
    grey = torch.full((1, 3, 4, 4), 90, dtype=torch.uint8)
    return ReportImages(grey, grey, grey[:, None], torch.tensor([1]))


@pytest.fixture
def run() -> Any:
    """A run on uneven classes, "one" twice as frequent as "zero", whose gain is paid for with zeros."""
    run: Any = copy.deepcopy(RUN)
    for arm, balanced, area, recall in (("real", 0.31, 0.702, [0.25, 0.37]), ("real+synthetic", 0.4, 0.75, [0.1, 0.7])):
        run["arms"][arm] |= {
            "balanced_accuracy": {"values": [balanced] * 3, "mean": balanced, "std": 0.0123},
            "auroc": {"values": [area] * 3, "mean": area, "std": 0.0021},
            "recall": recall,
        }
    run["verdict"] |= {
        "outcome": "helps",
        "headline": "helps, but finds fewer zero",
        "measure": "balanced accuracy",
        "falls": [
            {"arm": "real+synthetic", "class_name": "zero", "difference": -0.15, "low": -0.2, "high": -0.1,
             "confidence": 0.9875}
        ],
        "majority": {"class_name": "one", "accuracy": 0.672, "balanced_accuracy": 0.5},
    }  # fmt: skip
    return run


def test_the_report_shows_what_a_gain_is_paid_for_with(run: Any, images: ReportImages, tmp_path: Path) -> None:
    shown = page(run, images, tmp_path)
    text = words(shown)
    assert 'class="verdict open"' in shown.source, "such a gain is not shown in green"
    for part in (
        "Helps, but finds fewer zero Real and synthetic gave",
        "real 33.1 ± 2.9 % (n=3) 30.2, 33.1, 36.0 % 31.0 ± 1.2 % (n=3) 0.702 ± 0.002",
        "nothing: always “one” 67.2 % 50.0 % 0.500",
        "The test classes are uneven, so the verdict is on balanced accuracy",
        "Class real real+synthetic zero 25.0 % 10.0 %, fewer one 37.0 % 70.0 %",
        "Difference to real images alone, in balanced accuracy",
    ):
        assert part in text, part
    run["verdict"] |= {"headline": "helps", "measure": "accuracy", "falls": []}
    plain = page(run, images, tmp_path)
    assert 'class="verdict helps"' in plain.source
    assert "balanced" not in words(plain) and ", fewer" not in words(plain)


def test_the_terminal_says_the_same(run: Any, tmp_path: Path) -> None:
    run["data"]["class_names"] = ["ze\x1b[2Jro", "one"]
    summary = summarise(tmp_path, run)
    for part in (
        "real  33.1 ± 2.9 % (n=3), balanced 31.0 ± 1.2 %, area under the ROC curve 0.702",
        "nothing  67.2 %, balanced 50.0 %: always answering one",
        "real+synthetic  ze\\x1b[2Jro 10.0 %, one 70.0 %",
        "verdict: helps, but finds fewer zero (",
    ):
        assert part in summary["text"], part
    assert "\x1b" not in summary["text"]


def test_of_many_classes_those_that_fell_are_shown(run: Any) -> None:
    assert [name for name, _ in found_of_class(run)] == ["zero", "one"]
    run["data"]["class_names"] += [f"more {k}" for k in range(30)]
    for record in run["arms"].values():
        record["recall"] += [None] * 30
    assert found_of_class(run) == [("zero", [(0.25, False), (0.1, True)])]
    del run["arms"]["real"]["recall"]
    assert found_of_class(run) == []
