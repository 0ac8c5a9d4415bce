"""The command that trains few-shot learners on CLIP: few-shot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import command_line, data_settings, hold
from .given import Fields, Given, words
from .options import Join
from .workers import by_workers

if TYPE_CHECKING:
    from ..config.few_shot import FewShotSettings
    from ..config.settings import DataSettings, GeneratorSettings
    from ..config.working import WorkerSettings

Source = Annotated[
    "Given[DataSettings]",
    Fields(
        only=(
            "data", "test", "size", "per_class", "test_limit", "holdout", "seed", "root", "drop_test_duplicates",
            "allow_near_duplicates", "groups",
        )
    ),
]  # fmt: skip
Learners = Annotated[
    "Given[FewShotSettings]",
    Fields(
        only=("shots", "methods", "seeds", "views", "coop_tokens", "coop_epochs", "tip_epochs", "tuning_steps"),
        unset={
            "methods": "all",
            "coop_epochs": "50, 100 or 200 by shots",
            "tuning_steps": "30 x 800 x classes / 512",
        },
    ),
]


def few_shot(
    *,
    clip: Annotated[str, typer.Option(help="mini-clip, folder of a transformers CLIP in safetensors, or a hub id.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. [default: runs/few-shot-<name of DATA>]")] = None,
    learners: Learners,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="none, a run, or DATA whose images are trained on too; NAME=... names it, {shots} and {seed} are "
            "filled in. Repeat it, or separate by commas. [default: none]",
        ),
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Prompt; several are averaged. [default: a photo of a {class}.]")
    ] = None,
    source: Source,
    where: Annotated[Given[GeneratorSettings], Fields(only=("revision", "device"))],
    join: Join = False,
    working: Given[WorkerSettings],
) -> dict[str, Any]:
    """Learn from a few images of each class of DATA with a frozen CLIP, with and without synthetic images."""
    from ..data.datasets import load_splits
    from ..data.selection import Chosen
    from ..generator.device import resolve_device
    from ..run.few_shot import run_few_shot
    from ..run.few_shot.additions import parse_additions
    from ..run.few_shot.outcome import record
    from ..run.few_shot.pages import accuracy_table, difference_lines, notes
    from ..train.few_shot.clip import Clip

    chosen = {**learners.values, "templates": tuple(template)} if template else learners.values
    settings = replace(learners, values=chosen).settings()
    data, computing = data_settings(source), where.settings()
    given = [part for text in with_ or ["none"] for part in ([text] if Path(text).exists() else words(text) or ())]
    additions = parse_additions(given)
    folder = out or Path("runs") / f"few-shot-{Path(data.data.rpartition(':')[2]).stem or 'data'}"
    if (done := by_workers(working, folder)) is not None:
        return done
    loaded = Clip.load(clip, resolve_device(computing.device), computing.revision)
    splits = load_splits(
        data.data, test=data.test, size=data.size, test_limit=data.test_limit, holdout=data.holdout, seed=data.seed,
        root=data.root, drop_duplicates=data.drop_test_duplicates, allow_near_duplicates=data.allow_near_duplicates,
        chosen=Chosen(per_class=data.per_class), groups=data.groups,
    )  # fmt: skip
    with hold(folder, join):
        found = run_few_shot(
            folder, splits, loaded, settings, additions, command=command_line(), root=data.root,
            allow_near_duplicates=data.allow_near_duplicates,
        )  # fmt: skip
    head, body = accuracy_table(found)
    lines = [" | ".join(row) for row in (head, *body)] + ["", *difference_lines(found), *notes(found)]
    text = "\n".join([*lines, f"table and figure: {folder / 'few-shot'}.*"])
    return {"folder": str(folder), **record(found), "text": text}
