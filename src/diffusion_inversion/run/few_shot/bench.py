"""What all trainings share, encoded once, and one training on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...config.few_shot import FewShotSettings
from ...data.datasets import Splits
from ...train.few_shot.clip import Clip
from ...train.few_shot.examples import Encoded
from ...train.few_shot.learners import AUGMENTED, learn
from ...train.few_shot.zero_shot import class_weights
from ...train.folds import alike
from .additions import Extra
from .features import clean_features, encode
from .jobs import Job, shots_of
from .store import Answers


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything that trainings share, encoded once: shots by row of the training images, extras by theirs."""

    clip: Clip
    settings: FewShotSettings
    splits: Splits
    weights: Tensor  # zero-shot, (C, D)
    real: Encoded
    real_row: dict[int, int]  # row of the training images => row of `real`
    extras: dict[str, tuple[Encoded, dict[int, int]]]
    test: Tensor  # (n_test, D)

    @classmethod
    def build(
        cls, splits: Splits, clip: Clip, settings: FewShotSettings, jobs: Sequence[Job], extras: dict[str, Extra],
        cache: Path,
    ) -> Bench:  # fmt: skip
        train, classes = splits.train, len(splits.train.class_names)
        views = any(job.method in AUGMENTED for job in jobs)
        trained = {(job.shots, job.seed) for job in jobs if job.shots}
        rows = sorted({row for shots, seed in trained for row in shots_of(train, shots, seed)})
        images = train.subset(rows)
        targets = torch.nn.functional.one_hot(images.labels, classes).float()
        made_from = [frozenset({content}) for content in images.hashes]
        encoded = {}
        for source, extra in extras.items():
            used = sorted({row for job in jobs if job.source == source for row in job.extra_rows})
            some = extra.read()
            goal = extra.targets(some, classes)[used]
            sources = [frozenset[str]() if extra.made_from is None else extra.made_from[row] for row in used]
            encoded[source] = (
                encode(some.subset(used), goal, sources, clip, settings, cache, views=views),
                {row: place for place, row in enumerate(used)},
            )
        return cls(
            clip,
            settings,
            splits,
            class_weights(clip, train.class_names, settings.templates),
            replace(
                encode(images, targets, made_from, clip, settings, cache, views=views),
                alike=tuple(alike(images, near=False)),
            ),
            {row: place for place, row in enumerate(rows)},
            encoded,
            clean_features(splits.test, clip, cache),
        )

    def do(self, job: Job) -> Answers:
        """Train, then answer on the test images."""
        start = time.monotonic()
        rows = shots_of(self.splits.train, job.shots, job.seed) if job.shots else []
        real = self.real.rows([self.real_row[row] for row in rows])
        synthetic = None
        if job.source is not None:
            examples, place = self.extras[job.source]
            synthetic = examples.rows([place[row] for row in job.extra_rows])
        learned = learn(
            job.method, self.clip, self.splits.train.class_names, self.weights, real, synthetic,
            shots=job.shots, settings=self.settings, seed=job.seed,
        )  # fmt: skip
        with torch.no_grad():
            predictions = torch.cat([learned.logits(part).argmax(1).cpu() for part in self.test.split(4096)])
        choice = learned.choice
        return {
            "predictions": predictions.tolist(),
            "alpha": None if choice is None else choice.alpha,
            "beta": None if choice is None else choice.beta,
            "fold_accuracy": None if choice is None else choice.accuracy,
            "synthetic_images": len(job.extra_rows),
            "seconds": round(time.monotonic() - start, 1),
        }
