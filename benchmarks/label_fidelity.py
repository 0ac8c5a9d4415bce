"""How well the judge of labels finds planted wrong ones, and what it takes from a generator without faults.

    python benchmarks/label_fidelity.py cifar10=TRAIN.parquet:200 pbc-64=TRAIN.parquet:160 ... --repeats 3

Real images that the judge never saw stand for the variants of a perfect generator: `--variants` of them, each given a
source among the training images of its label, 30 % with the label of another class. Training images alone. A Markdown
table: means and standard deviations over the repeats, each with training images of its own.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor

from diffusion_inversion.cli.command import pairs
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.randomness import generator_for
from diffusion_inversion.run.fidelity.judging import Judges

WRONG = 0.3
COLUMNS = ("judge's accuracy", "of wrong labels found", "of those that failed wrong", "of right labels failed",
           "of real images failed", "by eq. 1: of wrong labels found", "of right labels failed")  # fmt: skip


def by_equation_1(judges: Judges, answers: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    """Which images (N,) bool the paper counts to another class: of the largest p among those that reach their t."""
    thresholds = torch.stack([judges.learned[1][fold].thresholds for fold in folds.tolist()])
    passing = torch.where(answers >= thresholds, answers, 0.0)
    return (passing.argmax(1) != labels) & (passing.amax(1) > 0)


def measured(images: LabelledImages, count: int, variants: int, repeat: int) -> list[float]:
    """The columns, in [0, 1], with `count` images to learn from."""
    stream = generator_for(repeat, "label fidelity", images.name)
    order = torch.randperm(len(images), generator=stream).tolist()
    real, other = images.subset(order[:count]), images.subset(order[count : count + variants])
    classes = len(images.class_names)
    wrong = torch.rand(len(other), generator=stream) < WRONG
    shift = torch.randint(1, classes, (len(other),), generator=stream)
    labels = torch.where(wrong, (other.labels + shift) % classes, other.labels)
    of_class: dict[int, list[str]] = {}
    for image_id, label in zip(real.ids, real.labels.tolist(), strict=True):
        of_class.setdefault(label, []).append(image_id)
    sources = [of_class[label][place % len(of_class[label])] for place, label in enumerate(labels.tolist())]
    judges = Judges(real, torch.device("cpu"))
    found = judges.opinion(other.images, labels, sources)
    failed, on_real = found.failed, judges.of_real()
    fold_of = dict(zip(real.ids, judges.folds, strict=True))
    paper = by_equation_1(judges, found.answers, labels, torch.tensor([fold_of[source] for source in sources]))
    accuracy = (on_real.answers.argmax(1) == real.labels).double().mean()
    return [
        float(accuracy),
        float((failed & wrong).sum() / wrong.sum()),
        float((failed & wrong).sum() / failed.sum()),
        float((failed & ~wrong).sum() / (~wrong).sum()),
        float(on_real.failed.double().mean()),
        float((paper & wrong).sum() / wrong.sum()),
        float((paper & ~wrong).sum() / (~wrong).sum()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME=DATA:COUNT", help="training images, and how many to judge by")
    parser.add_argument("--variants", type=int, default=400)
    parser.add_argument("--limit", type=int, default=1400, help="images that the repeats draw from")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"| data | training images | {' | '.join(COLUMNS)} |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    for name, text in pairs(options.data, "DATA").items():
        path, _, count = text.rpartition(":")
        images = load_images(path, limit=options.limit)
        rows = [measured(images, int(count), options.variants, repeat) for repeat in range(options.repeats)]
        cells = [
            f"{100 * statistics.fmean(column):.1f} ± {100 * statistics.stdev(column):.1f} %"
            for column in zip(*rows, strict=True)
        ]
        print(f"| {name} | {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
