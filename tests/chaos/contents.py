"""What a run folder holds, without what another run of the same work would have otherwise."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.run.layout import STORES
from diffusion_inversion.run.verify import verify

_TIMES = (
    re.compile(r'"(seconds|created)": ("[^"]*"|[0-9.]+)'),
    re.compile(r"\d{4}-\d\d-\d\dT[0-9:]+Z"),
    re.compile(r"\d+(\.\d)? s\b|\d+ min \d+ s"),
)


def content(run: Path) -> dict[str, str]:
    """sha256 of every file of a run but its own bookkeeping; times of day and durations in reports are left out."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or path.name in (".lock", "manifest.jsonl") or ".claims" in path.parts:
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".html"):
            text = data.decode()
            for pattern in _TIMES:
                text = pattern.sub("TIME", text)
            data = text.encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def rows_of(run: Path) -> list[dict[str, Any]]:
    """What is said of each synthetic image of a run."""
    rows: list[dict[str, Any]] = pq.read_table(run / "synthetic" / "metadata.parquet").to_pylist()
    return rows


def units(run: Path) -> dict[str, Any]:
    """Every committed unit of every manifest, without the seconds that it took."""
    found = {}
    for store in STORES:
        for unit, record in Manifest(run / store.manifest).units().items():
            found[f"{store.folder}/{unit}"] = {key: value for key, value in record.items() if key != "seconds"}
    return found


def lost_and_doubled(run: Path, whole: Path) -> tuple[int, int]:
    """Jobs of `whole` that `run` lacks, and jobs that it has done more than once."""
    lost = doubled = 0
    for store in STORES:
        jobs = [
            [job for record in Manifest(place / store.manifest).units().values() for job in record["ids"]]
            for place in (run, whole)
        ]
        lost += len(set(jobs[1]) - set(jobs[0]))
        doubled += len(jobs[0]) - len(set(jobs[0]))
    return lost, doubled


def assert_same(run: Path, whole: Path) -> None:
    """`run` holds what `whole` holds, bit for bit, and nothing else, and knows it."""
    assert lost_and_doubled(run, whole) == (0, 0)
    assert units(run) == units(whole)
    assert content(run) == content(whole)
    findings = json.dumps([vars(finding) for finding in verify(run).findings])
    assert findings == "[]", findings
