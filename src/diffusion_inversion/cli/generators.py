"""The commands around the generators: list them, train the embedded one, pass images through the VAE of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .command import command, data_settings, labelled, load, pairs, words
from .options import (
    AllowNear,
    Balanced,
    Data,
    DataSeed,
    Device,
    DropDuplicates,
    GeneratorName,
    Holdout,
    Json,
    Limit,
    PerClass,
    Revision,
    Root,
    Size,
    Test,
    TestLimit,
)


def generators(
    name: Annotated[str | None, typer.Argument(help="Show one of them.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Print its folder alone.")] = False,
    as_json: Json = False,
) -> None:
    """List the generators that can be loaded here: the embedded one and those in the Hugging Face cache."""
    with command(as_json) as summary:
        from ..generator.checkpoints import available

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
    corpus: Annotated[Path, typer.Option(help="Parquet file with image and label to train on.")],
    validation: Annotated[
        Path | None, typer.Option(help="The same for validation; without it 5,000 images of the corpus are held out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for states, caches, logs and the result.")] = Path("pretraining"),
    stage: Annotated[
        str, typer.Option(help="Some of vae,decoder,latents,unet,export,figures.")
    ] = "vae,latents,unet,export",
    size: Annotated[int, typer.Option(help="Side of the images in px: 64 or 32.")] = 64,
    vae_samples: Annotated[int | None, typer.Option(help="Images the autoencoder sees.  [default: 1,000,000]")] = None,
    vae_minutes: Annotated[float | None, typer.Option(help="Train the autoencoder for this long instead.")] = None,
    decoder_samples: Annotated[
        int | None, typer.Option(help="Images the decoder is sharpened with.  [default: 100,000]")
    ] = None,
    decoder_minutes: Annotated[float | None, typer.Option(help="Sharpen the decoder for this long instead.")] = None,
    unet_samples: Annotated[int | None, typer.Option(help="Images the denoiser sees.  [default: 8,900,000]")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train the denoiser for this long instead.")] = None,
    part_minutes: Annotated[
        float | None, typer.Option(help="Save and end after this long; the same command goes on.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Of the denoiser.  [default: 1,024 on CUDA, 128 elsewhere]")
    ] = None,
    device: Device = "auto",
    target_train: Annotated[str | None, typer.Option(help="For stage figures: DATA whose labels are judged.")] = None,
    target_test: Annotated[str | None, typer.Option(help="For stage figures: its test images.")] = None,
    judge: Annotated[Path | None, typer.Option(help="For stage figures: a classifier of the target.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="For stage figures: NAME=DATA, a domain.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="For stage figures: NAME=DATA, its test images.")] = None,
    beside: Annotated[list[str] | None, typer.Option(help="For stage figures: LABEL=GENERATOR, another one.")] = None,
    start_from: Annotated[
        str | None, typer.Option(help="mini or a folder made here: go on from its weights, without stage vae.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the embedded generator `mini` again, or go on with it."""
    with command(as_json) as summary:
        from ..engine.lock import run_lock
        from ..pretrain.loop import Budget
        from ..pretrain.recipe import Measured
        from ..pretrain.recipe import pretrain as recipe

        def budget(samples: int | None, limit: float | None) -> Budget | None:
            return None if samples is None and limit is None else Budget(samples, limit)

        with run_lock(out):
            folder = recipe(
                corpus, validation, out, size=size, stages=words(stage) or (),
                vae_budget=budget(vae_samples, vae_minutes), decoder_budget=budget(decoder_samples, decoder_minutes),
                unet_budget=budget(unet_samples, minutes),
                device=device, batch_size=batch_size, part_minutes=part_minutes,
                start_from=start_from,
                measured=Measured(
                    target_train, target_test, judge, pairs(data or (), "--data"), pairs(test or (), "--test"),
                    labelled(beside or ()),
                ),
            )  # fmt: skip
        summary |= {"folder": str(folder), "text": str(folder)}


def autoencode(
    data: Data,
    resolution: Annotated[int, typer.Option(help="Side in px at which the VAE sees the images.")],
    out: Annotated[Path, typer.Option(help="Folder for train/<class>/*.png and test/<class>/*.png.")],
    generator: GeneratorName = "mini", revision: Revision = None, device: Device = "auto",
    split: Annotated[str, typer.Option(help="train, test or both: what to pass through the VAE.")] = "train",
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw the latent from the encoder's distribution; else take its mean.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images side by side.")] = 100,
    seed: Annotated[int, typer.Option(help="Of --sample.")] = 0,
    test: Test = None, size: Size = None, limit: Limit = None, test_limit: TestLimit = None, holdout: Holdout = None,
    data_seed: DataSeed = None, root: Root = None, drop_test_duplicates: DropDuplicates = False,
    allow_near_duplicates: AllowNear = False, balanced: Balanced = False, per_class: PerClass = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Resize images of DATA, encode and decode them with a generator's VAE, resize back, write class folders.

    DATA is parted into train and test as `dinv run` does. What is written is DATA again: OUT with --split both, else
    OUT/train or OUT/test.
    """
    with command(as_json) as summary:
        from ..data.datasets import load_splits
        from ..data.selection import Chosen
        from ..sample.autoencoding import PARTS, write_autoencoded

        if split not in (*PARTS, "both"):
            raise UsageError(f"--split {split}: give {', '.join(PARTS)} or both.")
        settings = data_settings(
            data, test, size, limit, test_limit, holdout, data_seed, root, drop_test_duplicates, allow_near_duplicates,
            balanced, per_class,
        )  # fmt: skip
        loaded = load(generator, revision, device, "auto")
        splits = load_splits(
            **settings.model_dump(exclude={"drop_test_duplicates", "balanced", "per_class"}),
            drop_duplicates=drop_test_duplicates,
            chosen=Chosen(balanced=balanced, per_class=per_class),
        )
        lines = []
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
        summary["text"] = "\n".join([*lines, f"Use it as DATA or --test: {result}"])
