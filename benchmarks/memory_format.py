"""Is training a classifier on the CPU faster with channels last in memory?

    python benchmarks/memory_format.py [--rounds 7] [--precision bfloat16 float32]

ResNet-20 as `dinv train` builds it, forward, backward and SGD with momentum on random images, one thread. In each round
both formats take `STEPS` steps after one that is not counted, in turn. Prints images/s as median (lowest to highest),
and the ratio of each round.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
import torch.nn.functional as F

from diffusion_inversion.train.classifiers import Classifier

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
STEPS, CLASSES = 2, tuple("0123456789")


class Training:
    """A classifier in a memory format, with all that a step needs."""

    def __init__(self, memory_format: torch.memory_format, side: int, batch: int, precision: torch.dtype) -> None:
        torch.manual_seed(0)
        self.classifier = Classifier("resnet20", CLASSES, side)
        self.classifier.network.to(memory_format=memory_format)
        self.optimizer = torch.optim.SGD(self.classifier.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        self.images = torch.rand(batch, 3, side, side).to(memory_format=memory_format)
        self.labels = torch.arange(batch) % len(CLASSES)
        self.precision = precision

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
            logits = self.classifier.logits(self.images)
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()

    def rate(self) -> float:
        """Images/s."""
        self.step()
        start = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        return STEPS * len(self.images) / (time.perf_counter() - start)


def spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "float32"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| precision, px, batch (n={options.rounds}) | {' | '.join(FORMATS)} | ratio |\n|---|---|---|---|")
    for precision in options.precision:
        for side in (32, 64):
            for batch in (32, 128):
                known = getattr(torch, precision)
                trainings = [Training(memory_format, side, batch, known) for memory_format in FORMATS.values()]
                rounds = [[training.rate() for training in trainings] for _ in range(options.rounds)]
                rates = [spread(list(values), 0) for values in zip(*rounds, strict=True)]
                ratio = spread([last / first for first, last in rounds], 2)
                print(f"| {precision}, {side}, {batch} | {' | '.join(rates)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
