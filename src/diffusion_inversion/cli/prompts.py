"""`dinv sample OUT --prompts`: images from prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .command import command, hold, load, numbers, settings_of

Prompts = Annotated[
    str | None,
    typer.Option(
        help="Draw from prompts, not vectors: a file of lines class<TAB>prompt, or a template such as "
        "'a photo of a {class}'."
    ),
]
ClassesOf = Annotated[
    Path | None, typer.Option(help="With --prompts: the run whose classes a template is filled with.")
]


# Options of `dinv sample` that have another default with --prompts.
GeneratorOrMini = Annotated[
    str | None, typer.Option("--generator", help="[default: the one it was inverted with; with --prompts: mini]")
]
GuidanceOrPrompts = Annotated[
    str | None,
    typer.Option(
        "--guidance-scales",
        help="To mix, e.g. 1.5,2,3; 1 = off, paper's w + 1. [default: 1] [with --prompts: 7.5]",
    ),
]
SizeOrResolution = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        help="Side of the images in px. [default: the data set's own; with --prompts: the resolution]",
    ),
]


def sample_prompts(
    out: Path,
    prompts: str,
    classes_of: Path | None,
    generator: tuple[str, str | None, str, str],
    unused: Mapping[str, object],
    restart: bool,
    join: bool,
    as_json: bool,
    guidance_scales: str | None,
    **given: Any,
) -> None:
    """Draw from prompts into `out`; `unused` are options of vectors that must not be given."""
    with command(as_json) as summary:
        from ..config.settings import PromptSettings
        from ..run.forget import follow
        from ..run.images import adopt_record, read_record
        from ..run.stages import restart as delete
        from ..sample.prompting import check, draw_prompts, read_prompts
        from ..sample.synthetic import FOLDER, refused_drawings

        if wrong := [name for name, value in unused.items() if value is not None and value is not False]:
            raise UsageError(f"{', '.join(wrong)}: of learned vectors; leave out with --prompts.")
        record = read_record(classes_of) if classes_of is not None else None
        if classes_of is not None and record is None:
            raise UsageError(f"--classes-of {classes_of}: not a run folder (data.json is missing).")
        texts = read_prompts(prompts, record["class_names"] if record else ())
        settings = settings_of(PromptSettings, None, "sample", guidance_scales=numbers(guidance_scales), **given)
        loaded = load(*generator)
        check(loaded, settings, out)
        with hold(out, join, restart):
            if restart:
                delete(out, "sample")
            if classes_of is not None:  # with its images the folder can be trained with
                adopt_record(classes_of, out)
                follow(classes_of, out)
            draw_prompts(texts, loaded, out, settings)
        count = len(texts) * settings.variants
        summary |= {"run": str(out), "prompts": len(texts), "images": count, "folder": str(out / FOLDER)}
        summary |= {"blanked": refused_drawings(out)}
        summary["text"] = f"{count} images of {len(texts)} prompts in {out / FOLDER}. " + (
            f"Next: dinv train {out}" if classes_of is not None else "It is DATA: dinv inspect it."
        )
