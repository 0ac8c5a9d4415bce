"""What a run costs beside its computing: seconds of `verify`, and of taking back what it found.

    python benchmarks/plumbing.py [--against CHECKOUT]

Builds a run folder of 20,000 images and times it in processes of their own, one thread each: this checkout, and the
other one where it is given, in turn. Prints the median and the range of the rounds as a table.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
IMAGES, SIDE, UNIT, FINDINGS, ROUNDS = 20_000, 32, 100, 20, 5


def build(run: Path) -> None:
    """Write a run folder with images of noise in two classes, committed in units as stage 2 does."""
    import torch

    from diffusion_inversion.sample.columns import COLUMNS
    from diffusion_inversion.sample.synthetic import SyntheticStore

    store = SyntheticStore(run, ("cat", "dog"))
    shared: dict[str, Any] = dict.fromkeys(COLUMNS)
    shared |= {"interpolation": 0.1, "noise_strength": 0.5, "scheduler": "ddim", "inference_steps": 10, "seed": 0}
    shared |= {"generator": "none", "generator_hash": "0" * 64, "guidance_scale": 1.0, "inversion_step": 50}
    shared |= {"label_weight": 1.0, "interpolation_kind": "lerp", "partner": "same-class", "unconditional": "mean"}
    for name in ("file_name", "class_name"):
        del shared[name]
    for start in range(0, IMAGES, UNIT):
        stream = torch.Generator().manual_seed(start)
        rows = []
        for number in range(start, start + UNIT):
            source, label = f"train/{number // 10:06d}.png", number // 10 % 2
            rows.append(
                {
                    **shared, "source_id": source, "partner_id": source, "variant": number % 10, "label": label,
                    "partner_label": label, "source_version": "0" * 16, "partner_version": "0" * 16,
                }
            )  # fmt: skip
        store.commit(torch.randint(256, (UNIT, 3, SIDE, SIDE), generator=stream, dtype=torch.uint8), rows)
    store.finish(10)


def verify(run: Path) -> dict[str, float]:
    """Read the whole run folder, one image of 20 units damaged; then take those units back."""
    from diffusion_inversion.engine.lock import run_lock
    from diffusion_inversion.run.verify import discard
    from diffusion_inversion.run.verify import verify as check

    manifest = run / "synthetic" / "manifest.jsonl"
    whole = {manifest: manifest.read_bytes()}
    records = [json.loads(line) for line in whole[manifest].splitlines()]
    units = [record for record in records if record["event"] == "commit"]
    for unit in units[:: len(units) // FINDINGS][:FINDINGS]:
        victim = run / "synthetic" / next(iter(unit["files"]))
        whole[victim] = victim.read_bytes()
        victim.write_bytes(b"gone")
    begin = time.perf_counter()
    found = check(run)
    between = time.perf_counter()
    assert len(found.findings) == FINDINGS
    with run_lock(run):
        start = time.perf_counter()
        discard(run, found)
        end = time.perf_counter()
    for path, content in whole.items():
        path.write_bytes(content)
    return {
        f"verify {IMAGES:,} images": between - begin,
        f"take back {FINDINGS} of them, each": (end - start) / FINDINGS,
    }


MEASURED: dict[str, Callable[[Path], dict[str, float]]] = {"verify": verify}  # name => what is timed in a folder


def timed(checkout: Path, name: str, folder: Path) -> dict[str, float]:
    """Seconds by task, measured with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", name, str(folder)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--measure"]:
        print(json.dumps(MEASURED[arguments[1]](Path(arguments[2]))))
        return
    checkouts = {"this checkout": HERE}
    if arguments[:1] == ["--against"]:
        checkouts = {"the other": Path(arguments[1]).resolve(), **checkouts}
    seconds: dict[str, dict[str, list[float]]] = {}
    folder = Path(tempfile.mkdtemp(prefix="dinv-plumbing-"))
    try:
        build(folder / "run")
        for _ in range(ROUNDS):
            for label, checkout in checkouts.items():
                for name in MEASURED:
                    for task, value in timed(checkout, name, folder / "run").items():
                        seconds.setdefault(task, {}).setdefault(label, []).append(value)
    finally:
        shutil.rmtree(folder)
    print(f"| seconds, median (least to most) of {ROUNDS} | {' | '.join(checkouts)} |")
    print("|---" * (1 + len(checkouts)) + "|")
    for task, found in seconds.items():
        cells = [f"{statistics.median(v):.4f} ({min(v):.4f} to {max(v):.4f})" for v in found.values()]
        print(f"| {task} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
