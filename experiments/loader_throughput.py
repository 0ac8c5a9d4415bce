"""Images per second: augmented batches in memory against PIL images through a DataLoader, interleaved in one run.

    python experiments/loader_throughput.py [--data digits] [--size 32] [--augmentation default] [--rounds 7]

Three ways to the same batch, 128 normalised float32 images drawn with replacement and their labels, on the CPU:
  memory      uint8 tensors indexed, augmented by `make_augmentation` and normalised, in the training process
  pil_arrays  as torchvision's CIFAR10 does: `Image.fromarray` on an array in memory, torchvision's transforms on the
              PIL image, `DataLoader` with two workers that live through the run
  pil_files   the same on an `ImageFolder` of PNG files, which are decoded each time
"loader" counts the images that arrive while nothing else runs. "training" counts the images that pass forward and
backward through ResNet-20 and an SGD step, the loader beside it. "waiting" is the share of the training time spent in
asking for the next batch. A DataLoader's buffer is filled and emptied before each measurement, unmeasured.

Prints JSON: medians over the rounds; ratios are memory / other of the same round, their median, lowest and highest.
Aim: ratio of "loader" at least 5 with the default transforms. Training is bound by the network on a CPU: its ratio says
how much of the machine the workers take from it. Cost: 40 s at the defaults on two cores. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from diffusion_inversion.data.datasets import load_splits
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.train.augment import crop_padding, make_augmentation
from diffusion_inversion.train.classifiers import Classifier
from diffusion_inversion.train.training import training_precision

Batches = Generator[tuple[Tensor, Tensor], None, None]

BATCH, WORKERS = 128, 2
BUFFER = 2 * WORKERS  # batches that a DataLoader holds ready: prefetch_factor is 2
MEAN, STD = 0.5, 0.25
POLICIES = {"autoaugment": v2.AutoAugment, "randaugment": v2.RandAugment, "augmix": v2.AugMix}
Way = str  # a key of the table above


class Pictures(Dataset[tuple[Any, int]]):
    """Images as arrays (N, S, S, 3) uint8 in memory, given out as transformed PIL images."""

    def __init__(self, images: LabelledImages, transform: Callable[[Image.Image], Tensor]) -> None:
        self.arrays = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[row])), self.labels[row]


def in_memory(images: LabelledImages, names: tuple[str, ...]) -> Batches:
    augmentation, generator = make_augmentation(names, len(images.class_names)), torch.Generator().manual_seed(0)
    while True:
        rows = torch.randint(0, len(images), (BATCH,), generator=generator)
        pixels, targets = augmentation(images.images[rows], images.labels[rows], generator)
        yield (pixels.float() / 255 - MEAN) / STD, targets


def on_pil(names: tuple[str, ...], size: int) -> Callable[[Image.Image], Tensor]:
    """torchvision's transforms of these names on a PIL image."""
    steps: list[Callable[..., Any]] = []
    if "default" in names:
        steps += [v2.RandomCrop(size, padding=crop_padding(size)), v2.RandomHorizontalFlip()]
    steps += [POLICIES[name]() for name in POLICIES if name in names]
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN] * 3, [STD] * 3)]
    transform: Callable[[Image.Image], Tensor] = v2.Compose(steps)
    return transform


def by_workers(dataset: Dataset[Any], count: int) -> Batches:
    endless = RandomSampler(range(count), replacement=True, num_samples=10**9)
    yield from DataLoader(dataset, BATCH, sampler=endless, num_workers=WORKERS)


