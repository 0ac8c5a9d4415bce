"""Strips of variants (paper, figures 9 and 10): what more interpolation, and more noise, make of one vector."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.commands import StripsSettings
from ..config.sampling import SampleSettings
from ..data.images import LabelledImages, to_uint8
from ..engine.ledger import Ledger
from ..engine.lock import briefly
from ..engine.memory import within_memory
from ..engine.progress import track
from ..errors import UsageError
from ..generator.generator import Generator
from ..generator.safety import load_safety_checker
from ..invert.embeddings import Embeddings
from ..sample.drawing import in_parts
from ..sample.sampling import check
from ..sample.variants import VariantPlan, draw_images, plan_variant
from .drawn_with import recorded_sampling
from .layout import STRIPS_PICTURE
from .reconstructions import spread_over_classes
from .report.figures import png, short, without_tex

_CELL = 0.72  # inches
# Settings that make no other strip: its own strengths, how many images there are, how they are kept and drawn.
_INDIFFERENT = {
    *("interpolation", "noise_strength", "mixture_size", "variants", "balance"),
    *("image_size", "storage", "strict", "batch_size", "safety_checker"),
}


def draw_strips(
    run: Path, embeddings: Embeddings, generator: Generator, images: LabelledImages, asked: StripsSettings
) -> bytes:
    """Draw the strips of some sources, keep the picture for the report, and return it: a PNG.

    In a row everything random is the same: the start noise, the partner, the direction of the Gaussian noise. Along
    the first strip alpha grows at lambda = 0, from the source's own vector to the partner's, along the second lambda
    at alpha = 0. What is there already is not drawn again. Raises what `sample` raises, and UsageError where DATA has
    not the images any more that have vectors.
    """
    settings = _sampling(run)
    check(embeddings, generator, settings)
    rows = spread_over_classes(embeddings.labels.tolist(), asked.images)
    if lacking := [embeddings.ids[row] for row in rows if embeddings.ids[row] not in images.row_of]:
        raise UsageError(f"{run}: DATA does not hold {lacking[0]} any more; `dinv forget` takes it out of the run.")
    versions = [embeddings.versions[row] for row in rows]
    note = {
        "asked": asked.model_dump(mode="json", exclude={"device"}),
        "versions": versions,
        "settings": _described(settings),
    }
    with briefly(run, "strips"):
        ledger = Ledger(run)
        if ledger.note(STRIPS_PICTURE) == note and (kept := ledger.read(STRIPS_PICTURE)) is not None:
            return kept
        plans = [_planned(embeddings, generator, settings, asked, row) for row in rows]
        drawn = _drawn(embeddings, generator, settings, plans)
        partners = [embeddings.ids[of_row[0].partner] for of_row in plans]
        picture = _picture(
            [images.images[images.row_of[embeddings.ids[row]]] for row in rows],
            drawn,
            [images.images[images.row_of[partner]] if partner in images.row_of else None for partner in partners],
            [embeddings.class_names[label] for label in embeddings.labels[rows].tolist()],
            asked,
        )
        ledger.drop(STRIPS_PICTURE)
        ledger.commit(STRIPS_PICTURE, picture, note)
    return picture


def read_strips(run: Path, embeddings: Embeddings) -> bytes | None:
    """The picture that `draw_strips` kept; None where there is none of the vectors that are there now.

    And, with a note on stderr, where it was drawn with other settings than the images. A note of an earlier version
    names none: it is taken for one of the defaults.
    """
    ledger = Ledger(run)
    note = ledger.note(STRIPS_PICTURE)
    if note is None or not {*note["versions"]} <= {*embeddings.versions}:
        return None
    if note.get("settings", {}) != _described(_sampling(run)):
        cause = "drawn with other settings than the images are now, or by an earlier version"
        print(f"note: {run / STRIPS_PICTURE}: {cause}; `dinv strips {run}` draws it again", file=sys.stderr, flush=True)
        return None
    return ledger.read(STRIPS_PICTURE)


def _sampling(run: Path) -> SampleSettings:
    """The settings of stage 2, the defaults before it, as far as strips can have them."""
    settings = (recorded_sampling(run) or SampleSettings()).model_copy(update={"shared_noise": 0.0})
    if settings.interpolation_kind == "dirichlet":  # it has no strength that leads from one vector to another
        settings = settings.model_copy(update={"interpolation_kind": "lerp"})
    return settings


def _described(settings: SampleSettings) -> dict[str, Any]:
    """What a strip depends on and is not the default, as JSON data."""
    return settings.model_dump(mode="json", exclude_defaults=True, exclude=_INDIFFERENT)


def _planned(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, asked: StripsSettings, row: int
) -> list[VariantPlan]:
    """The cells of one source: those of alpha, then those of lambda."""
    strengths = [{"interpolation": alpha, "noise_strength": 0.0} for alpha in asked.interpolations]
    strengths += [{"interpolation": 0.0, "noise_strength": noise} for noise in asked.noise_strengths]
    return [plan_variant(embeddings, generator, settings.model_copy(update=one), row, 0) for one in strengths]


def _drawn(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, plans: Sequence[Sequence[VariantPlan]]
) -> list[Tensor]:
    """uint8 (cells, 3, R, R) of each source; white where the safety checker would blank a cell."""
    checker = load_safety_checker(generator) if settings.safety_checker else None
    draw = partial(draw_images, embeddings, generator, settings=settings)
    drawn = []
    with track("strips", sum(map(len, plans))) as advance:
        for cells in plans:
            images = within_memory(partial(in_parts, draw, list(cells)), min(len(cells), settings.batch_size))[0]
            # A cell that is drawn from other random numbers is no part of its strip: it stays white.
            if checker is not None:
                images[checker.flagged(images)] = 1.0
            drawn.append(to_uint8(images))
            advance(len(cells))
    return drawn


@without_tex
def _picture(
    sources: Sequence[Tensor],
    drawn: Sequence[Tensor],
    partners: Sequence[Tensor | None],
    classes: Sequence[str],
    asked: StripsSettings,
) -> bytes:
    """PNG: a row for each source, which is seen at the left; its partner stands between the strips."""
    from matplotlib.figure import Figure

    heads = ["real", *(f"\N{GREEK SMALL LETTER ALPHA} {alpha:g}" for alpha in asked.interpolations), "partner"]
    heads += [f"\N{GREEK SMALL LETTER LAMDA} {noise:g}" for noise in asked.noise_strengths]
    figure = Figure(figsize=(_CELL * len(heads) + 1, (_CELL + 0.02) * len(sources) + 0.3), layout="constrained")
    axes: Any = figure.subplots(len(sources), len(heads), squeeze=False)
    split = len(asked.interpolations)
    for line, source, cells, partner, name in zip(axes, sources, drawn, partners, classes, strict=True):
        for axis, image in zip(line, [source, *cells[:split], partner, *cells[split:]], strict=True):
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
            if image is not None:
                axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        line[0].set_ylabel(short(name), rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=9)
    return png(figure)
