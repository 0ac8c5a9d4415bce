"""The commands around the generators: list, compare, train the embedded one, pass images through the VAE of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import UsageError
from .command import add, data_settings, labelled, load, pairs
from .given import Fields, Given
from .options import DeviceAndType

if TYPE_CHECKING:
    from ..config.commands import CompareSettings, PretrainSettings
    from ..config.settings import DataSettings, GeneratorSettings

LIST = "list"


def generators(
    name: Annotated[str | None, typer.Argument(help="Show one of them.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Print its folder alone.")] = False,
) -> dict[str, Any]:
    """List the generators that can be loaded here: the embedded one and those in the Hugging Face cache."""
    from ..generator.checkpoints import available

    found = available()
    if name is not None:
        if name not in found:
            raise UsageError(f"{name}: not found here. Known: {', '.join(found)}. A hub id is fetched when it is used.")
        found = {name: found[name]}
    lines = [str(value) if path else f"{key}\t{value}" for key, value in found.items()]
    return {"generators": {key: str(value) for key, value in found.items()}, "text": "\n".join(lines)}


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


def pretrain(pretraining: Given[PretrainSettings]) -> dict[str, Any]:
    """Make the embedded generator `mini` again, or go on with it."""
    from ..engine.lock import run_lock
    from ..pretrain.figures import Measured
    from ..pretrain.loop import Budget
    from ..pretrain.recipe import pretrain as recipe

    def budget(samples: int | None, minutes: float | None) -> Budget | None:
        return None if samples is None and minutes is None else Budget(samples, minutes)

    of = pretraining.settings()
    with run_lock(of.out):
        folder = recipe(
            of.corpus, of.validation, of.out, size=of.size, stages=of.stages,
            vae_budget=budget(of.vae_samples, of.vae_minutes),
            decoder_budget=budget(of.decoder_samples, of.decoder_minutes),
            unet_budget=budget(of.unet_samples, of.unet_minutes),
            clip_budget=budget(of.clip_samples, of.clip_minutes), wordnet=of.wordnet,
            device=of.device, batch_size=of.batch_size, part_minutes=of.part_minutes, start_from=of.start_from,
            measured=Measured(
                of.target_train, of.target_test, of.judge, pairs(of.data, "--data"), pairs(of.test, "--test"),
                labelled(of.beside),
            ),
        )  # fmt: skip
    return {"folder": str(folder), "text": str(folder)}


def autoencode(
    *,
    resolution: Annotated[int, typer.Option(help="Side in px at which the VAE sees the images.")],
    out: Annotated[Path, typer.Option(help="Folder for train/<class>/*.png and test/<class>/*.png.")],
    where: Annotated[Given[GeneratorSettings], Fields(only=("generator", "revision", "device"))],
    split: Annotated[str, typer.Option(help="train, test or both: what to pass through the VAE.")] = "train",
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw the latent from the encoder's distribution; else take its mean.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images side by side.")] = 100,
    seed: Annotated[int, typer.Option(help="Of --sample.")] = 0,
    source: Given[DataSettings],
) -> dict[str, Any]:
    """Resize images of DATA, encode and decode them with a generator's VAE, resize back, write class folders.

    DATA is parted into train and test as `dinv run` does. What is written is DATA again: OUT with --split both, else
    OUT/train or OUT/test.
    """
    from ..run.images import load_as
    from ..sample.autoencoding import PARTS, write_autoencoded

    if split not in (*PARTS, "both"):
        raise UsageError(f"--split {split}: give {', '.join(PARTS)} or both.")
    settings = data_settings(source)
    loaded, splits = load(where.settings()), load_as(settings)
    lines, summary = [], dict[str, Any]()
    for part, images in zip(PARTS, (splits.train, splits.test), strict=True):
        if split not in (part, "both"):
            continue
        done = write_autoencoded(
            images, loaded, out, resolution=resolution, part=part, sample=sample, batch_size=batch_size, seed=seed
        )
        summary[part] = {"images": done.images, "psnr": done.psnr, "renamed": done.renamed}
        lines.append(f"{done.images} images in {done.folder}, mean PSNR to their sources {done.psnr:.2f} dB")
        lines += [f"class {name} is the folder {folder}" for name, folder in done.renamed.items()]
    result = out if split == "both" else out / split
    summary |= {"data": str(result), "resolution": resolution, "latent": "sample" if sample else "mean"}
    summary |= {"generator": loaded.name, "generator_hash": loaded.hash, "licence": splits.train.licence}
    lines += [f"licence of the source: {splits.train.licence}"] if splits.train.licence else []
    return summary | {"text": "\n".join([*lines, f"Use it as DATA or --test: {result}"])}
