"""How far a run, a sweep or a pretraining is, read from another process without a lock (`dinv status`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..engine.disk import human
from ..engine.ledger import Ledger
from ..engine.lock import holders, record_of
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest
from ..engine.progress import duration, time_of_day
from ..engine.text import shown
from ..errors import UsageError
from ..invert.embeddings import EmbeddingStore
from ..sample.synthetic import SyntheticStore
from ..train.store import ClassifierStore
from .images import read_record
from .layout import RUN_FILE
from .methods import method_of
from .replicates import replicate_folders

JOBS = "jobs"  # of a sweep
State = Literal["working", "finished", "stopped", "killed", "not known"]


@dataclass(frozen=True)
class Part:
    """Units of work of one kind: how many are committed, of how many where that is known."""

    name: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Status:
    """What is known of a folder and of who works there; times are seconds since 1970."""

    folder: Path
    state: State
    processes: list[int]  # that work there now, on this machine
    said: dict[str, Any]  # what the lock file says, see `engine/lock.py`
    parts: list[Part]
    disk: int  # bytes

    @property
    def ends(self) -> float | None:
        """When the work in hand ends, at its pace of late; None where that is not known."""
        doing = self.said.get("doing") or {}
        if self.state != "working" or not doing.get("rate"):
            return None
        return float(doing["at"] + (doing["total"] - doing["done"]) / doing["rate"])

    def record(self) -> dict[str, Any]:
        """As JSON data."""
        of_others = {name: self.said.get(name) for name in ("host", "pid", "since", "ended", "step", "doing", "error")}
        parts = [vars(part) for part in self.parts]
        return {
            "folder": str(self.folder), "state": self.state, "processes": self.processes, **of_others, "parts": parts,
            "ends": self.ends, "plan_ends": self.said.get("plan_ends"), "disk_bytes": self.disk,
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """What to say of it."""
        who = f"process {self.said.get('pid')} on {self.said.get('host')}"
        if len(self.processes) > 1:
            who = f"processes {', '.join(map(str, self.processes))} on {self.said.get('host')}"
        when = {
            "working": f"working ({who}, since {_clock(self.said.get('since'))})",
            "finished": "finished; its report is there",
            "stopped": f"stopped at {_clock(self.said.get('ended'))}; the same command goes on",
            "killed": f"not working: {who} ended without a word (killed, or no power); the same command goes on",
            "not known": f"{who}, which is not this machine: whether it still works is not known here",
        }
        yield f"{self.folder}: {when[self.state]}"
        for part in self.parts:
            yield f"  {part.name:<12} {part.done}{'' if part.total is None else f' of {part.total}'}"
        if self.state != "finished":
            yield from self._now()
        if error := self.said.get("error"):
            yield f"  last error   {shown(str(error))}"
        yield f"  disk         {human(self.disk)}"

    def _now(self) -> Iterator[str]:
        if step := self.said.get("step"):
            yield f"  step         {shown(str(step))}"
        if (doing := self.said.get("doing")) and doing["done"] < doing["total"]:
            line = f"{shown(doing['what'])} {doing['done']}/{doing['total']} {doing['unit']}"
            if self.ends is not None:
                rates = {"images": doing.get("images_per_second"), doing["unit"]: doing["rate"]}
                line += "".join(f", {rate:.1f} {name}/s" for name, rate in rates.items() if rate is not None)
                line += f", about {duration(max(self.ends - time.time(), 0.0))} left, ends at {time_of_day(self.ends)}"
            yield f"  {'now' if self.state == 'working' else 'was at':<12} {line}"
        if self.state == "working" and (ends := self.said.get("plan_ends")):
            yield f"  all of it    ends at about {time_of_day(ends)}, by the plan made at its start"


def status(folder: Path) -> Status:
    """Look at a folder, which nobody is kept from meanwhile. Raises UsageError where nothing of ours was done there."""
    said, manifest = record_of(folder), Manifest(folder / MANIFEST)
    if not said and not manifest.records():
        raise UsageError(f"{folder}: nobody has worked here; give the --out of a `dinv run`, `sweep` or `pretrain`.")
    pids = holders(folder)
    parts = _parts(folder, said)
    return Status(folder, _state(folder, said, pids, parts), pids or [], said, parts, _bytes(folder))


def _state(folder: Path, said: dict[str, Any], pids: list[int] | None, parts: list[Part]) -> State:
    if pids:
        return "working"
    if said and "ended" not in said:
        return "not known" if pids is None else "killed"
    whole = all(part.done >= part.total for part in parts if part.total is not None)
    ledger = Ledger(folder)
    if any(part.name == JOBS for part in parts):  # of a sweep, which writes its pages last
        pages = [name for name in ledger.manifest.units() if name.endswith(".html") and ledger.holds(name)]
        return "finished" if whole and pages and not said.get("error") else "stopped"
    # What a `dinv run` still had to do, it said; its report may be of before.
    broken = bool(said.get("error") and totals_of(said))
    return "finished" if whole and ledger.holds(RUN_FILE) and not broken else "stopped"


def totals_of(said: dict[str, Any]) -> dict[str, int]:
    """How many of each the command at work said there would be; nothing once it had ended."""
    return said.get("totals") or {}


def _parts(folder: Path, said: dict[str, Any]) -> list[Part]:
    """What is committed, in all replicates; how many there are to be as the command said, or as a whole stage did."""
    totals = totals_of(said)
    done = {"vectors": 0, "images": 0, "classifiers": 0}
    known: dict[str, int | None] = dict.fromkeys(done, 0)

    def add(name: str, manifest: Manifest, total: int | None) -> None:
        done[name] += sum(unit["count"] for unit in manifest.units().values())
        before = known[name]
        known[name] = None if before is None or total is None else before + total

    for run in replicate_folders(folder):
        record = read_record(run)
        learned = None if record is None else len(record["train"]["ids"])
        # Images that were found, or drawn without vectors, have none.
        add("vectors", EmbeddingStore(run).manifest, learned if method_of(run).again is None else 0)
        drawn = SyntheticStore(run, ()).manifest
        whole = drawn.last("complete")
        add("images", drawn, None if whole is None else whole["count"])
        trained = ClassifierStore(run).manifest
        whole = trained.last("complete")
        arms = None if whole is None else len(whole["arms"]) + bool(whole.get("own_size"))
        add("classifiers", trained, None if whole is None or arms is None else arms * len(whole["seeds"]))
    found = [Part(name, count, totals.get(name) or known[name]) for name, count in done.items()]
    jobs = [name for name in Ledger(folder).manifest.units() if name.startswith("results/")]
    # Several files may share the folder: the last command says how many of its own are done.
    of_sweep = [Part(JOBS, said.get(JOBS, len(jobs)), totals.get(JOBS))] if jobs or JOBS in totals else []
    return of_sweep or [part for part in found if part.done or part.total]


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:  # it was renamed or deleted meanwhile
            continue
    return total


def _clock(at: float | None) -> str:
    return "a time that is not known" if at is None else time_of_day(at)
