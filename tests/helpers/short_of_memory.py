"""Stages 1 and 2 in a process that may not have the memory for a whole unit. Run by test_memory.py.

`python short_of_memory.py FOLDER MEGABYTES`: prints JSON with the sizes on record, and whether units that are done
again with all the memory there is get the bits they had.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401  (before the limit: libraries need address space too)
import torch
from toy import SD14_SCHEDULER, build_checkpoint, toy_images

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.engine import faults
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import EmbeddingStore
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.sample.sampling import sample
from diffusion_inversion.sample.synthetic import SyntheticStore

COUNT = 96
INVERT = InvertSettings(steps=2, init="random", batch_size=COUNT, eval_draws=1, resolution=32)
SAMPLE = SampleSettings(variants=1, inference_steps=2, batch_size=COUNT, guidance_scales=(2.0,))


def both(folder: Path, generator: Generator, count: int) -> Any:
    embeddings = invert(toy_images(count, 32), generator, folder, INVERT)
    return embeddings, sample(embeddings, generator, folder, SAMPLE)


def sizes(manifest: Manifest) -> list[int | None]:
    return [record.get("at_once") for record in manifest.units().values()]


def main(folder: Path, megabytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))

    generator = Generator.load(build_checkpoint(folder / "toy", SD14_SCHEDULER), device="cpu", dtype="float32")
    both(folder / "warm", generator, 2)
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) << 10
    run = folder / "run"
    # Files are written without the limit: the threads that do it need address space that they never touch.
    limits = {"written": hard, "recorded": used + (megabytes << 20)}
    faults.on_point = lambda point: limit(limits[point]) if point in limits else None
    embeddings, images = both(run, generator, COUNT)
    faults.on_point = None
    limit(hard)
    stores = EmbeddingStore(run).manifest, SyntheticStore(run, embeddings.class_names).manifest
    found: dict[str, Any] = {"at_once": [sizes(manifest) for manifest in stores]}
    for manifest in stores:
        (unit,) = manifest.units()
        manifest.append({"event": "drop", "unit": unit})
    again, drawn = both(run, generator, COUNT)
    found["same_bits"] = [torch.equal(again.vectors, embeddings.vectors), torch.equal(drawn.images, images.images)]
    found["at_once_again"] = [sizes(manifest) for manifest in stores]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
