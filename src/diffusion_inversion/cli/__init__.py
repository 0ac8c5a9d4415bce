"""The command `dinv`: thin commands over the stages. Heavy imports wait until a command runs."""

from __future__ import annotations

import typer

from . import (
    adopt,
    audit,
    bench,
    care,
    compare,
    export,
    few_shot,
    gan,
    generators,
    grow,
    lecf,
    measures,
    membership,
    plan,
    predict,
    push,
    retrieve,
    stages,
    status,
    strips,
    sweeps,
)
from .command import Commands, add
from .surroundings import prepare

app = typer.Typer(
    cls=Commands,
    help="Turn a folder of labelled images into a synthetic training set, and find out whether it helps.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
METHOD = (
    plan.preview, plan.plan, stages.run, stages.invert, stages.sample, stages.train, grow.grow, stages.demo,
)  # fmt: skip
USE = (strips.strips, predict.predict, export.export, push.push)
CARE = (
    status.status, care.inspect, audit.audit, membership.membership, care.doctor, care.verify, care.repair,
    care.forget,
)  # fmt: skip
SEVERAL = (
    compare.compare, adopt.adopt, retrieve.retrieve, lecf.lecf, sweeps.sweep, sweeps.claims, measures.metrics,
    generators.autoencode, generators.pretrain,
)  # fmt: skip
for function in (*METHOD, *USE, *CARE, *SEVERAL):
    add(app, function)
add(app, few_shot.few_shot, "few-shot")
app.add_typer(bench.bench, name="bench")
app.add_typer(generators.group, name="generators")
app.add_typer(gan.group, name="gan")


def _say_version(wanted: bool) -> None:
    from importlib.metadata import version

    if wanted:
        typer.echo(f"dinv {version('diffusion-inversion')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_say_version, is_eager=True, help="Say the version."),
) -> None:
    pass


def main() -> None:
    """Entry point of `dinv`."""
    prepare()
    app()
