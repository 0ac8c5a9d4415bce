"""Variants that failed, drawn again: each from other random numbers of its own, until a judge is content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
Plan = Callable[[str, int, int], VariantPlan]  # of a source id, variant and attempt
Examine = Callable[[Tensor, Sequence[Row]], Tensor]  # images (B, 3, S, S) uint8, their rows => (B,) bool, which fail


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
    strengths: Strengths | None = None,
) -> None:
    """Draw those of the variants, by `job_name`, that the store of a run lacks, until `examine` lets them pass.

    Each has at most five tries. The last one is kept, with the attempt of its random stream and whether it `failed`;
    `made_by` goes into its row. Attempts are numbered beyond those of the safety checker, so no try repeats a drawing.
    A killed call goes on unit by unit, to the same bits. Call it inside `run_lock`. Raises as `sample`, and DiskError.
    """
    side = check(embeddings, generator, settings)
    store = redrawn_store(run, embeddings.class_names)
    there = {job for record in store.manifest.units().values() for job in record["ids"]}
    missing = sum(job not in there for job in jobs)
    if missing:
        require_room(run, missing * png_bytes(side) + SPARE_BYTES, f"{missing} images of {side} px, drawn again,")
    checker = load_safety_checker(generator) if settings.safety_checker else None
    row_of = {image_id: row for row, image_id in enumerate(embeddings.ids)}

    def plan(source_id: str, variant: int, attempt: int) -> VariantPlan:
        own = of_source(settings, strengths, source_id)
        return plan_variant(embeddings, generator, own, row_of[source_id], variant, attempt)

    def draw(plans: list[VariantPlan]) -> Tensor:
        parts = partial(in_parts, partial(draw_images, embeddings, generator, settings=settings), plans)
        return within_memory(parts, len(plans))[0]

    def describe(plan: VariantPlan) -> Row:
        return metadata_row(embeddings, generator, settings, plan) | {"attempt": plan.attempt, **made_by}

    with timed(store.manifest), track("draw again", missing) as advance:

        def draw_unit(unit: tuple[str, ...]) -> None:
            images, rows = _until_content(unit, plan, draw, describe, examine, side, checker)
            store.commit(images, rows)
            advance(len(unit))

        each_unit(run, jobs, store.manifest, settings.batch_size, draw_unit)


def _until_content(
    unit: Sequence[str],
    plan: Plan,
    draw: Callable[[list[VariantPlan]], Tensor],
    describe: Callable[[VariantPlan], Row],
    examine: Examine,
    side: int,
    checker: SafetyChecker | None,
) -> tuple[Tensor, list[Row]]:
    """The last drawing of each job, uint8 (B, 3, side, side), and its row."""
    images = torch.empty(len(unit), 3, side, side, dtype=torch.uint8)
    rows: list[Row] = [{} for _ in unit]
    left = list(range(len(unit)))
    for number in range(1, TRIES + 1):
        wanted = [parse_job(unit[place]) for place in left]
        first = number * ATTEMPTS  # the safety checker may take so many attempts for each drawing
        planned = partial(_planned, plan, wanted, first)
        plans, drawn, _ = draw_safely(planned, draw, [unit[place] for place in left], checker)
        images[left] = resize(to_uint8(drawn), side)
        for place, one in zip(left, plans, strict=True):
            rows[place] = describe(one)
        failed = examine(images[left], [rows[place] for place in left]).tolist()
        for place, again in zip(left, failed, strict=True):
            rows[place]["failed"] = again
        left = [place for place, again in zip(left, failed, strict=True) if again]
        if not left:
            break
    return images, rows


def _planned(plan: Plan, wanted: Sequence[tuple[str, int]], first: int, place: int, attempt: int) -> VariantPlan:
    return plan(*wanted[place], first + attempt)
