"""The classifiers that judge what generators draw: trained once, durable, each accuracy with its uncertainty."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.training import TrainSettings
from ..data.images import LabelledImages
from ..engine.progress import track
from ..engine.state import UnitState
from ..errors import DataError
from ..train.classifiers import Classifier
from ..train.evaluation import compare, predict
from ..train.training import train

# 1.5 epochs of CIFAR-10 from ImageNet's weights: 90.2 % of its test images. A judge below JUDGE_ACCURACY on the test
# images of the target says so wherever it judges.
JUDGE = TrainSettings(architecture="lite0", recipe="fast", learning_rate=1e-3, batch_size=64, steps=1_200)
JUDGE_ACCURACY = 0.9
# What the autoencoder costs on a specialised data set: at CLASSIFIER_SIZE px, or the images' own side where smaller.
CLASSIFIER = TrainSettings(architecture="resnet20", recipe="fast", batch_size=64, steps=1_200)
CLASSIFIER_SIZE, CLASSIFIER_SEEDS = 64, (0, 1, 2)


def trained(folder: Path, name: str, images: LabelledImages, settings: TrainSettings, seed: int = 0) -> Path:
    """The file of a classifier trained on `images`; made where it is not there, and going on after a kill."""
    made_from = [images.digest, images.size, settings.model_dump(mode="json"), seed]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
    path = folder / f"{name}-{key}-{seed}.safetensors"
    if not path.is_file():
        state = UnitState(folder, (path.name,), made_from)
        with track(f"train {name}, seed {seed}", settings.steps, "steps") as advance:
            train(images, settings=settings, seed=seed, on_step=lambda step, loss: advance(1), state=state).save(path)
        state.clear()
    return path


def recognised(classifier: Classifier, images: LabelledImages, pixels: Tensor) -> Tensor:
    """Which of `pixels` uint8 (N, 3, S, S), of any side S, get the label of `images` in their rows: bool (N,).

    Raises DataError where the classifier knows other classes than the images have.
    """
    if classifier.class_names != images.class_names:
        raise DataError(
            f"{images.name}: its classes are {list(images.class_names)}, the judge's are "
            f"{list(classifier.class_names)}. Give a judge that was trained on these classes in this order."
        )
    seen = replace(images, images=pixels).resized(classifier.image_size)
    return predict(classifier, seen)[0] == images.labels


def share(correct: Tensor) -> dict[str, Any]:
    """Share of true entries (N,) with its 95 % interval (Wilson's, for a binomial)."""
    from scipy.stats import binomtest

    successes, n = int(correct.sum()), len(correct)
    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return {"n": n, "share": successes / n, "interval": [float(interval.low), float(interval.high)]}


def accuracy_lost(classifiers: Sequence[Classifier], test: LabelledImages, decoded: Tensor) -> dict[str, Any]:
    """Accuracy of every classifier on test images and on `decoded` uint8 (N, 3, S, S), the same images autoencoded.

    lost: mean over classifiers of their difference; standard_error: from seeds (where there are several) and test
    images together, paired.
    """
    real = torch.stack([recognised(classifier, test, test.images) for classifier in classifiers])
    ours = torch.stack([recognised(classifier, test, decoded) for classifier in classifiers])
    accuracies = {name: hits.double().mean(1).tolist() for name, hits in (("real", real), ("autoencoded", ours))}
    paired = compare("autoencoded", accuracies, correct={"real": real, "autoencoded": ours})
    error = math.hypot(paired.unit_error or 0.0, paired.test_error or 0.0)
    return {
        "classifiers": len(classifiers),
        "size": classifiers[0].image_size,
        "accuracy": accuracies["real"],
        "accuracy_autoencoded": accuracies["autoencoded"],
        "lost": -paired.difference,
        "standard_error": error,
    }
