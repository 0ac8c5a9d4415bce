"""The page of a sweep: one self-contained HTML file without scripts."""

from __future__ import annotations

from collections.abc import Mapping

from ..engine.text import visible_values
from ..run.report import html
from ..run.report.pictures import data_uri
from ..run.report.templates import environment
from .outcome import SweepResult
from .table import (
    accuracy_table,
    choices_table,
    claims_table,
    classes_table,
    measures,
    metrics_table,
    over,
    scope,
    shows_classes,
    spread_table,
)


def page(found: SweepResult, command: str, figures: Mapping[str, bytes]) -> str:
    """Tables, figures and claims of a sweep; everything from the experiment file is text, never markup."""
    tables = {"accuracy": accuracy_table(found)}
    if spread := spread_table(found):
        tables["spread"] = spread
    if shows_classes(found):
        tables["classes"] = classes_table(found.rows)
    if chosen := choices_table(found):
        tables["choices"] = chosen
    if found.metrics:
        tables["metrics"] = metrics_table(found.metrics)
    if found.claims:
        tables["claims"] = claims_table(found.claims)
    shown = visible_values(
        {
            "title": found.plan.title,
            "about": found.plan.about,
            "command": command,
            "generator": found.generator,
            "over": over(found),
            "measure": measures(found.rows),
            "scope": scope(found),
            "tables": {name: [head, *body] for name, (head, body) in tables.items()},
        }
    )
    content = (
        environment("diffusion_inversion.sweep")
        .get_template("template.html")
        .render(**shown, figures={name: data_uri(image) for name, image in figures.items()})
    )
    return html.page(shown["title"], [content], scripted=False)
