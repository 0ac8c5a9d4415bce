"""The command that trains few-shot learners on CLIP: few-shot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .command import command, command_line, data_settings, hold, integers, settings_of, words
from .options import (
    AllowNear,
    Data,
    DataSeed,
    Device,
    DropDuplicates,
    Holdout,
    Join,
    Json,
    PerClass,
    Revision,
    Root,
    Size,
    Test,
    TestLimit,
)


def few_shot(
    data: Data,
    clip: Annotated[str, typer.Option(help="Folder of a transformers CLIP in safetensors, or a hub id.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. [default: runs/few-shot-<name of DATA>]")] = None,
    shots: Annotated[str | None, typer.Option(help="Training images of each class. [default: 1,2,4,8,16]")] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Some of zero-shot,coop,tip-adapter,tip-adapter-f,classifier-tuning. [default: all]"),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="none, a run, or DATA whose images are trained on too; NAME=... names it, {shots} and {seed} are "
            "filled in. Repeat it, or separate by commas. [default: none]",
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Each has shots of its own. [default: 0,1,2,3,4]")] = None,
    template: Annotated[
        list[str] | None, typer.Option(help="Prompt; several are averaged. [default: a photo of a {class}.]")
    ] = None,
    views: Annotated[int | None, typer.Option(help="Augmented encodings of an image. [default: 10]")] = None,
    coop_tokens: Annotated[int | None, typer.Option(help="Learned vectors of CoOp. [default: 16]")] = None,
    coop_epochs: Annotated[int | None, typer.Option(help="[default: 50, 100 or 200 by shots]")] = None,
    tip_epochs: Annotated[int | None, typer.Option(help="Of Tip-Adapter-F. [default: 20]")] = None,
    tuning_steps: Annotated[
        int | None, typer.Option(help="Of classifier tuning. [default: 30 x 800 x classes / 512]")
    ] = None,
    revision: Revision = None, test: Test = None, size: Size = None, per_class: PerClass = None,
    test_limit: TestLimit = None, holdout: Holdout = None, data_seed: DataSeed = None, root: Root = None,
    drop_test_duplicates: DropDuplicates = False, allow_near_duplicates: AllowNear = False,
    device: Device = "auto", join: Join = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Learn from a few images of each class of DATA with a frozen CLIP, with and without synthetic images."""
    with command(as_json) as summary:
        from ..config.few_shot import FewShotSettings
        from ..data.datasets import load_splits
        from ..data.selection import Chosen
        from ..generator.device import resolve_device
        from ..run.few_shot import run_few_shot
        from ..run.few_shot.additions import parse_additions
        from ..run.few_shot.outcome import record
        from ..run.few_shot.pages import accuracy_table, difference_lines, notes
        from ..train.few_shot.clip import Clip

        settings = settings_of(
            FewShotSettings, None, "few-shot", shots=integers(shots), methods=words(methods), seeds=integers(seeds),
            templates=tuple(template) if template else None, views=views, coop_tokens=coop_tokens,
            coop_epochs=coop_epochs, tip_epochs=tip_epochs, tuning_steps=tuning_steps,
        )  # fmt: skip
        source = data_settings(
            data, test, size, None, test_limit, holdout, data_seed, root, drop_test_duplicates, allow_near_duplicates,
            False, per_class,
        )  # fmt: skip
        given = [part for text in with_ or ["none"] for part in ([text] if Path(text).exists() else words(text) or ())]
        additions = parse_additions(given)
        folder = out or Path("runs") / f"few-shot-{Path(data.rpartition(':')[2]).stem or 'data'}"
        loaded = Clip.load(clip, resolve_device(device), revision)
        splits = load_splits(
            source.data, test=source.test, size=source.size, test_limit=source.test_limit, holdout=source.holdout,
            seed=source.seed, root=source.root, drop_duplicates=source.drop_test_duplicates,
            allow_near_duplicates=source.allow_near_duplicates, chosen=Chosen(per_class=source.per_class),
        )  # fmt: skip
        with hold(folder, join):
            found = run_few_shot(
                folder, splits, loaded, settings, additions, command=command_line(), root=root,
                allow_near_duplicates=allow_near_duplicates,
            )  # fmt: skip
        head, body = accuracy_table(found)
        lines = [" | ".join(row) for row in (head, *body)] + ["", *difference_lines(found), *notes(found)]
        summary |= {"folder": str(folder), **record(found)}
        summary["text"] = "\n".join([*lines, f"table and figure: {folder / 'few-shot'}.*"])
