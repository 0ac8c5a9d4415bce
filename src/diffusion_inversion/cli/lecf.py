"""`dinv lecf`: images of many sentences of each class, those kept that CLIP is sure of; a run folder a threshold."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import data_settings, hold, load
from .given import Fields, Given
from .options import Restart

if TYPE_CHECKING:
    from ..config.commands import LecfSettings
    from ..config.sampling import PromptSettings
    from ..config.settings import DataSettings, GeneratorSettings


def lecf(
    *,
    out: Annotated[Path, typer.Option(help="Folder; the set of each threshold is a run folder in it.")],
    filtering: Given[LecfSettings],
    drawing: Annotated[Given[PromptSettings], Fields(unset={"image_size": "DATA's, at most the resolution"})],
    where: Given[GeneratorSettings],
    source: Given[DataSettings],
    restart: Restart = False,
) -> dict[str, Any]:
    """Draw many sentences of each class of DATA and keep the images that CLIP is sure of: what LECF does."""
    from ..data.sources import default_root
    from ..generator.device import resolve_device
    from ..run.lecf.sentences import Language
    from ..run.lecf.stage import DRAWN, folder_of, lecf_sets
    from ..train.few_shot.clip import Clip

    settings, prompting, data = filtering.settings(), drawing.settings(), data_settings(source)
    computing = where.settings()
    clip = Clip.load(settings.clip, resolve_device(computing.device), settings.clip_revision)
    language = None if settings.language is None else Language.load(settings.language)
    loaded = load(computing)
    root = default_root(data.root)
    with ExitStack() as held:
        for folder in (out / DRAWN, *(folder_of(out, one) for one in settings.thresholds)):
            held.enter_context(hold(folder, restart=restart))
        found = lecf_sets(out, data, settings, prompting, loaded, clip, language, cache=root / "features", anew=restart)
    lines = [f"{next(iter(found.values()))['drawn']} images in {out / DRAWN}, judged by {clip.name}."]
    for threshold, one in found.items():
        counts = f"{one['images']} images, of {one['passing']} that pass"
        lines.append(f"threshold {threshold:g}: {counts}. Next: dinv train {one['run']}")
    sets = {f"{threshold:g}": one for threshold, one in found.items()}
    return {"drawn": str(out / DRAWN), "clip": clip.name, "sets": sets, "text": "\n".join(lines)}
