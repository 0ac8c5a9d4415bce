"""The command `dinv`: thin commands over the stages. Heavy imports wait until a command runs."""

from __future__ import annotations

from collections.abc import Callable

import typer

from . import care, generators, measures, stages

app = typer.Typer(
    help="Turn a folder of labelled images into a synthetic training set, and find out whether it helps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PANELS: dict[str, list[Callable[..., None]]] = {
    "The method": [stages.run, stages.invert, stages.sample, stages.train, stages.demo],
    "Care of data and runs": [care.inspect, care.doctor, care.verify, care.repair, care.forget],
    "Measures": [measures.metrics],
    "Generators": [generators.generators, generators.pretrain],
}
for panel, functions in PANELS.items():
    for function in functions:
        app.command(rich_help_panel=panel)(function)


def main() -> None:
    """Entry point of `dinv`."""
    app()
