"""The commands of the GAN baseline: `dinv gan train`, `dinv gan sample`, `dinv gan invert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .command import Command, command, data_settings, hold, settings_of, words
from .options import (
    AllowNear,
    Balanced,
    Data,
    DataSeed,
    Device,
    DropDuplicates,
    Holdout,
    Json,
    Limit,
    PerClass,
    Restart,
    Root,
    Size,
    Test,
    TestLimit,
)

group = typer.Typer(help="A small conditional GAN: what the paper compares vectors with.", no_args_is_help=True)

Trained = Annotated[Path, typer.Argument(help="Folder of `dinv gan train`, or a safetensors file of its layout.")]
RunFolder = Annotated[Path, typer.Option("--out", help="Run folder to write.")]


@group.command(cls=Command)
def train(
    data: Data, out: Annotated[Path, typer.Option(help="Folder for the weights, the state and the log.")],
    steps: Annotated[int | None, typer.Option(help="Steps of the generator. [default: 30,000]")] = None,
    width: Annotated[int | None, typer.Option(help="Channels at 64 px; 4 px have four times. [default: 64]")] = None,
    latent_dim: Annotated[int | None, typer.Option(help="Length of the latent vector. [default: 128]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in every step. [default: 64]")] = None,
    discriminator_steps: Annotated[
        int | None, typer.Option(help="Of the discriminator for each of the generator. [default: 4]")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's. [default: 0.0002]")] = None,
    augmentations: Annotated[
        str | None, typer.Option(help="DiffAugment's; or none. [default: color,translation,cutout]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and draws. [default: 0]")] = None,
    device: Device = "auto", test: Test = None, size: Size = None, limit: Limit = None, test_limit: TestLimit = None,
    holdout: Holdout = None, data_seed: DataSeed = None, root: Root = None,
    drop_test_duplicates: DropDuplicates = False, allow_near_duplicates: AllowNear = False, balanced: Balanced = False,
    per_class: PerClass = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Train on the training images of DATA, of 32 or 64 px (--size), which is parted as `dinv run` does."""
    with command(as_json) as summary:
        from ..data.datasets import load_splits
        from ..data.selection import Chosen
        from ..generator.device import resolve_device
        from ..pretrain.gan.settings import GanSettings
        from ..pretrain.gan.training import train_gan

        source = data_settings(
            data, test, size, limit, test_limit, holdout, data_seed, root, drop_test_duplicates, allow_near_duplicates,
            balanced, per_class,
        )  # fmt: skip
        settings = settings_of(
            GanSettings, None, "gan", steps=steps, width=width, latent_dim=latent_dim, batch_size=batch_size,
            discriminator_steps=discriminator_steps, learning_rate=learning_rate, seed=seed,
            augmentations=() if augmentations == "none" else words(augmentations),
        )  # fmt: skip
        where = resolve_device(device)
        splits = load_splits(
            **source.model_dump(exclude={"drop_test_duplicates", "balanced", "per_class"}),
            drop_duplicates=drop_test_duplicates,
            chosen=Chosen(balanced=balanced, per_class=per_class),
        )
        gan = train_gan(splits.train, out, settings, where)
        summary |= {"folder": str(out), "images": len(splits.train), "size": gan.size, "hash": gan.hash}
        summary["text"] = f"{settings.steps} steps on {len(splits.train)} images; {out}. Next: dinv gan sample {out}"


@group.command(cls=Command)
def sample(
    folder: Trained, out: RunFolder,
    run: Annotated[
        Path | None,
        typer.Option(help="As many images of each class as this run has to train on; `dinv train OUT` is then for it."),
    ] = None,
    per_class: Annotated[int | None, typer.Option(min=1, help="So many images of every class instead.")] = None,
    variants: Annotated[int | None, typer.Option(help="With --run: as many times so many. [default: 1]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images side by side. [default: 100]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the latents. [default: 0]")] = None,
    device: Device = "auto", restart: Restart = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Draw images of random latents into OUT/synthetic, as `dinv sample` writes them."""
    with command(as_json) as summary:
        from ..generator.device import resolve_device
        from ..pretrain.gan.sampling import check_folder, sample_for_run, sample_gan
        from ..pretrain.gan.settings import GanSampleSettings
        from ..pretrain.gan.weights import load_gan
        from ..run.stages import restart as delete

        if (run is None) == (per_class is None) or (run is None and variants is not None):
            raise UsageError("--run, --per-class: give one of them; --variants goes with --run.")
        settings = settings_of(
            GanSampleSettings, None, "gan", variants=variants, batch_size=batch_size, seed=seed
        )  # fmt: skip
        gan = load_gan(folder, resolve_device(device))
        check_folder(out)
        with hold(out):
            if restart:
                delete(out, "sample")
            if run is not None:
                count = sample_for_run(gan, run, out, settings)
            else:
                count = sample_gan(gan, dict.fromkeys(gan.class_names, per_class or 0), out, settings)
        summary |= {"run": str(out), "images": count, "folder": str(out / "synthetic")}
        summary["text"] = f"{count} images in {out / 'synthetic'}. " + (
            f"Next: dinv train {out}" if run is not None else "It is DATA: dinv inspect it."
        )


@group.command(cls=Command)
def invert(
    folder: Trained, data: Data, out: RunFolder,
    steps: Annotated[int | None, typer.Option(help="Adam steps of every start. [default: 500]")] = None,
    starts: Annotated[int | None, typer.Option(help="Starts of every image. [default: 4]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's at first. [default: 0.1]")] = None,
    pixel_weight: Annotated[float | None, typer.Option(help="lambda_pixel. [default: 1]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images side by side. [default: 25]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the starts. [default: 0]")] = None,
    device: Device = "auto", test: Test = None, size: Size = None, limit: Limit = None, test_limit: TestLimit = None,
    holdout: Holdout = None, data_seed: DataSeed = None, root: Root = None,
    drop_test_duplicates: DropDuplicates = False, allow_near_duplicates: AllowNear = False, balanced: Balanced = False,
    per_class: PerClass = None, restart: Restart = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Find the latent of every training image of DATA, and write its image into OUT/synthetic.

    Minimised is the distance in features of EfficientNet-Lite0 and in pixels (section B.2.1 of the paper).
    """
    with command(as_json) as summary:
        from ..generator.device import resolve_device
        from ..pretrain.gan.inversion import invert_data
        from ..pretrain.gan.sampling import check_folder
        from ..pretrain.gan.settings import GanInvertSettings
        from ..pretrain.gan.weights import load_gan
        from ..run.stages import restart as delete

        source = data_settings(
            data, test, size, limit, test_limit, holdout, data_seed, root, drop_test_duplicates, allow_near_duplicates,
            balanced, per_class,
        )  # fmt: skip
        settings = settings_of(
            GanInvertSettings, None, "gan", steps=steps, starts=starts, learning_rate=learning_rate,
            pixel_weight=pixel_weight, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        gan = load_gan(folder, resolve_device(device))
        check_folder(out)
        with hold(out):
            if restart:
                delete(out, "sample")
            found = invert_data(gan, source, out, settings)
        summary |= {"run": str(out), "folder": str(out / "synthetic"), "psnr": found}
        summary["text"] = f"mean PSNR to the images {found:.2f} dB; {out / 'synthetic'}. Next: dinv train {out}"
