"""Variants that failed, drawn again: each from other random numbers of its own, until what examines them is content.

What copies a training image is mostly near to its own source, and is again with another seed alone. So each time that a
variant is found to copy it goes farther from its vector: `stronger`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...config.sampling import SampleSettings
from ...data.images import resize, to_uint8
from ...engine.disk import require_room
from ...engine.manifest import timed
from ...engine.memory import within_memory
from ...engine.progress import track
from ...engine.units import each_unit
from ...generator.generator import Generator
from ...generator.safety import ATTEMPTS, SafetyChecker, draw_safely, load_safety_checker
from ...invert.embeddings import Embeddings
from ...sample.drawing import in_parts
from ...sample.sampling import check, metadata_row
from ...sample.strengths import Strengths, of_source
from ...sample.synthetic import Row, SyntheticStore, parse_job
from ...sample.variants import VariantPlan, draw_images, plan_variant
from ..layout import REDRAWN
from ..room import SPARE_BYTES, png_bytes

TRIES = 5  # drawings of a variant after the first
NOISE_STEP = 0.1  # added to lambda at each level
FARTHEST = 4  # levels after which alpha is half
Plan = Callable[[str, int, int, int], VariantPlan]  # of a source id, variant, attempt and level


@dataclass(frozen=True)
class Faults:
    """What is wrong with B drawings."""

    failed: Tensor  # (B,) bool: they show another class than their label
    copied: Tensor  # (B,) bool: they copy a training image


Examine = Callable[[Tensor, Sequence[Row]], Faults]  # images (B, 3, S, S) uint8 and their rows


def stronger(settings: SampleSettings, level: int) -> SampleSettings:
    """Settings of stage 2 that draw farther from the vectors: level 0 is as they were, 4 the farthest in alpha.

    lambda grows by 0.1 with each level, up to 10; alpha goes a quarter of the way to 1/2, where a partner is as near as
    the source. One that leads away from the partner, or is at 1/2 or beyond, stays; so does that of a partner of
    another class, of which the label would then be.
    """
    alpha = settings.interpolation
    if 0 <= alpha < 0.5 and settings.partner != "other-class":
        alpha += (0.5 - alpha) * min(level, FARTHEST) / FARTHEST
    noise = settings.noise_strength
    if noise != "auto":
        noise = min(noise + NOISE_STEP * level, 10.0)
    return settings.model_copy(update={"noise_strength": noise, "interpolation": alpha})


def redrawn_store(run: Path, class_names: tuple[str, ...]) -> SyntheticStore:
    """The last drawing of each variant that was drawn again, below RUN/redrawn."""
    return SyntheticStore(run, class_names, REDRAWN)


def draw_again(
    run: Path,
    jobs: Sequence[str],
    embeddings: Embeddings,
    generator: Generator,
    settings: SampleSettings,
    examine: Examine,
    made_by: dict[str, str],
    levels: Mapping[str, int],
    strengths: Strengths | None = None,
) -> None:
    """Draw those of the variants, by `job_name`, that the store of a run lacks, until `examine` lets them pass.

    Each has at most five tries. The last one is kept, with the attempt of its random stream and whether it `failed` or
    `copied`; `made_by` goes into its row. Attempts are numbered beyond those of the safety checker, so no try repeats a
    drawing: try n is attempt 5 n and those up to the next. levels: how far from its vector a variant goes at first, 0
    where it is not named; it is one more after each drawing that `copied` (`stronger`).
    A killed call goes on unit by unit, to the same bits. Call it inside `run_lock`. Raises as `sample`, and DiskError.
    """
    side = check(embeddings, generator, settings)
    store = redrawn_store(run, embeddings.class_names)
    there = store.manifest.jobs()
    missing = sum(job not in there for job in jobs)
    if missing:
        require_room(run, missing * png_bytes(side) + SPARE_BYTES, f"{missing} images of {side} px, drawn again,")
    checker = load_safety_checker(generator) if settings.safety_checker else None

    def own(source_id: str, level: int) -> SampleSettings:
        return stronger(of_source(settings, strengths, source_id), level)

    def plan(source_id: str, variant: int, attempt: int, level: int) -> VariantPlan:
        row = embeddings.row_of[source_id]
        return plan_variant(embeddings, generator, own(source_id, level), row, variant, attempt)

    def draw(plans: list[VariantPlan]) -> Tensor:
        parts = partial(in_parts, partial(draw_images, embeddings, generator, settings=settings), plans)
        return within_memory(parts, len(plans))[0]

    def describe(plan: VariantPlan, level: int) -> Row:
        row = metadata_row(embeddings, generator, own(embeddings.ids[plan.source], level), plan)
        return row | {"attempt": plan.attempt, **made_by}

    with timed(store.manifest), track("draw again", missing) as advance:

        def draw_unit(unit: tuple[str, ...]) -> None:
            images, rows = _until_content(unit, levels, plan, draw, describe, examine, side, checker)
            store.commit(images, rows, storage="parquet" if settings.storage == "parquet" else "png")
            advance(len(unit))

        each_unit(run, jobs, store.manifest, settings.batch_size, draw_unit)


def _until_content(
    unit: Sequence[str],
    levels: Mapping[str, int],
    plan: Plan,
    draw: Callable[[list[VariantPlan]], Tensor],
    describe: Callable[[VariantPlan, int], Row],
    examine: Examine,
    side: int,
    checker: SafetyChecker | None,
) -> tuple[Tensor, list[Row]]:
    """The last drawing of each job, uint8 (B, 3, side, side), and its row."""
    images = torch.empty(len(unit), 3, side, side, dtype=torch.uint8)
    rows: list[Row] = [{} for _ in unit]
    level = [levels.get(job, 0) for job in unit]
    left = list(range(len(unit)))
    for number in range(1, TRIES + 1):
        wanted = [(*parse_job(unit[place]), level[place]) for place in left]
        first = number * ATTEMPTS  # the safety checker may take so many attempts for each drawing
        planned = partial(_planned, plan, wanted, first)
        plans, drawn, _ = draw_safely(planned, draw, [unit[place] for place in left], checker)
        images[left] = resize(to_uint8(drawn), side)
        for place, one in zip(left, plans, strict=True):
            rows[place] = describe(one, level[place])
        faults = examine(images[left], [rows[place] for place in left])
        for place, failed, copied in zip(left, faults.failed.tolist(), faults.copied.tolist(), strict=True):
            rows[place] |= {"failed": failed, "copied": copied}
            level[place] += copied
        left = [place for place in left if rows[place]["failed"] or rows[place]["copied"]]
        if not left:
            break
    return images, rows


def _planned(plan: Plan, wanted: Sequence[tuple[str, int, int]], first: int, place: int, attempt: int) -> VariantPlan:
    source_id, variant, level = wanted[place]
    return plan(source_id, variant, first + attempt, level)
