"""How many planted copies the audit finds, by level, view and data set, and how many images that copy nothing it flags.

    python benchmarks/copies.py --data cifar10=TRAIN,TEST --data pbc-64=TRAIN,TEST

Of each TRAIN (DATA) `--images` are known, as many of TEST make the null, and as many others of TEST that neither saw
are audited: what is flagged of them is false. `--planted` known images are copied at each level. With `--replicas N` N
of the known images are learned by `mini` for 10, 100 and 1,000 steps and drawn again (lambda = alpha = 0, no guidance).
Prints Markdown. A view has the whole rate in its own column; in "any view" the two share it, as in `dinv audit`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.measure.copies.auditing import audit_images
from diffusion_inversion.measure.copies.conformal import threshold
from diffusion_inversion.measure.copies.found import ANY, CopyAudit, Seen
from diffusion_inversion.measure.copies.shares import Share, share
from diffusion_inversion.measure.copies.views import part_view, pixel_view
from diffusion_inversion.sample.sampling import reconstruct

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="NAME=TRAIN,TEST")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=0)
    parser.add_argument("--replica-steps", default="10,100,1000")
    parser.add_argument("--false-positives", type=float, default=0.01)
    given = parser.parse_args()
    views = (pixel_view(CPU), part_view(CPU))
    rate = given.false_positives
    audit = partial(audit_images, views=views, false_positives=rate, neighbours=10, seed=0)
    for one in given.data:
        name, _, both = one.partition("=")
        train, test = both.split(",")
        known = load_images(train, limit=given.images)
        apart = load_images(test, limit=2 * given.images)
        null, fresh = apart.subset(range(0, len(apart), 2)), apart.subset(range(1, len(apart), 2))
        began = time.process_time()
        found = audit(known, fresh, null, planted=given.planted)
        seconds = time.process_time() - began
        counts = f"{len(known)} known images, {found.threshold.images} of the null, {len(fresh)} others"
        print(f"\n## {name}\n{counts}; {found.null_dropped} near-duplicates left out of the null; {seconds:.0f} s.\n")
        columns = [*found.views, ANY]
        print(f"| copied by | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
        for place, (level, both_views) in enumerate(found.recall.get(ANY, {}).items()):
            n = both_views.found.n
            alone = [flags(seen, seen.planted, rate)[place * n : (place + 1) * n] for seen in found.views.values()]
            print(f"| {level} | {cells([*map(share, alone), both_views.found])} |", flush=True)
        for steps, images in replicas(known, given.replicas, map(int, given.replica_steps.split(","))):
            print(f"| replica, {steps} steps | {row(audit(known, images, null, planted=0), rate)} |", flush=True)
        print(f"| nothing (false) | {row(found, rate)} |", flush=True)


def flags(seen: Seen, scores: Tensor, rate: float) -> Tensor:
    """What a view flags that has the whole rate to itself."""
    return threshold(seen.null, rate).flags(scores)


def row(found: CopyAudit, rate: float) -> str:
    """What each view alone, and any, flags of the audited images."""
    alone = [share(flags(seen, seen.nearest.scores, rate)) for seen in found.views.values()]
    return cells([*alone, found.copies])


def replicas(known: LabelledImages, count: int, steps: Iterable[int]) -> Iterator[tuple[int, LabelledImages]]:
    """Some known images as `mini` draws them from their vectors after so many steps of stage 1."""
    if not count:
        return
    generator = Generator.load("mini", device="cpu")
    chosen = known.subset(range(0, len(known), max(len(known) // count, 1))[:count])
    settings = SampleSettings(noise_strength=0, interpolation=0, guidance_scales=(1.0,), variants=1)
    for number in steps:
        with tempfile.TemporaryDirectory() as folder:
            invert(chosen, generator, Path(folder), InvertSettings(steps=number))
            vectors = read_embeddings(Path(folder))
            images = reconstruct(vectors, generator, settings)
        same = {image_id: place for place, image_id in enumerate(vectors.ids)}
        yield number, replace(chosen, images=images[[same[image_id] for image_id in chosen.ids]])


def cells(found: Iterable[Share]) -> str:
    return " | ".join(map(cell, found))


def cell(found: Share) -> str:
    """Share and interval in %, with the number of images."""
    return f"{100 * found.value:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}] of {found.n}"


if __name__ == "__main__":
    main()
