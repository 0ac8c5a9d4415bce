"""The options of several commands that are no settings: one name and one help text for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .completion import presets
from .given import Fields, Given

if TYPE_CHECKING:
    from ..config.settings import GeneratorSettings


def of_ours(run: Path) -> Path:
    """A folder of images, say, is no run: nothing is to be written there, not even a lock."""
    from ..run.place import foreign_files

    if foreign := foreign_files(run):
        raise typer.BadParameter(f"{run} holds files of others ({foreign}) and no run; give the --out of `dinv run`")
    return run


Run = Annotated[Path, typer.Argument(help="Run folder.", exists=True, file_okay=False, callback=of_ours)]
Device = Annotated["Given[GeneratorSettings]", Fields(only=("device",))]
DeviceAndType = Annotated["Given[GeneratorSettings]", Fields(only=("device", "dtype"))]
Preset = Annotated[
    str | None,
    typer.Option(
        help="paper (its text), reference (what its code does), fast (the defaults), or a TOML file with tables "
        "invert, sample, train. Options win over it.",
        autocompletion=presets,
    ),
]
Restart = Annotated[bool, typer.Option(help="Delete what this stage and later ones made here, and begin anew.")]
Replicates = Annotated[
    int,
    typer.Option(
        min=1,
        help="Do all of it so often, from subset to classifiers anew; the verdict counts what that changes. "
        "[default: 1]",
        show_default=False,
    ),
]
Tune = Annotated[
    list[str] | None,
    typer.Option(
        help="Choose settings on folds of the training images: fast, full, or NAME=V1,V2,... (repeatable; lists as "
        "1+2). The default stays unless another is better beyond its interval."
    ),
]
TuneSeconds = Annotated[
    float | None,
    typer.Option(min=1, help="Seconds that --tune may take: of the CPU, on a GPU on the clock. [default: no end]"),
]
OwnSize = Annotated[
    bool,
    typer.Option(
        "--own-size/--no-own-size",
        help="Train on the real images at their own side too, up to 96 px, where all else is smaller: what synthetic "
        "images then have to beat. [default: on]",
        show_default=False,
    ),
]
AttributesOption = Annotated[
    str | None,
    typer.Option(
        "--attributes",
        help="An attribute of the test images (sex, scanner, site): what every arm does on those of each value, in "
        "report and --json, and whether the worst subgroup is lowered. An existing CSV file of image and value; else a "
        "column of the test images' table; else a regular expression on file names. [default: none]",
    ),
]
Preview = Annotated[
    bool,
    typer.Option(
        "--preview/--no-preview",
        help="On a terminal, look first: a picture and a page of 8 images with variants, beside the run folder, where "
        "that takes at most a minute. [default: on]",
        show_default=False,
    ),
]
Join = Annotated[
    bool, typer.Option("--join", help="Share the work with other processes that were started with --join on this run.")
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Share the work with machines that see no common folder, through an object store (s3://BUCKET/PREFIX, "
        "gs://, az://): each gives this command with a run folder of its own, and all of them end with the whole run. "
        "[default: none]",
    ),
]
