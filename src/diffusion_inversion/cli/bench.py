"""The commands that measure: `dinv bench real-size`, `dinv bench build-sd14`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .command import add
from .given import words
from .options import DeviceAndType

bench = typer.Typer(help="Measurements of this machine; they take minutes and gigabytes.", no_args_is_help=True)


def real_size(
    *,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Diffusers folder. [default: SD 1.4's architecture with random weights, made when missing]"),
    ] = None,
    sizes: Annotated[str, typer.Option(help="Sides in px, ascending; the first is compared.")] = "128,256,512",
    repeats: Annotated[int, typer.Option(help="Rounds; the median counts.", min=1)] = 5,
    batch_size: Annotated[int, typer.Option(help="Images side by side in the comparison.", min=1)] = 4,
    where: DeviceAndType,
) -> dict[str, Any]:
    """Time and memory of learning and sampling at Stable Diffusion's size, against the plain diffusers loop.

    Everything is measured in turn in one run: about 5 minutes and 12 GB on 2 idle cores. The checkpoint takes 4.3 GB
    below ~/.cache/diffusion-inversion. Ratios are of CPU seconds, on a GPU of seconds on the clock. On a busy
    machine set OMP_NUM_THREADS=1: threads that wait for one another count as CPU seconds.
    """
    from ..run.bench.real_size import Plan, check, table
    from ..run.bench.real_size import real_size as measure
    from ..run.bench.sd14 import ARCHITECTURE, build_sd14, default_folder

    if checkpoint is not None and not checkpoint.is_dir():
        raise UsageError(f"--checkpoint {checkpoint}: no such folder. `dinv bench build-sd14 {checkpoint}` makes one.")
    chosen = where.settings()
    plan = Plan(_sides(sizes), batch_size, repeats, chosen.dtype, chosen.device)
    check(checkpoint or ARCHITECTURE, plan)
    folder = checkpoint or build_sd14(default_folder())
    result = measure(folder, plan)
    return {**result, "checkpoint": str(folder), "text": table(result)}


def _sides(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words(text))
    except ValueError as error:
        raise UsageError(f"--sizes {text}: give whole numbers with commas, such as 128,256.") from error


def build(
    folder: Annotated[Path | None, typer.Argument(help="[default: ~/.cache/diffusion-inversion/sd14-random]")] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> dict[str, Any]:
    """Write Stable Diffusion 1.4's architecture with random weights: 4.3 GB, for time and memory, never quality."""
    from ..run.bench.sd14 import build_sd14, default_folder

    made = build_sd14(folder or default_folder(), seed=seed)
    return {"folder": str(made), "text": str(made)}


add(bench, real_size, "real-size")
add(bench, build, "build-sd14")
