"""The commands that measure: `dinv bench real-size`, `dinv bench build-sd14`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command import Command, command, integers
from .options import Dtype, Json

bench = typer.Typer(help="Measurements of this machine; they take minutes and gigabytes.", no_args_is_help=True)


@bench.command("real-size", cls=Command)
def real_size(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Diffusers folder. [default: SD 1.4's architecture with random weights, made when missing]"),
    ] = None,
    sizes: Annotated[str, typer.Option(help="Sides in px, ascending; the first is compared.")] = "128,256,512",
    repeats: Annotated[int, typer.Option(help="Rounds; the median counts.", min=1)] = 5,
    batch_size: Annotated[int, typer.Option(help="Images side by side in the comparison.", min=1)] = 4,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Time and memory of learning and sampling at Stable Diffusion's size, against the plain diffusers loop.

    Everything is measured in turn in one run, on the CPU: about 5 minutes and 12 GB on 2 idle cores. The checkpoint
    takes 4.3 GB below ~/.cache/diffusion-inversion. On a busy machine set OMP_NUM_THREADS=1: threads that wait for one
    another count as CPU seconds.
    """
    with command(as_json) as summary:
        from ..errors import UsageError
        from ..run.bench.real_size import Plan, table
        from ..run.bench.real_size import real_size as measure
        from ..run.bench.sd14 import build_sd14, default_folder

        if checkpoint is not None and not checkpoint.is_dir():
            raise UsageError(
                f"--checkpoint {checkpoint}: no such folder. `dinv bench build-sd14 {checkpoint}` makes one."
            )
        folder = checkpoint or build_sd14(default_folder())
        result = measure(folder, Plan(integers(sizes) or (), batch_size, repeats, dtype))
        summary |= {**result, "checkpoint": str(folder), "text": table(result)}


@bench.command("build-sd14", cls=Command)
def build(
    folder: Annotated[Path | None, typer.Argument(help="[default: ~/.cache/diffusion-inversion/sd14-random]")] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Write Stable Diffusion 1.4's architecture with random weights: 4.3 GB, for time and memory, never quality."""
    with command(as_json) as summary:
        from ..run.bench.sd14 import build_sd14, default_folder

        made = build_sd14(folder or default_folder(), seed=seed)
        summary |= {"folder": str(made), "text": str(made)}
