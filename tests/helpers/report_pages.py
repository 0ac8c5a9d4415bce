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


def _share(count: int, n: int) -> dict[str, Any]:
    return {"count": count, "n": n, "low": 0.0, "high": 1.0}


def subgroups() -> dict[str, Any]:
    """What is recognised of two subgroups by three arms."""
    rate = {"mean": 0.5, "low": 0.4, "high": 0.6}
    accuracy = dict.fromkeys(("real", "synthetic", "real+synthetic"), rate)
    one = {"images": 5, "accuracy": accuracy, "ece": {"real": rate}, "comparisons": []}
    parts = [{**one, "value": value} for value in ("f", "m")]
    return {"attribute": "sex", "baseline": "real", "worst": "m", "lowered_by": [], "parts": parts}


def copies(classes: int) -> dict[str, Any]:
    """An audit: each class has an image that was drawn again, of the last one in vain; 21 sources are copied."""
    names = [f"class {number:02d}" for number in range(classes)]
    pair = {"file": "a/0.png", "nearest": "a/1.png", "source": None, "view": "pixels", "score": 0.1}
    again = {
        "file": "a/0.png", "again": "redrawn/a/0.png", "passed": True, "try": 1, "noise_strength": 0.1,
        "interpolation": 0.2,
    }  # fmt: skip
    return {
        "copies": _share(classes, 10 * classes), "rate": 0.01, "exceeds_chance": True, "neighbours": 5, "views": {},
        "null": {"images": 9, "kind": "test"}, "pairs": [pair], "notes": [],
        "by_source": {
            "sources": _share(21, 100), "of_their_own_source": 1,
            "flagged": {f"source {number:02d}": 1 for number in range(21)},
        },
        "by_class": {name: _share(1, 10) for name in names},
        "recall": {"pixels": {"exact": _share(4, 4)}},
        "redrawn": {
            "flagged": classes, "passed": classes - 1, "left": 1, "tries": [classes - 1], "examples": [again],
            "classes": [
                {"class_name": name, "flagged": 1, "passed": int(name != names[-1]), "left": int(name == names[-1])}
                for name in names
            ],
        },
    }  # fmt: skip


class Page(HTMLParser):
    """Parse a page; check that tags close in order and no head is empty; keep text, tags and addresses."""

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
        if tag == "th":
            self._head = len(self.text)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        assert tag != "th" or self.text[self._head :].strip(), "a head of a table is empty"
        self.text += " " * (tag in {"td", "th", "text"})

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text += data


def page(run: Any, images: ReportImages, folder: Path) -> Page:
    (folder / "report.html").write_text(render_report(run, images))
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def words(shown: Page) -> str:
    return " ".join(shown.text.split())
