"""A record of a run for report tests, and its page, parsed."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from diffusion_inversion.run.report import ReportImages, RunRecord, render_report

VOID = {"meta", "img", "br", "link", "hr", "input"}

RUN: RunRecord = {
    "name": "demo",
    "created": "2025-01-02T03:04:05+00:00",
    "command": "dinv run DATA",
    "versions": {"torch": "2.9.0"},
    "data": {
        "name": "digits",
        "n_train": 200,
        "n_test": 1000,
        "how": "holdout",
        "class_names": ["zero", "one"],
        "licence": "CC BY-NC-SA 4.0",
        "problems": [{"file": "zero/1.png", "cause": "cut short", "remedy": "copy it again", "fatal": True}],
    },
    "generator": {"name": "mini", "hash": "0123abcd" * 8, "resolution": 32, "prediction_type": "v_prediction"},
    "settings": {"invert": {"steps": 150, "resolution": None}, "sample": {"guidance_scales": [2.0, 3.0]}},
    "stages": {
        "invert": {"seconds": 187.4, "loss_initial": 0.445, "loss_final": 0.397, "null_loss": 0.482},
        "sample": {"seconds": 42.0, "images": 2000},
        "train": {"seconds": 7500.0},
    },
    "inversion_curve": {
        "steps": [0, 50, 150],
        "mean": [0.4, 0.35, 0.3],
        "p10": [0.3, 0.2, 0.1],
        "p90": [0.6, 0.5, 0.45],
    },
    "arms": {
        "real": {"accuracies": [0.302, 0.331, 0.36], "mean": 0.331, "std": 0.029, "n": 3},
        "real+synthetic": {"accuracies": [0.353], "mean": 0.353, "std": None, "n": 1},
    },
    "verdict": {
        "outcome": "not enough evidence",
        "sentence": "Real and synthetic gave 35.3 %, real 33.1 ± 2.9 % (n=3).",
        "comparisons": [
            {"arm": "real+synthetic", "difference": -0.022, "low": -0.085, "high": 0.041, "confidence": 0.975}
        ],
    },
}


class Page(HTMLParser):
    """Parse a page; check that tags close in order; keep text, tags and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names))
        assert not any(name.startswith("on") for name in names)
        self.addresses += [value or "" for name, value in attributes if name in {"src", "href", "srcset", "action"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " * (tag in {"td", "th", "text"})

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text += data


def page(run: Any, images: ReportImages, folder: Path) -> Page:
    (folder / "report.html").write_text(render_report(run, images))
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def words(shown: Page) -> str:
    return " ".join(shown.text.split())
