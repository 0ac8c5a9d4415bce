"""What the commit protocol costs: the main job with it and as a bare loop without it, interleaved.

    python experiments/protocol_overhead.py [--data digits] [--pairs 7]

The bare loop makes the same tensors and images with the same functions and writes them with plain file writes: no
temporary file, sync, rename, hash, manifest, lock or signal handling, and trains on what it has in memory. Both work on
the same loaded generator and images. Prints seconds of each, the median of the paired ratios, and the share of the
job's wall time inside the functions of the protocol (writing, syncing, hashing, reading back and checking), which
other work on the machine disturbs less. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import DataSettings, InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.datasets import Splits, load_splits
from diffusion_inversion.data.images import resize, to_model_range, to_uint8
from diffusion_inversion.engine import ledger, manifest
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert import embeddings
from diffusion_inversion.invert.embeddings import Embeddings
from diffusion_inversion.invert.inversion import guesses
from diffusion_inversion.invert.optimisation import curve_steps, invert_batch
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.sample import synthetic
from diffusion_inversion.sample.png import encode_png
from diffusion_inversion.sample.variants import draw_images, plan_variant
from diffusion_inversion.train import classifiers
from diffusion_inversion.train.evaluation import evaluate
from diffusion_inversion.train.store import ClassifierStore
from diffusion_inversion.train.training import train


def with_protocol(
    run: Path, data: DataSettings, generator: Generator, invert: InvertSettings, sample: SampleSettings,
    training: TrainSettings,
) -> None:  # fmt: skip
    with run_lock(run):
        splits = open_splits(run, data)
        pipeline.invert_stage(run, splits, generator, invert)
        pipeline.sample_stage(run, generator, sample)
        pipeline.train_stage(run, splits, training, "cpu")
    assert ClassifierStore(run).manifest.units()


def without(
    folder: Path, data: DataSettings, generator: Generator, invert: InvertSettings, sample: SampleSettings,
    training: TrainSettings,
) -> None:  # fmt: skip
    splits: Splits = load_splits(data.data, limit=data.limit, test_limit=data.test_limit)
    images, resolution = splits.train, generator.resolution
    order = sorted(range(len(images)), key=lambda row: images.ids[row])
    results = []
    for start in range(0, len(order), invert.batch_size):
        batch = images.subset(order[start : start + invert.batch_size])
        pixels = to_model_range(batch.resized(resolution).images)
        results.append(invert_batch(generator, pixels, guesses(batch, pixels, generator, invert), batch.ids, invert))
        save_file({"vectors": results[-1].vectors}, folder / f"{start}.safetensors")
    learned = Embeddings(
        ids=tuple(images.ids[row] for row in order),
        labels=images.labels[order],
        class_names=images.class_names,
        steps=invert.checkpoints,
        vectors=torch.cat([result.vectors for result in results], dim=1),
        curve_steps=curve_steps(invert),
        losses=torch.cat([result.losses for result in results], dim=1),
        null_losses=torch.cat([result.null_losses for result in results]),
        generator_hash=generator.hash,
        resolution=resolution,
        image_size=images.size,
    )
    jobs = [(row, variant) for variant in range(sample.variants) for row in range(len(learned))]
    drawn = []
    for start in range(0, len(jobs), sample.batch_size):
        plans = [plan_variant(learned, generator, sample, *job) for job in jobs[start : start + sample.batch_size]]
        pictures = resize(to_uint8(draw_images(learned, generator, plans, sample)), images.size)
        for plan, picture in zip(plans, pictures, strict=True):
            (folder / f"{plan.source}-{plan.variant}.png").write_bytes(encode_png(picture))
        drawn.append(pictures)
    pipeline.reconstruct(learned, generator, sample, pipeline.shown_rows(learned))
    drawings = replace(
        images,
        ids=tuple(f"{row}-{variant}" for row, variant in jobs),
        hashes=("",) * len(jobs),
        labels=learned.labels[[row for row, _ in jobs]],
        images=torch.cat(drawn),
    )
    for seed in training.seeds:
        for first, second in ((images, None), (drawings, None), (images, drawings)):
            classifier = train(first, synthetic=second, settings=training, seed=seed, device="cpu")
            evaluate(classifier, splits.test)
            save_file(classifier.network.state_dict(), folder / f"{seed}-{len(first)}-{second is None}.safetensors")


class Clock:
    """Wall time inside the functions of the protocol, whatever the rest of the machine does."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    def around(self, owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            self.depth += 1
            start = time.monotonic()
            try:
                return inner(*arguments, **named)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += time.monotonic() - start

        setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    data = DataSettings(data=arguments.data, limit=arguments.limit, test_limit=200)
    generator = Generator.load("mini")
    settings = (
        InvertSettings(steps=60, batch_size=50),
        SampleSettings(variants=5),
        TrainSettings(steps=60, seeds=(0,)),
    )
    clock = Clock()
    for owner, name in (
        (synthetic, "commit_many"), (embeddings, "commit_bytes"), (classifiers, "commit_bytes"),
        (ledger.Ledger, "commit"), (ledger.Ledger, "read"), (manifest.Manifest, "append"),
        (manifest.Manifest, "records"), (synthetic, "read_pngs"), (embeddings, "read_tensors"),
        (pipeline, "require_room"),
    ):  # fmt: skip
        clock.around(owner, name)
    shares = []
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for pair in range(arguments.pairs + 1):
        order = (("with", with_protocol), ("without", without))
        for name, job in order if pair % 2 else reversed(order):
            folder = Path(tempfile.mkdtemp(prefix="overhead-"))
            start, inside = time.monotonic(), clock.seconds
            job(folder, data, generator, *settings)
            if pair:  # the first pair warms up
                seconds[name].append(time.monotonic() - start)
                if name == "with":
                    shares.append((clock.seconds - inside) / seconds[name][-1])
            shutil.rmtree(folder)
            print(f"{name}: {time.monotonic() - start:.2f} s", file=sys.stderr)
    ratios = [a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    low, high = min(ratios), max(ratios)
    summary = {
        "ratio_median": round(statistics.median(ratios), 4),
        "lowest": round(low, 4),
        "highest": round(high, 4),
        "pairs": len(ratios),
        "share_inside_median": round(statistics.median(shares), 5),
        "seconds": seconds,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
