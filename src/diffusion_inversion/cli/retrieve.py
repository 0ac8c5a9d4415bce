"""`dinv retrieve`: images of a pool that are nearest to those of DATA, a run folder for each k."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from .command import command, data_settings, hold, integers, settings_of
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

Pool = Annotated[str, typer.Option(help="Folder of images at any depth, parquet files, hf:<id>, or a built-in name.")]
Neighbours = Annotated[
    str | None, typer.Option("--k", help="Neighbours of each training image, a set for each number. [default: 10]")
]
ExtractorName = Annotated[
    str | None,
    typer.Option("--extractor", help="Says what is near; as of `dinv metrics`, such as clip. [default: lite0]"),
]
ComparedSize = Annotated[
    int | None,
    typer.Option("--image-size", help="Side in px that is compared and saved. [default: the training images' own]"),
]


def retrieve(
    data: Data, pool: Pool, out: Annotated[Path, typer.Option(help="Folder; the set of each k is a run folder in it.")],
    k: Neighbours = None, extractor: ExtractorName = None,
    weights: Annotated[str | None, typer.Option(help="Local file or folder of the extractor's weights.")] = None,
    image_size: ComparedSize = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in the network at once. [default: 64]")] = None,
    block_size: Annotated[int | None, typer.Option(help="Images of the pool in memory at once. [default: 512]")] = None,
    device: Device = "auto", test: Test = None, size: Size = None, limit: Limit = None, test_limit: TestLimit = None,
    holdout: Holdout = None, data_seed: DataSeed = None, root: Root = None,
    drop_test_duplicates: DropDuplicates = False, allow_near_duplicates: AllowNear = False, balanced: Balanced = False,
    per_class: PerClass = None, restart: Restart = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Find the images of a pool that are nearest to the training images of DATA: what no generator is needed for."""
    with command(as_json) as summary:
        from ..config.settings import RetrieveSettings
        from ..data.sources import absolute
        from ..run.retrieval import retrieve_sets

        source = data_settings(
            data, test, size, limit, test_limit, holdout, data_seed, root, drop_test_duplicates, allow_near_duplicates,
            balanced, per_class,
        )  # fmt: skip
        settings = settings_of(
            RetrieveSettings, None, "retrieve", pool=absolute(pool), k=integers(k), extractor=extractor,
            weights=weights, image_size=image_size, batch_size=batch_size, block_size=block_size,
        )  # fmt: skip
        with ExitStack() as held:
            for number in settings.k:
                held.enter_context(hold(out / f"k{number}", restart=restart))
            found = retrieve_sets(out, source, settings, device=device, anew=restart)
        summary |= {"sets": {str(number): {"run": str(out / f"k{number}"), **one} for number, one in found.items()}}
        left_out = next(iter(found.values()))["left_out"]
        lines = []
        for number, one in found.items():
            run = out / f"k{number}"
            counts = f"{one['images']} images, of {one['asked_for']} asked for"
            lines.append(f"k = {number}: {counts}, in {run / 'synthetic'}. Next: dinv train {run}")
        lines.append("Left out of the pool: " + ", ".join(f"{count} {why}" for why, count in left_out.items()) + ".")
        summary["text"] = "\n".join(lines)
