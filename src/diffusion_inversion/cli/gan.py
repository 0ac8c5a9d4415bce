"""The commands of the GAN baseline: `dinv gan train`, `dinv gan sample`, `dinv gan invert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .command import add, data_settings, hold
from .given import Given
from .options import Device, Restart

if TYPE_CHECKING:
    from ..config.commands import GanInvertSettings, GanSampleSettings, GanSettings
    from ..config.settings import DataSettings

group = typer.Typer(help="A small conditional GAN: what the paper compares vectors with.", no_args_is_help=True)

Trained = Annotated[
    Path, typer.Argument(help="Folder of `dinv gan train`, a safetensors file of its layout, or a BigGAN's folder.")
]
RunFolder = Annotated[Path, typer.Option("--out", help="Run folder to write.")]


def train(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the weights, the state and the log.")],
    where: Device,
    source: Given[DataSettings],
    training: Given[GanSettings],
) -> dict[str, Any]:
    """Train a GAN on the training images of DATA, of 32 or 64 px (--size). DATA is parted as `dinv run` does."""
    from ..generator.device import resolve_device
    from ..pretrain.gan.training import train_gan
    from ..run.images import load_as

    data, settings = data_settings(source), training.settings()
    device = resolve_device(where.settings().device)
    images = load_as(data).train
    gan = train_gan(images, out, settings, device)
    text = f"{settings.steps} steps on {len(images)} images. Next: dinv gan sample {out} --run RUN --out OUT"
    return {"folder": str(out), "images": len(images), "size": gan.size, "hash": gan.hash, "text": text}


def sample(
    *,
    folder: Trained,
    out: RunFolder,
    run: Annotated[
        Path | None,
        typer.Option(help="As many images of each class as this run has to train on; `dinv train OUT` then takes it."),
    ] = None,
    per_class: Annotated[int | None, typer.Option(min=1, help="So many images of every class instead.")] = None,
    where: Device,
    drawing: Given[GanSampleSettings],
    restart: Restart = False,
) -> dict[str, Any]:
    """Draw images of random latents into OUT/synthetic, as `dinv sample` writes them."""
    from ..generator.device import resolve_device
    from ..pretrain.gan.sampling import check_folder, sample_for_run, sample_gan
    from ..pretrain.gan.weights import load_gan

    if (run is None) == (per_class is None) or (run is None and "variants" in drawing.values):
        raise UsageError("--run, --per-class: give one of them; --variants goes with --run.")
    settings = drawing.settings()
    gan = load_gan(folder, resolve_device(where.settings().device))
    check_folder(out)
    with hold(out, restart=restart):
        if run is not None:
            count = sample_for_run(gan, run, out, settings, anew=restart)
        else:
            count = sample_gan(gan, dict.fromkeys(gan.class_names, per_class or 0), out, settings, anew=restart)
    made = out / "synthetic"
    text = f"{count} images in {made}. " + (
        f"Next: dinv train {out}" if run is not None else "It is DATA: dinv inspect it."
    )
    return {"run": str(out), "images": count, "folder": str(made), "text": text}


def invert(
    *,
    folder: Trained,
    out: RunFolder,
    where: Device,
    source: Given[DataSettings],
    inverting: Given[GanInvertSettings],
    restart: Restart = False,
) -> dict[str, Any]:
    """Find the latent of every training image of DATA, and write its image into OUT/synthetic.

    Minimised is the distance in features of EfficientNet-Lite0 and in pixels (section B.2.1 of the paper).
    """
    from ..generator.device import resolve_device
    from ..pretrain.gan.inversion import invert_data
    from ..pretrain.gan.sampling import check_folder
    from ..pretrain.gan.weights import load_gan

    data, settings = data_settings(source), inverting.settings()
    gan = load_gan(folder, resolve_device(where.settings().device))
    check_folder(out)
    with hold(out, restart=restart):
        found = invert_data(gan, data, out, settings, anew=restart)
    made = out / "synthetic"
    text = f"mean PSNR to the images {found:.2f} dB; {made}. Next: dinv train {out}"
    return {"run": str(out), "folder": str(made), "psnr": found, "text": text}


for command in (train, sample, invert):
    add(group, command)
