"""The commands `dinv generators`: list them, and measure several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import UsageError
from .command import Command, command, integers, labelled, load, numbers, pairs
from .generators import generators
from .options import Device, Dtype, Json

LIST = "list"


class ListByDefault(TyperGroup):
    """`dinv generators`, with or without a name, lists: it did before there was another command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = [LIST, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


group = typer.Typer(cls=ListByDefault, help="List generators (the default), or compare several on images.")
group.command(LIST, cls=Command)(generators)


@group.command(cls=Command)
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="mini, folders or hub ids; LABEL=NAME calls one otherwise.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for figures.json, figures.md and pictures; goes on where it was.")],
    data: Annotated[
        list[str] | None, typer.Option(help="NAME=DATA: a domain whose training images are learned and drawn again.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="NAME=DATA: held-out images of a domain: what the autoencoder costs.")
    ] = None,
    target_train: Annotated[str | None, typer.Option(help="DATA whose labels a judge looks for in drawings.")] = None,
    target_test: Annotated[str | None, typer.Option(help="DATA: test images of the target.")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Classifier of the target (safetensors). [default: one is trained]")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="DATA of held-out images whose class names are drawn: quality of samples.")
    ] = None,
    images: Annotated[int, typer.Option(help="Training images a domain.")] = 100,
    sources: Annotated[int, typer.Option(help="Images of the target whose label is looked for.")] = 1000,
    samples: Annotated[int, typer.Option(help="Prompted samples.")] = 10_000,
    steps: Annotated[str, typer.Option(help="Stage-1 steps to look at, beside the guess.")] = "25,50,100",
    guidance_scales: Annotated[str, typer.Option(help="For label agreement.")] = "1,1.5,2",
    device: Device = "auto", dtype: Dtype = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Measure generators side by side: loss and likeness on domains, label agreement, samples, autoencoder."""
    with command(as_json) as summary:
        from ..data.datasets import load_images
        from ..engine.lock import run_lock
        from ..pretrain.corpus import Corpus
        from ..pretrain.figures import TEXT, Amounts, measure

        if min(images, sources, samples) < 2:
            raise UsageError("--images, --sources, --samples: give at least 2 of each.")
        chosen, scales = integers(steps) or (), numbers(guidance_scales) or ()
        if not chosen or not scales or min(chosen) < 1:
            raise UsageError("--steps and --guidance-scales: give at least one of each, steps from 1 on.")
        domains, tests = pairs(data or (), "--data"), pairs(test or (), "--test")
        loaded = {label: load(name, None, device, dtype) for label, name in labelled(names).items()}
        heldout = None
        if corpus is not None:
            held = load_images(corpus)
            heldout = Corpus(held.images, held.labels, held.class_names)
        with run_lock(out):
            content = measure(
                out, heldout, target_train, target_test, generators=loaded, judge=judge, domains=domains, tests=tests,
                amounts=Amounts(
                    images=images, sources=sources, samples=samples, steps=tuple(sorted(set(chosen))),
                    guidance_scales=scales,
                ),
            )  # fmt: skip
        summary |= {"folder": str(out), **content, "text": (out / TEXT).read_text()}
