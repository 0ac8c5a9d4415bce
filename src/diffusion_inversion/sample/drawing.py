"""Drawing what a store of synthetic images lacks: unit by unit, judged, and in parts where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..config.sampling import Storage
from ..data.images import resize, to_uint8
from ..engine.memory import within_memory
from ..engine.progress import already, track
from ..engine.signals import asked_to_stop
from ..engine.units import each_unit, unit_name
from ..generator.safety import SafetyChecker, draw_safely
from .packed import batches_of
from .synthetic import Row, SyntheticStore, job_name, parse_job

Item = TypeVar("Item")  # what one image is drawn from
Drawn: TypeAlias = Float[Tensor, "batch 3 height width"]  # in [-1, 1], on the CPU


@runtime_checkable
class Amounts(Protocol):
    """How many images: of each source, and side by side."""

    @property
    def variants(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


def draw_missing(
    store: SyntheticStore,
    source_ids: Collection[str],
    settings: Amounts,
    image_size: int,
    checker: SafetyChecker | None,
    *,
    plan: Callable[[str, int, int], Item],
    draw: Callable[[list[Item]], Drawn],
    describe: Callable[[Item], Row],
    counts: Mapping[str, int] | None = None,
    balance: str = "none",
    storage: Storage = "png",
) -> None:
    """Draw the variants that `store` lacks of every source, commit them at `image_size` px, and mark it as complete.

    `counts` says how many each source gets, by the rule `balance`; without it all get `settings.variants`.

    `plan(source_id, variant, attempt)` decides on one image, `draw` draws a batch, `describe` gives an image's row.
    Call it inside `run_lock`. Raises PartialError (the checker blanks an image every time, or it is not finite),
    UsageError (not even one image fits into memory).
    """
    asked = dict.fromkeys(source_ids, settings.variants) if counts is None else counts
    most = max(asked.values(), default=0)
    jobs = [job_name(source, variant) for variant in range(most) for source in source_ids if variant < asked[source]]
    draw_jobs(
        store, jobs, settings.batch_size, image_size, checker, plan=plan, draw=draw, describe=describe, storage=storage
    )
    store.finish(settings.variants, counts, balance)


def draw_jobs(
    store: SyntheticStore,
    jobs: Sequence[str],
    batch_size: int,
    image_size: int,
    checker: SafetyChecker | None,
    *,
    plan: Callable[[str, int, int], Item],
    draw: Callable[[list[Item]], Drawn],
    describe: Callable[[Item], Row],
    storage: Storage = "png",
) -> None:
    """Draw those of the images, by `job_name`, that `store` lacks; as `draw_missing`.

    A unit is a batch, or several where `storage` is parquet, drawn one after the other: with the same bits. What was
    drawn when a stop was asked for is committed.
    """
    left = set(jobs) - store.manifest.jobs()
    already("sample", len(jobs) - len(left), len(jobs), "images")
    room = batch_size
    with track("sample", len(left)) as advance:

        def draw_unit(unit: tuple[str, ...]) -> None:
            nonlocal room
            before = store.manifest.dropped().get(unit_name(unit))
            side_by_side = batch_size if storage == "parquet" else len(unit)
            # A unit that is drawn again is computed as it was, for the same bits: each of its drawings in turn.
            once = room if before is None else before.get("at_once", side_by_side)
            used: list[int] = []  # images at a time, of each drawing

            def together(items: list[Item]) -> Drawn:
                nonlocal room
                most = once if isinstance(once, int) else once[min(len(used), len(once) - 1)]
                most = min([most, *used[-1:]])
                first = min(most, len(items))
                drawn, taken = within_memory(partial(in_parts, draw, items), first)
                if taken < first:
                    most = room = taken  # for the units that follow too
                used.append(most)
                return drawn

            images, rows, blanked = [], [], 0
            for start in range(0, len(unit), side_by_side):
                part = unit[start : start + side_by_side]
                drawn, items, refused = draw_batch(part, together)
                images.append(resize(to_uint8(drawn), image_size))
                rows += [describe(item) for item in items]
                blanked += refused
                advance(len(items))
                if asked_to_stop():  # what is left of the unit is cut at the same batches, hence has the same bits
                    break
            short = None
            if used[-1] < min(side_by_side, len(rows)):
                short = used if used[0] > used[-1] else used[0]
            store.commit(torch.cat(images), rows, at_once=short, blanked=blanked, storage=storage)

        def draw_batch(unit: tuple[str, ...], together: Callable[[list[Item]], Drawn]) -> tuple[Drawn, list[Item], int]:
            wanted = [parse_job(job) for job in unit]
            items, images, blanked = draw_safely(
                lambda place, attempt: plan(*wanted[place], attempt), together, unit, checker
            )
            return images, items, blanked

        batches = batches_of(batch_size, image_size) if storage == "parquet" else 1
        each_unit(store.run, jobs, store.manifest, batches * batch_size, draw_unit)


def in_parts(draw: Callable[[list[Item]], Drawn], items: list[Item], at_once: int) -> Drawn:
    """What `draw` gives for the items, with `at_once` of them in memory at a time."""
    return torch.cat([draw(items[start : start + at_once]) for start in range(0, len(items), at_once)])
