"""The report's page: one self-contained HTML file that loads nothing and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from ...engine.text import visible_values
from .pictures import ReportImages
from .sections import SECTIONS
from .templates import PACKAGE, fill, style


def script() -> tuple[Markup, Markup]:
    """The page's script, and what its policy calls it: the hash without which no script runs there."""
    text = files(PACKAGE).joinpath("script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), Markup(f"'sha256-{digest}'")


def page(title: str, sections: Sequence[str], *, scripted: bool = True) -> str:
    """A page of sections in HTML, with the report's style and its script, which needs the section of the images.

    The title is text, never markup.
    """
    code, policy = script() if scripted else (None, "'none'")
    made = [Markup(section) for section in sections if section]
    return str(fill("page.html", title=title, style=style(), script=code, policy=policy, sections=made))


def render_report(run: Mapping[str, Any], images: ReportImages) -> str:
    """The page for `run`, the content of `run.json` (`RunRecord`), with its images.

    The labels of `images` are indices into the run's class names. Raises jinja2.UndefinedError, which names a field
    that `run` lacks. Everything in `run` is text, never markup.
    """
    shown = visible_values(run)
    found = shown["verdict"]
    title = f"{shown['data']['name']}: {found.get('headline', found['outcome'])}"
    return page(title, [section(shown, images) for section in SECTIONS])
