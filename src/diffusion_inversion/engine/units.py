"""Units of work: which are left, and each of them done once, whoever does it."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from .lock import TakenOverError, claim, is_shared, same_jobs
from .manifest import Manifest
from .object_store import POLL, exchange, is_elsewhere, lease
from .signals import finishing

_POLL = 0.2  # seconds between two looks at units that other processes hold


def unit_name(jobs: Sequence[str]) -> str:
    """A name that depends on the jobs alone: 16 hex digits."""
    return hashlib.sha256("\0".join(jobs).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def plan(jobs: Sequence[str], manifest: Manifest, size: int) -> list[tuple[str, ...]]:
    """The units that are left, at most `size` jobs each.

    Dropped units come first, with the jobs they had: numbers computed in a batch depend a little on its shape, so a
    unit that is done again in its old shape gives the same bits. The other jobs follow in their order. Committed
    units are whole slices of that order, so the slices of the rest do not depend on what is committed already.
    """
    wanted = set(jobs) - manifest.jobs()
    units = []
    for record in manifest.dropped().values():
        unit = tuple(job for job in record["ids"] if job in wanted)
        wanted -= set(unit)
        if unit:
            units.append(unit)
    rest = [job for job in jobs if job in wanted]
    return units + [tuple(rest[start : start + size]) for start in range(0, len(rest), size)]


def each_unit(
    run: Path, jobs: Sequence[str], manifest: Manifest, size: int, do: Callable[[tuple[str, ...]], None]
) -> None:
    """Call `do` for every unit that is left; it commits the unit to `manifest`. In a shared run, return when all are.

    A first interrupt lets `do` end, then raises KeyboardInterrupt.
    """
    if not is_shared(run):
        for unit in plan(jobs, manifest, size):
            with finishing():
                do(unit)
        return
    with same_jobs(run, manifest.path.parent.name, unit_name(jobs)):
        _share(run, jobs, manifest, size, do)


def _share(
    run: Path, jobs: Sequence[str], manifest: Manifest, size: int, do: Callable[[tuple[str, ...]], None]
) -> None:
    home = manifest.path.parent
    while True:
        exchange(run, manifest, jobs)
        known = len(manifest.records())
        todo = plan(jobs, manifest, size)
        if not todo:
            return
        worked = False
        done: set[str] = set()  # since the plan was made
        for unit in todo:
            name = unit_name(unit)
            with (
                claim(run, f"{home.name}-{name}") as free_here,
                lease(home, name) if free_here else nullcontext(False) as mine,
            ):
                try:
                    if mine:
                        exchange(run, manifest, jobs)
                    records = manifest.records()
                    new = [record for record in records[known:] if record["event"] == "commit"]
                    done.update(job for record in new for job in record["ids"])
                    known = len(records)
                    if not mine or not done.isdisjoint(unit):
                        continue
                    with finishing():
                        do(unit)
                        exchange(run, manifest, jobs)
                except TakenOverError as error:  # whoever has it now commits it; the next plan shows
                    print(f"warning: {error}", file=sys.stderr, flush=True)
                    break
                worked = True
                if is_elsewhere(home):
                    break  # to plan anew costs less than to ask the store for every unit that is left
        if not worked:
            time.sleep(POLL if is_elsewhere(home) else _POLL)
