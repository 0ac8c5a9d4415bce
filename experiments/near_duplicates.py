"""Near-duplicates in a data set: pairs found, and how many altered copies of its images are found again.

    python experiments/near_duplicates.py DATA [--limit N] [--copies 300] [--sheet pairs.png]

DATA is as in `dinv run`; only its training part is read. The sheet shows pairs side by side, the farthest first, so
that a person can count the false alarms.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import square
from diffusion_inversion.data.near_duplicates import near_pairs, thumbnail

Pixels = NDArray[np.uint8]


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def scaled(pixels: Pixels, factor: float) -> Pixels:
    side = max(1, round(factor * pixels.shape[0]))
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def brighter(pixels: Pixels, factor: float) -> Pixels:
    return np.array(ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(factor))


def cropped(pixels: Pixels, share: float) -> Pixels:
    side = pixels.shape[0]
    box = (0, 0, (1 - share) * side, (1 - share) * side)
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC, box=box))


FORMS: dict[str, Callable[[Pixels], Pixels]] = {
    "JPEG 90": lambda p: jpeg(p, 90),
    "JPEG 75": lambda p: jpeg(p, 75),
    "JPEG 50": lambda p: jpeg(p, 50),
    "x 0.5": lambda p: scaled(p, 0.5),
    "x 2": lambda p: scaled(p, 2),
    "brighter 10 %": lambda p: brighter(p, 1.1),
    "darker 10 %": lambda p: brighter(p, 0.9),
    "cropped 2 %": lambda p: cropped(p, 0.02),
}


def sheet(images: torch.Tensor, pairs: list[tuple[int, int]], path: str) -> None:
    """Save at most 96 pairs, 24 in a row, one image above the other."""

    def tile(row: int) -> Pixels:
        return np.array(Image.fromarray(images[row].permute(1, 2, 0).numpy()).resize((96, 96)))

    def distance(pair: tuple[int, int]) -> float:
        one, other = (images[row].float() - images[row].float().mean() for row in pair)
        return 1 - float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))

    worst = sorted(pairs, key=distance, reverse=True)[:96]
    columns = [np.pad(np.concatenate([tile(first), tile(second)]), ((0, 6), (0, 2), (0, 0))) for first, second in worst]
    columns += [np.zeros_like(columns[0])] * (-len(columns) % 24)
    rows = [np.concatenate(columns[start : start + 24], 1) for start in range(0, len(columns), 24)]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--copies", type=int, default=300)
    parser.add_argument("--sheet")
    options = parser.parse_args()

    start = time.perf_counter()
    real = load_images(options.data, limit=options.limit)
    loaded = time.perf_counter()
    thumbnails = torch.cat([thumbnail(part) for part in real.images.split(256)])
    pairs = near_pairs(thumbnails)
    seconds = time.perf_counter() - loaded
    apart = sum(real.labels[first] != real.labels[second] for first, second in pairs)
    print(f"{real.name}: {len(real)} images, {len(pairs)} pairs ({int(apart)} with two labels)")
    print(f"loaded with the search in {loaded - start:.1f} s; the search alone {seconds:.1f} s")
    if options.sheet and pairs:
        sheet(real.images, pairs, options.sheet)

    known = set(pairs)
    chosen = np.random.default_rng(0).choice(len(real), min(options.copies, len(real)), replace=False)
    print("| copy | found | others taken for it |\n|---|---|---|")
    for name, form in FORMS.items():
        copies = [form(real.images[row].permute(1, 2, 0).numpy()) for row in chosen]
        added = torch.stack([thumbnail(square(copy, copy.shape[0])) for copy in copies])
        found = set(near_pairs(torch.cat([thumbnails, added]))) - known
        true = {(int(row), len(real) + place) for place, row in enumerate(chosen)}
        twins = {frozenset(pair) for pair in known}
        place_of = {len(real) + place: int(row) for place, row in enumerate(chosen)}
        false = [p for p in found - true if frozenset(place_of.get(row, row) for row in p) not in twins]
        print(f"| {name} | {len(found & true) / len(true):.1%} of {len(true)} | {len(false)} |", flush=True)


if __name__ == "__main__":
    main()
