"""The command that compares two sets of images: metrics."""

from __future__ import annotations

from typing import Annotated

import typer

from .command import command
from .options import Device, Json, Limit, Root, Size

Side = Annotated[str, typer.Argument(help="DATA, or an .npy file of features (N, D).")]


Groups = Annotated[
    str | None,
    typer.Option(
        help="Text file with the group of each image, such as its source: resampled together. Lines in the images' "
        "order, or id, tab, group. [default: the sources that a run recorded, else each image alone]"
    ),
]


def metrics(
    real: Side,
    generated: Side,
    extractor: Annotated[
        str, typer.Option(help="lite0, inception, dinov2, clip or timm:<model>; metric names carry it as a suffix.")
    ] = "lite0",
    weights: Annotated[str | None, typer.Option(help="Local file or folder of the extractor's weights.")] = None,
    k: Annotated[int, typer.Option(help="Neighbours of precision, recall, density and coverage.")] = 5,
    real_split: Annotated[str, typer.Option(help="train or test part of REAL.")] = "train",
    generated_split: Annotated[str, typer.Option(help="train or test part of GENERATED.")] = "train",
    size: Size = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Of subsets and intervals.")] = 0,
    real_groups: Groups = None,
    generated_groups: Groups = None,
    device: Device = "auto",
    root: Root = None,
    as_json: Json = False,
) -> None:
    """FID, KID, CMMD, precision, recall, density and coverage of GENERATED against REAL, with intervals."""
    with command(as_json) as summary:
        from ..errors import UsageError
        from ..measure.measuring import measure

        for name, value in {"--real-split": real_split, "--generated-split": generated_split}.items():
            if value not in ("train", "test"):
                raise UsageError(f"{name} {value}: give train or test")
        found = measure(
            real, generated, extractor=extractor, weights=weights, k=k, size=size, limit=limit, seed=seed,
            real_split="test" if real_split == "test" else "train",
            generated_split="test" if generated_split == "test" else "train", device=device, root=root,
            real_groups=real_groups, generated_groups=generated_groups,
        )  # fmt: skip
        summary |= {**found.record(), "text": found.table()}
