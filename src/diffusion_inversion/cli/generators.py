"""The commands around the generators: list them, and train the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .command import command, words
from .options import Json


def generators(
    name: Annotated[str | None, typer.Argument(help="Show one of them.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Print its folder alone.")] = False,
    as_json: Json = False,
) -> None:
    """List the generators that can be loaded here: the embedded one and those in the Hugging Face cache."""
    with command(as_json) as summary:
        from ..checkpoints import available

        found = available()
        if name is not None:
            if name not in found:
                raise UsageError(
                    f"{name}: not found here. Known: {', '.join(found)}. A hub id is fetched when it is used."
                )
            found = {name: found[name]}
        summary["generators"] = {key: str(value) for key, value in found.items()}
        lines = [str(value) if path else f"{key}\t{value}" for key, value in found.items()]
        summary["text"] = "\n".join(lines)


def pretrain(
    corpus: Annotated[Path, typer.Option(help="Parquet file with image (32 px) and label to train on.")],
    validation: Annotated[Path, typer.Option(help="The same for validation.")],
    out: Annotated[Path, typer.Option(help="Folder for states, caches, logs and the result.")] = Path("pretraining"),
    stage: Annotated[str, typer.Option(help="Some of vae,latents,unet,export,figures.")] = "vae,latents,unet,export",
    vae_samples: Annotated[int, typer.Option(help="Images the autoencoder sees.")] = 77_000,
    unet_samples: Annotated[int, typer.Option(help="Images the denoiser sees.")] = 450_000,
    target_train: Annotated[Path | None, typer.Option(help="For stage figures: a target data set, train.")] = None,
    target_test: Annotated[Path | None, typer.Option(help="For stage figures: a target data set, test.")] = None,
    start_from: Annotated[str | None, typer.Option(help="mini or a folder made here: go on from its weights.")] = None,
    as_json: Json = False,
) -> None:
    """Make the embedded generator `mini` again, or go on with it."""
    with command(as_json) as summary:
        from ..engine.lock import run_lock
        from ..pretrain.recipe import pretrain as recipe

        with run_lock(out):
            folder = recipe(
                corpus, validation, out, stages=words(stage) or (), vae_samples=vae_samples, unet_samples=unet_samples,
                target_train=target_train, target_test=target_test, start_from=start_from,
            )  # fmt: skip
        summary |= {"folder": str(folder), "text": str(folder)}