def write_folder(images: LabelledImages, folder: Path) -> None:
    """Write PNG files, one folder per class."""
    for row, (pixels, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        place = folder / f"{label:04d}"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(place / f"{row:06d}.png")


class Training:
    """ResNet-20 and its SGD, one step at a time, in the precision of `dinv train`."""

    def __init__(self, class_names: tuple[str, ...], size: int) -> None:
        self.network: nn.Module = Classifier("resnet20", class_names, size).network.train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)
        self.precision = training_precision(torch.device("cpu"))

    def step(self, pixels: Tensor, targets: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
            logits = self.network(pixels)
        loss = F.cross_entropy(logits.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def settle(way: Way, batches: Batches) -> None:
    """Let the workers fill their buffer, then empty it: what comes next is made while it is measured."""
    if way != "memory":
        time.sleep(0.3)
        for _ in range(BUFFER):
            next(batches)


def loader_rate(way: Way, batches: Batches, seconds: float) -> float:
    """Images per second that arrive, over at least `seconds`."""
    settle(way, batches)
    start, count = time.monotonic(), 0
    while (passed := time.monotonic() - start) < seconds:
        next(batches)
        count += 1
    return count * BATCH / passed


def training_rate(way: Way, batches: Batches, training: Training, steps: int) -> tuple[float, float]:
    """Images per second through the network, and the share of the time spent waiting for them."""
    settle(way, batches)
    start, waiting = time.monotonic(), 0.0
    for _ in range(steps):
        asked = time.monotonic()
        pixels, targets = next(batches)
        waiting += time.monotonic() - asked
        training.step(pixels, targets)
    passed = time.monotonic() - start
    return steps * BATCH / passed, waiting / passed


def measure(ways: dict[Way, Batches], training: Training, rounds: int, seconds: float, steps: int) -> dict[str, Any]:
    """Every way in turn, its place in the turn changing from round to round; the first round warms up."""
    values: dict[str, dict[Way, list[float]]] = {
        name: {way: [] for way in ways} for name in ("loader", "training", "waiting")
    }
    for index in range(rounds + 1):
        order = list(ways)
        order = order[index % len(order) :] + order[: index % len(order)]
        for way in order:
            rate = loader_rate(way, ways[way], seconds)
            fed, waiting = training_rate(way, ways[way], training, steps)
            print(f"round {index}, {way}: {rate:.0f} alone, {fed:.0f} trained images/s", file=sys.stderr)
            if index:
                for name, value in (("loader", rate), ("training", fed), ("waiting", waiting)):
                    values[name][way].append(value)
    ratios = {
        name: {
            way: [a / b for a, b in zip(values[name]["memory"], values[name][way], strict=True)]
            for way in ways
            if way != "memory"
        }
        for name in ("loader", "training")
    }
    return {
        "images_per_second": {
            name: {way: round(statistics.median(v)) for way, v in values[name].items()} for name in ratios
        },
        "ratio": {
            name: {
                way: {k: round(f(v), 3) for k, f in (("median", statistics.median), ("lowest", min), ("highest", max))}
                for way, v in ratios[name].items()
            }
            for name in ratios
        },
        "waiting": {way: round(statistics.median(v), 4) for way, v in values["waiting"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--augmentation", nargs="+", default=["default"], choices=["default", *POLICIES])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement of a loader alone")
    parser.add_argument("--steps", type=int, default=4, help="of each measurement of training")
    arguments = parser.parse_args()
    names = tuple(arguments.augmentation)
    images = load_splits(arguments.data, limit=arguments.limit).train.resized(arguments.size)
    transform = on_pil(names, images.size)
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        write_folder(images, Path(folder))
        ways = {
            "memory": in_memory(images, names),
            "pil_arrays": by_workers(Pictures(images, transform), len(images)),
            "pil_files": by_workers(ImageFolder(folder, transform), len(images)),
        }
        training = Training(images.class_names, images.size)
        result = measure(ways, training, arguments.rounds, arguments.seconds, arguments.steps)
        for batches in ways.values():
            batches.close()  # its workers end
    about = {
        "data": arguments.data,
        "size": images.size,
        "augmentation": names,
        "batch": BATCH,
        "workers": WORKERS,
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
    }
    print(json.dumps({**about, **result}))


if __name__ == "__main__":
    main()
