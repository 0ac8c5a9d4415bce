"""Drawing what a store of synthetic images lacks: unit by unit, judged, and in parts where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.images import resize, to_uint8
from ..engine.memory import within_memory
from ..engine.progress import already, track
from ..engine.units import each_unit, unit_name
from ..generator.safety import SafetyChecker, draw_safely
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
) -> None:
    """Draw the variants that `store` lacks of every source, commit them at `image_size` px, and mark it as complete.

    `counts` says how many each source gets, by the rule `balance`; without it all get `settings.variants`.

    `plan(source_id, variant, attempt)` decides on one image, `draw` draws a batch, `describe` gives an image's row.
    Call it inside `run_lock`. Raises PartialError (the checker blanks an image every time), UsageError (not even one
    image fits into memory).
    """
    asked = dict.fromkeys(source_ids, settings.variants) if counts is None else counts
    most = max(asked.values(), default=0)
    jobs = [job_name(source, variant) for variant in range(most) for source in source_ids if variant < asked[source]]
    draw_jobs(store, jobs, settings.batch_size, image_size, checker, plan=plan, draw=draw, describe=describe)
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
) -> None:
    """Draw those of the images, by `job_name`, that `store` lacks; as `draw_missing`."""
    left = set(jobs).difference(*(unit["ids"] for unit in store.manifest.units().values()))
    already("sample", len(jobs) - len(left), len(jobs), "images")
    room = batch_size
    with track("sample", len(left)) as advance:

        def draw_unit(unit: tuple[str, ...]) -> None:
            nonlocal room
            wanted = [parse_job(job) for job in unit]
            # A unit that is drawn again is computed as it was, for the same bits.
            before = store.manifest.dropped().get(unit_name(unit))
            at_once = min(room, len(unit)) if before is None else before.get("at_once", len(unit))

            def together(items: list[Item]) -> Drawn:
                nonlocal at_once, room
                first = min(at_once, len(items))
                drawn, taken = within_memory(partial(in_parts, draw, items), first)
                if taken < first:
                    at_once = room = taken  # for the units that follow too
                return drawn

            items, images, blanked = draw_safely(
                lambda place, attempt: plan(*wanted[place], attempt), together, unit, checker
            )
            rows = [describe(item) for item in items]
            store.commit(resize(to_uint8(images), image_size), rows, at_once=at_once, blanked=blanked)
            advance(len(items))

        each_unit(store.run, jobs, store.manifest, batch_size, draw_unit)


def in_parts(draw: Callable[[list[Item]], Drawn], items: list[Item], at_once: int) -> Drawn:
    """What `draw` gives for the items, with `at_once` of them in memory at a time."""
    return torch.cat([draw(items[start : start + at_once]) for start in range(0, len(items), at_once)])
