"""How fast classifiers train on a GPU: steps a second by precision and layout, as a graph and launched one by one.

    python benchmarks/training_speed.py           # ResNet-20 of 32 and 64 px, batches of 32, in one process
    python benchmarks/training_speed.py 8         # in eight beside each other: what they do together
    python benchmarks/training_speed.py 1 --toy   # the same lines on a CPU

Each figure is one timing of SECONDS after 20 steps, on the same images at each step: augmentation is not in it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.gradients import Gradients

BATCH, SECONDS = 32, 2.5
WAYS = ("float32", "bfloat16", "float32 channels-last", "bfloat16 channels-last", "float32 without graph")


def rate(side: int, way: str, device: torch.device) -> float:
    """Optimizer steps a second."""
    torch.manual_seed(0)
    classifier = Classifier("resnet20", [str(number) for number in range(10)], side).to(device).train()
    if "channels-last" in way:
        classifier.to(memory_format=torch.channels_last)

    def loss_of(batches: Sequence[Tensor], goals: Sequence[Tensor]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled="bfloat16" in way):
            logits = classifier(batches[0])
        return F.cross_entropy(logits.float(), goals[0])

    gradients = Gradients(loss_of, list(classifier.parameters()), device, recorded="without graph" not in way)
    optimizer = torch.optim.AdamW(classifier.parameters(), fused=device.type == "cuda")
    images = torch.randint(256, (BATCH, 3, side, side), dtype=torch.uint8)
    labels = torch.arange(BATCH) % 10

    def steps(count: int) -> None:
        for _ in range(count):
            gradients([images], [labels])
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        steps(20)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            steps(25)
            done += 25
        return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processes", nargs="?", type=int, default=1)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    toy = ["--toy"] * given.toy
    if given.processes > 1:
        command = [sys.executable, __file__, "1", *toy]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(given.processes)]
        lines = [one.communicate()[0].splitlines() for one in running]
        for same in zip(*lines, strict=True):
            name = same[0].partition(":")[0]
            print(f"{given.processes} processes, {name}: {sum(float(one.split()[-2]) for one in same):.0f} steps/s")
        return
    for side in (8,) if given.toy else (32, 64):
        for way in WAYS:
            print(f"{side} px, {way}: {rate(side, way, torch.device('cpu' if given.toy else 'cuda')):.0f} steps/s")


if __name__ == "__main__":
    main()
