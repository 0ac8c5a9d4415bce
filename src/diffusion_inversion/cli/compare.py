"""The commands `dinv generators`: list them, and measure several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from .command import add, labelled, load, pairs
from .generators import generators
from .given import Given
from .options import DeviceAndType

if TYPE_CHECKING:
    from ..config.commands import CompareSettings

LIST = "list"


class ListByDefault(TyperGroup):
    """`dinv generators`, with or without a name, lists: it did before there was another command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = [LIST, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


group = typer.Typer(cls=ListByDefault, help="List generators (the default), or compare several on images.")
add(group, generators, LIST)


def compare(
    *,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="mini, folders or hub ids; LABEL=NAME calls one otherwise.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for figures.json, figures.md and pictures; goes on where it was.")],
    comparing: Given[CompareSettings],
    where: DeviceAndType,
) -> dict[str, Any]:
    """Measure generators side by side: loss and likeness on domains, label agreement, samples, autoencoder."""
    from ..data.datasets import load_images
    from ..engine.lock import run_lock
    from ..pretrain.corpus import Corpus
    from ..pretrain.figures import TEXT, Amounts, measure

    settings, place = comparing.settings(), where.settings()
    domains, tests = pairs(settings.data, "--data"), pairs(settings.test, "--test")
    loaded = {label: load(place.model_copy(update={"generator": name})) for label, name in labelled(names).items()}
    heldout = None
    if settings.corpus is not None:
        held = load_images(settings.corpus)
        heldout = Corpus(held.images, held.labels, held.class_names)
    amounts = Amounts(
        images=settings.images, sources=settings.sources, samples=settings.samples,
        steps=tuple(sorted(set(settings.steps))), guidance_scales=settings.guidance_scales,
    )  # fmt: skip
    with run_lock(out):
        content = measure(
            out, heldout, settings.target_train, settings.target_test, generators=loaded, judge=settings.judge,
            domains=domains, tests=tests, amounts=amounts,
        )  # fmt: skip
    return {"folder": str(out), **content, "text": (out / TEXT).read_text()}


add(group, compare)
