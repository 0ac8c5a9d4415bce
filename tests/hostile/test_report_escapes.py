"""Whatever a data set calls its things, the report shows it as text and can load nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_inversion.engine.text import LONGEST, visible
from diffusion_inversion.run.report import Nearest, ReportImages, accuracy_curve, png, render_report

NAMES = (
    "<script>alert(1)</script>", "</title><script>x</script>", "</pre></code><iframe src=//evil>", "</style><script>",
    '"><img src=x onerror=x>', "' onmouseover='x", "javascript:alert(1)", "data:text/html,<script>x</script>", "-->",
    "<svg/onload=alert(1)>", "&lt;script&gt;", "{{ 7 * 7 }}", "{% include '/etc/passwd' %}", "--><script>",
    "<a href=javascript:x>", "cat\u202egnp.exe", "\u2066cat\u2069", "a\u200fb", "a\x00b", "a\x1b[31mred", "\ud800",
    "a\nb", "\ufffe", "\U000e0041", "x" * 100_000, "<" * 5000, r"$\frac{$", r"$\frac{1}{2}$", "$",
    r"\input{/etc/passwd}", "]]><script>",
    r"$\def\x{\x\x}\x$", "%s%n{0}", "=HYPERLINK(1)", "猫🐈",
)  # fmt: skip
PIXELS = torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8)
VOID = {"meta", "img", "br"}


def run_called(name: str) -> dict[str, Any]:
    """A run in which everything that comes from outside is called `name`."""
    problem = {"file": name, "cause": name, "remedy": name, "fatal": True}
    return {
        "name": name,
        "created": name,
        "command": f"dinv run {name}",
        "versions": {name: name},
        "licences": [name],
        "data": {
            "name": name, "n_train": 2, "n_test": 2, "how": name, "class_names": [name, "dog"], "licence": name,
            "problems": [problem],
        },
        "generator": {"name": name, "hash": name, "resolution": 32, "prediction_type": name},
        "settings": {
            "invert": {"note": name, name: [name, {"a": name}]}, name: {},
            "train": {"mixing": "batch", "real_fraction": 0.5},
        },
        "stages": {
            "invert": {"seconds": 1.0, "loss_initial": 0.4, "loss_final": 0.3, "null_loss": 0.5},
            "sample": {"seconds": 1.0, "images": 4},
            "train": {"seconds": 1.0},
        },
        "inversion_curve": {"steps": [0, 1], "mean": [0.4, 0.3], "p10": [0.4, 0.3], "p90": [0.4, 0.3]},
        "arms": {name: {"accuracies": [0.5], "mean": 0.5, "std": None, "n": 1}},
        "membership": {
            "members": 20, "held_out": 20, "references": 20, "false_positives": 0.01, "figures": [],
            "control": {
                "of": name, "by": name, "calibrated_by": name, "auc": 0.5, "auc_low": 0.4, "auc_high": 0.6,
                "true_positives": 0.0, "true_low": 0.0, "true_high": 0.1, "false_positives": 0.05, "false_at_most": 0.1,
            },
            "notes": [name],
        },
        "verdict": {
            "outcome": "helps", "sentence": name,
            "comparisons": [{"arm": name, "difference": 0.1, "low": None, "high": None}],
        },
        "balance": {
            "of": name, "attribute": name, "uneven": name,
            "parts": [{"class_name": name, "value": name, "real": 1, "synthetic": 2}],
        },
        "strengths": {
            "images": 2, "judged": 2, "probes": 4, "ladder": [0.0, 1.0], "never": 0, "copies": 0,
            "classes": [{"class_name": name, "counts": [1, 1], "median": 0.5}],
            "lowest": [{"file": name, "class_name": name, "strength": 0.0, "level": 0.0, "kept": 4, "copies": 0}],
            "highest": [],
        },
        "growth": {
            "reason": name, "added": 1, "images": 2, "synthetic": [4, 5], "accuracies": [0.5, 0.5], "wanted": [1, 0],
            "kept": 1, "gain": [0.0, -0.1, 0.1], "sentence": name, "attribute": name,
            "subgroups": [{"class_name": name, "value": name, "error": 0.5, "added": 1}],
        },
    }  # fmt: skip


class Shape(HTMLParser):
    """Tags with their attributes, in order, and the text outside of the style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.open: list[str] = []
        self.values: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attributes)))
        self.values += [value or "" for name, value in attributes if name in ("src", "href", "action", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


def page_called(name: str) -> str:
    """The page of a run whose images are called `name` too."""
    near = Nearest(PIXELS[0, 2:], (name,), (0.5,))
    images = ReportImages(
        PIXELS[:, 0], PIXELS[:, 1], PIXELS[:, 2:], torch.tensor([0, 1]), ids=(name, name),
        nearest=(near, near), strengths=[(PIXELS[0, 0], PIXELS[0, 2:])],
    )  # fmt: skip
    return render_report(run_called(name), images)


@pytest.fixture(scope="module")
def tame() -> Shape:
    return Shape(page_called("tame"))


def check(name: str, tame: Shape) -> None:
    page = page_called(name)
    page.encode()
    shape = Shape(page)
    assert shape.tags == tame.tags, "a name became markup"
    assert all(value.startswith("data:image/png;base64,") for value in shape.values)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", page)
    shown = " ".join(visible(name).split())
    assert " ".join(shape.text.split()).count(shown) >= 12


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:30])
def test_a_name_is_text_everywhere(name: str, tame: Shape) -> None:
    check(name, tame)


@settings(max_examples=100, deadline=None)
@given(name=st.text(min_size=1, max_size=30) | st.text("<>\"'&;=/ $\\{}%abon", min_size=1, max_size=30))
def test_any_name_is_text_everywhere(name: str, tame: Shape) -> None:
    check(name, tame)


def test_the_page_s_policy_lets_it_load_nothing() -> None:
    page = page_called("cat")
    (found,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert re.fullmatch(
        r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-[\w+/]{43}='", found
    )
    # It stands before anything that it governs.
    assert page.index("Content-Security-Policy") < min(page.index(tag) for tag in ("<title", "<style", "<body", "<img"))
    assert page.count("<script") == 1 and "http:" not in page and "https:" not in page


@pytest.mark.parametrize("name", (r"\input{x}", "$", "猫🐈", "_x"), ids=ascii)
def test_figures_of_matplotlib_draw_any_name(name: str) -> None:
    drawn = accuracy_curve({name: [{"at": 1, "value": 0.5, "low": None, "high": None}]})
    assert png(drawn).startswith(b"\x89PNG")


def test_names_are_not_given_to_tex() -> None:
    """matplotlib obeys a matplotlibrc in the current folder; TeX would run what a name says."""
    import matplotlib

    def drawn() -> bytes:
        return png(accuracy_curve({r"\input{x}": [{"at": 1, "value": 0.5, "low": None, "high": None}]}))

    plain = drawn()
    with matplotlib.rc_context({"text.usetex": True}):
        assert drawn() == plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "cat"), ("a\nb\tc", "a\nb\tc"), ("a\u202eb", r"a\u202eb"), ("\x00", r"\x00"), ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"), ("é猫🐈", "é猫🐈"), ("👩\u200d🔬", "👩\u200d🔬"),
        ("x" * LONGEST, "x" * LONGEST), ("x" * (LONGEST + 1), "x" * (LONGEST - 1) + "…"),
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_invisible_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown
