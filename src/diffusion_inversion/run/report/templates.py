"""Templates of the report, and what they are filled with."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from .formats import accuracy, area, deviation, duration, points, setting

if TYPE_CHECKING:
    from jinja2 import Environment

PACKAGE = "diffusion_inversion.run.report"


def environment(package: str) -> Environment:
    """Templates of a package; what they show is text, never markup, and a field that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _templates() -> Environment:
    templates = environment(PACKAGE)
    templates.filters |= {"points": points, "deviation": deviation, "duration": duration, "setting": setting}
    templates.globals |= {"accuracy": accuracy, "area": area}
    return templates


def fill(template: str, **shown: Any) -> Markup:
    """A template of this folder with what it shows; texts are escaped, Markup is not.

    Raises jinja2.UndefinedError, which names a field that is missing.
    """
    return Markup(_templates().get_template(template).render(**shown))


def style() -> Markup:
    """The style sheet of the pages of runs and sweeps."""
    return Markup(files(PACKAGE).joinpath("style.css").read_text(encoding="utf-8"))
