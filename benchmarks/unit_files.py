"""How many images belong into a Parquet file of stage 2: bytes and seconds by images a file.

    python benchmarks/unit_files.py [--images 100000]

Commits noise images of 8 px, which are small beside what is known of them, in units of 100, 1,000 and 50,000, and as
PNG files; reads two columns, all pixels and all hashes again, and opens the files with `datasets`. Each is done once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDE, CLASSES = 8, ("cat", "dog")


def rows_of(start: int, count: int) -> list[dict[str, Any]]:
    """What is known of images: ten variants of a source."""
    from diffusion_inversion.sample.columns import EARLIER

    shared = EARLIER | {
        "interpolation": 0.1, "noise_strength": 0.1, "guidance_scale": 1.0, "inversion_step": 50, "scheduler": "dpm++",
        "inference_steps": 16, "seed": 0, "generator": "none", "generator_hash": "0" * 64, "partner_version": "0" * 16,
        "source_version": "0" * 16,
    }  # fmt: skip
    return [
        {
            **shared, "source_id": f"train/{number // 10:06d}", "partner_id": f"train/{number // 10 + 1:06d}",
            "variant": number % 10, "label": number // 10 % 2, "partner_label": number // 10 % 2,
        }
        for number in range(start, start + count)
    ]  # fmt: skip


def seconds(do: Callable[[], object]) -> str:
    begin = time.perf_counter()
    do()
    return f"{time.perf_counter() - begin:.1f}"


def measured(folder: Path, images: int, unit: int | None) -> list[str]:
    """The cells of a line: images in units of so many, None for PNG files."""
    import datasets
    import torch

    from diffusion_inversion.run.verify import verify
    from diffusion_inversion.sample.synthetic import SyntheticStore

    store = SyntheticStore(folder, CLASSES)

    def write() -> None:
        size = unit or 100
        for start in range(0, images, size):
            stream = torch.Generator().manual_seed(start)
            pixels = torch.randint(256, (size, 3, SIDE, SIDE), generator=stream, dtype=torch.uint8)
            store.commit(pixels, rows_of(start, size), storage="parquet" if unit else "png")
        store.finish(10)

    def load() -> None:
        data = {"data_files": str(store.folder / "*.parquet")} if unit else {"data_dir": str(store.folder)}
        kind = "parquet" if unit else "imagefolder"
        datasets.disable_progress_bars()
        with contextlib.redirect_stderr(io.StringIO()):
            datasets.load_dataset(kind, split="train", cache_dir=str(folder / "cache"), **data)

    taken = [seconds(write), *(seconds(do) for do in (lambda: store.table("label", "variant"), store.read))]
    taken += [seconds(lambda: verify(folder)), seconds(load)]
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    return [f"{len(files):,}", f"{sum(path.stat().st_size for path in files) / 1e6:.0f}", *taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000, help="a multiple of 50,000")
    images = parser.parse_args().images
    print("| images a file | files | MB | s: write | read two columns | read pixels | verify | `load_dataset` |")
    print("|---|---|---|---|---|---|---|---|")
    for unit in (50_000, 1000, 100, None):
        folder = Path(tempfile.mkdtemp(prefix="dinv-units-"))
        try:
            print(f"| {f'{unit:,}' if unit else 'PNG'} | {' | '.join(measured(folder, images, unit))} |", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
