"""`dinv sample OUT --prompts`: images from prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .command import hold, load
from .given import Given
from .workers import by_workers

if TYPE_CHECKING:
    from ..config.sampling import PromptSettings
    from ..config.settings import GeneratorSettings
    from ..config.working import WorkerSettings

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


def draw(
    out: Path,
    prompts: str,
    classes_of: Path | None,
    where: Given[GeneratorSettings],
    given: Given[PromptSettings],
    restart: bool,
    join: bool,
    working: Given[WorkerSettings],
) -> dict[str, Any]:
    """Draw from prompts into `out`."""
    from ..run.forget import follow
    from ..run.images import adopt_record, read_record
    from ..run.stages import make_way
    from ..sample.prompting import check, draw_prompts, read_prompts
    from ..sample.synthetic import FOLDER, refused_drawings

    record = read_record(classes_of) if classes_of is not None else None
    if classes_of is not None and record is None:
        raise UsageError(f"--classes-of {classes_of}: not a run folder (data.json is missing).")
    texts = read_prompts(prompts, record["class_names"] if record else ())
    settings = given.settings()
    if (done := by_workers(working, out, restart)) is not None:
        return done
    loaded = load(where.settings())
    _, side = check(loaded, settings, out)
    with hold(out, join, restart):
        make_way({out: len(texts) * settings.variants}, side, anew=restart)
        if classes_of is not None:  # with its images the folder can be trained with
            adopt_record(classes_of, out)
            follow(classes_of, out)
        draw_prompts(texts, loaded, out, settings)
    count, folder = len(texts) * settings.variants, out / FOLDER
    next_one = f"Next: dinv train {out}" if classes_of is not None else "It is DATA: dinv inspect it."
    return {
        "run": str(out), "prompts": len(texts), "images": count, "folder": str(folder),
        "blanked": refused_drawings(out),
        "text": f"{count} images of {len(texts)} prompts in {folder}. {next_one}",
    }  # fmt: skip
