"""How many images that the audit of a run flags still copy when drawn again, by how far from their vectors that is.

    python benchmarks/redrawn.py RUN [--images 80]

RUN has been through stage 2 with `mini`. It is audited as `dinv run` does it, and `--images` of the flagged ones are
drawn again at each level of `run/fidelity/redraw.py`; nothing is kept of these. Prints Markdown, with CPU seconds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from diffusion_inversion.config.commands import AuditSettings
from diffusion_inversion.data.images import resize, to_uint8
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.generator.safety import ATTEMPTS
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.measure.copies.shares import share
from diffusion_inversion.randomness import generator_for
from diffusion_inversion.run.drawn_with import sampling_of
from diffusion_inversion.run.fidelity.copies import NEAR, copy_gate
from diffusion_inversion.run.fidelity.redraw import FARTHEST, stronger
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.sample.variants import draw_images, plan_variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=80)
    given = parser.parse_args()
    splits, generator = open_splits(given.run), Generator.load("mini", device="cpu")
    embeddings, settings = read_embeddings(given.run), sampling_of(given.run, splits.train.class_names)
    side = SyntheticStore(given.run, splits.train.class_names).read().size
    began = time.process_time()
    with run_lock(given.run):
        gate = copy_gate(given.run, AuditSettings(device="cpu"), splits, side)
    assert gate is not None
    copies = gate.record["copies"]
    print(f"{copies['count']} of {copies['n']} flagged; audit {time.process_time() - began:.0f} s of a CPU\n")
    pairs = gate.record["pairs"]
    order = torch.randperm(len(pairs), generator=generator_for(0, "redrawn"))[: given.images].tolist()
    chosen = [pairs[row] for row in order]
    limits = {name: view["threshold"] for name, view in gate.record["views"].items()}
    near = torch.tensor([pair["score"] < NEAR * limits[pair["view"]] for pair in chosen])
    row_of = {image_id: row for row, image_id in enumerate(embeddings.ids)}
    sources = [row_of[pair["source"]] for pair in chosen]
    print("| level | lambda | alpha | still copies | of those below 3/4 of the threshold | of the others | s each |")
    print("|---|---|---|---|---|---|---|")
    for level in range(FARTHEST + 1):
        own, began = stronger(settings, level), time.process_time()
        plans = [plan_variant(embeddings, generator, own, row, 0, ATTEMPTS * (level + 1)) for row in sources]
        parts = [plans[start : start + 50] for start in range(0, len(plans), 50)]
        drawn = torch.cat([draw_images(embeddings, generator, part, settings) for part in parts])
        copied = gate.copied(resize(to_uint8(drawn), side))
        seconds = (time.process_time() - began) / len(plans)
        groups = [copied, copied[near], copied[~near]]
        cells = [f"{share(one)} of {len(one)}" if len(one) else "-" for one in groups]
        strengths = f"{own.noise_strength:.2g} | {own.interpolation:.2g}"
        print(f"| {level} | {strengths} | {' | '.join(cells)} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
