"""The recipes of `train/recipes.py` at an equal number of images: validation accuracy and CPU time of each.

    python experiments/recipes.py DATA [--limit 3000] [--share 0.667] [--images 30720] [--seeds 2]

DATA is read as training images alone, `limit` of them; `share` of every class is held out to validate on. ResNet-20
(or --architecture) is trained with every recipe on as many images, batch size times steps, and measured on the held-out
ones. Prints one line of JSON per classifier: CPU seconds of the training on one thread, and the accuracy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time

import torch

from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.train.evaluation import evaluate
from diffusion_inversion.train.recipes import RECIPES
from diffusion_inversion.train.training import train


def validation_rows(images: LabelledImages, share: float) -> list[int]:
    """Rows to hold out, ascending: `share` of every class, at least one image and never the last."""
    rows: list[int] = []
    for label in range(len(images.class_names)):
        members = (images.labels == label).nonzero()[:, 0].tolist()
        members.sort(key=lambda row: hashlib.sha256(f"0/validation/{images.ids[row]}".encode()).digest())
        rows += members[: max(min(max(round(share * len(members)), 1), len(members) - 1), 0)]
    return sorted(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--limit", type=int, default=3000)
    parser.add_argument("--share", type=float, default=2 / 3)
    parser.add_argument("--images", type=int, default=30720)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--architecture", default="resnet20")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = load_images(arguments.data, limit=arguments.limit)
    held_out = validation_rows(images, arguments.share)
    validation = images.subset(held_out)
    training = images.subset(sorted(set(range(len(images))) - set(held_out)))
    for seed in range(arguments.seeds):
        for name, recipe in RECIPES.items():
            steps = arguments.images // recipe.batch_size
            settings = TrainSettings(recipe=name, steps=steps, architecture=arguments.architecture)
            start = time.process_time()
            classifier = train(training, settings=settings, seed=seed, device="cpu")
            found = {
                "recipe": name,
                "seed": seed,
                "steps": steps,
                "cpu_seconds": round(time.process_time() - start, 1),
                "accuracy": evaluate(classifier, validation).accuracy,
                "n_train": len(training),
                "n_validation": len(validation),
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
