"""How long the synthetic images of a run take to open and to read, in this checkout and in another.

    python benchmarks/plumbing_reading.py [--against CHECKOUT] [--images 20000] [--side 32] [--rounds 7]

Writes that many PNGs of noise to a temporary folder, as stage 2 does. Each round measures each checkout in a process of
its own, in turn; only `src` of the other one is used. Files are in the page cache. Prints medians (least to most), and
the ratio of each round.

rows: from a fresh store, what each image was made from (`sources`). metadata: all columns, as metadata.parquet
(`finish`). read: pixels, checked and decoded (`read_synthetic`). peak: memory of the process above that of the images,
after imports and a first small reading.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from diffusion_inversion.sample.columns import EARLIER
from diffusion_inversion.sample.synthetic import SyntheticStore, read_synthetic

CLASSES = ("cat", "dog")
VARIANTS, UNIT = 10, 50
UNITS = {"rows": "s", "metadata": "s", "read": "s", "peak": "MB"}


def metadata(number: int) -> dict[str, Any]:
    """How image `number` was made."""
    source = number // VARIANTS
    label = source % len(CLASSES)
    return {
        **EARLIER, "source_id": f"train/{source:06d}.png", "partner_id": f"train/{source + 2:06d}.png",
        "variant": number % VARIANTS, "label": label, "partner_label": label, "interpolation": 0.1,
        "noise_strength": 0.1, "guidance_scale": 1.0, "inversion_step": 50, "scheduler": "ddim", "inference_steps": 20,
        "seed": 0, "generator": "mini", "generator_hash": "0" * 64, "source_version": f"{source:016x}",
        "partner_version": f"{source + 2:016x}",
    }  # fmt: skip


def write(run: Path, images: int, side: int) -> None:
    """A finished stage 2 of so many images of noise."""
    store = SyntheticStore(run, CLASSES)
    stream = torch.Generator().manual_seed(0)
    for start in range(0, images, UNIT):
        rows = [metadata(number) for number in range(start, min(start + UNIT, images))]
        store.commit(torch.randint(256, (len(rows), 3, side, side), generator=stream, dtype=torch.uint8), rows)
    store.finish(VARIANTS)


def measure(run: Path) -> dict[str, float]:
    """What `UNITS` names, of the package that this process imports."""
    SyntheticStore(run, CLASSES).read(1)  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    made_from = SyntheticStore(run, CLASSES).sources()
    opened = time.perf_counter()
    SyntheticStore(run, CLASSES).finish(VARIANTS)
    written = time.perf_counter()
    found = read_synthetic(run, CLASSES)
    done = time.perf_counter()
    assert len(found) == len(made_from)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3 - found.images.nbytes / 1e6
    return {"rows": opened - start, "metadata": written - opened, "read": done - written, "peak": peak}


def apart(source: Path, run: Path) -> dict[str, float]:
    """`measure` with the package below `source`."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(run)], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def spread(values: list[float], digits: int = 3) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this project, called `before`")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=32, help="px")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    here = Path(__file__).resolve().parent.parent
    checkouts = ({"before": options.against.resolve()} if options.against else {}) | {"now": here}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        write(run, options.images, options.side)
        rounds = [{name: apart(path / "src", run) for name, path in checkouts.items()} for _ in range(options.rounds)]
    print(
        f"| {options.images:,} images of {options.side} px, n={len(rounds)} | {' | '.join(checkouts)} | before / now |"
    )
    print("|---" * (len(checkouts) + 2) + "|")
    for name, unit in UNITS.items():
        digits = 3 if unit == "s" else 0
        cells = [spread([one[checkout][name] for one in rounds], digits) for checkout in checkouts]
        compared = options.against is not None and unit == "s"
        ratio = spread([one["before"][name] / one["now"][name] for one in rounds], 1) if compared else "-"
        print(f"| {name}, {unit} | {' | '.join(cells)} | {ratio} |")


if __name__ == "__main__":
    main()
