"""Files of small sweeps over a toy checkpoint, and the command that does them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import dinv
from harness import Bench

HEAD = """
title = "{title}"
generator = "{toy}"
own_size = {own_size}
[data]
data = "{data}"
[invert]
steps = {steps}
init = "random"
eval_draws = 1
[sample]
inference_steps = 2
variants = {variants}
[train]
architecture = "resnet20"
steps = {train_steps}
batch_size = 4
seeds = {seeds}
arms = {arms}
"""


def write_sweep(
    file: Path,
    bench: Bench,
    varied: str,
    *,
    data: Path | None = None,
    steps: int = 1,
    variants: int = 2,
    train_steps: int = 1,
    seeds: Sequence[int] = (0,),
    arms: Sequence[str] = ("synthetic",),
    own_size: bool = False,
) -> Path:
    """Write a sweep that takes seconds, and after its settings what it varies and shows: [grid], [[cases]], ..."""
    head = HEAD.format(
        title=file.stem, toy=bench.checkpoint, own_size=json.dumps(own_size), data=data or bench.data, steps=steps,
        variants=variants, train_steps=train_steps, seeds=json.dumps(seeds), arms=json.dumps(arms),
    )  # fmt: skip
    file.write_text(head + varied)
    return file


def sweep(file: Path, out: Path, *options: object) -> Any:
    """`dinv sweep`, as `dinv` of command_line."""
    return dinv("sweep", file, "--out", out, "--device", "cpu", "--dtype", "float32", *options)
