"""Few-shot learners over shots, seeds and additions: everything is checked first, then each training is done once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...config.few_shot import FewShotSettings
from ...data.datasets import Splits
from ...data.images import LabelledImages
from ...data.sources import default_root
from ...engine.frozen_settings import freeze_settings
from ...engine.ledger import Ledger
from ...engine.progress import track
from ...engine.units import each_unit
from ...errors import DataError
from ...train.evaluation import score
from ...train.few_shot.clip import Clip
from ...train.few_shot.prompts import check_classes
from ...train.few_shot.tip_adapter import Choice
from .additions import Addition, Extra, refuse_test_images
from .bench import Bench
from .jobs import Job, check_shots, plan_jobs
from .outcome import FewShotResult, Training, differences_of, rows_of
from .pages import pages
from .store import TrainingStore

SCHEMA = 2


def run_few_shot(
    out: Path,
    splits: Splits,
    clip: Clip,
    settings: FewShotSettings,
    additions: Sequence[Addition],
    *,
    command: str,
    root: str | Path | None = None,
    allow_near_duplicates: bool = False,
) -> FewShotResult:
    """Do the trainings that are left in `out` and write few-shot.csv, .json, .md and .png there.

    Each method, number of shots, seed and addition is one training, committed once it is done. More of each may be
    asked for later. Call it inside `run_lock`. Raises, before anything is computed, UsageError for shots above the
    smallest class, classes that CLIP cannot read, and additions that cannot be used; ConfigMismatchError where `out`
    was begun with other images, settings or another CLIP.
    """
    check_shots(splits.train, settings)
    learned_tokens = settings.coop_tokens if "coop" in settings.methods else None
    check_classes(clip, splits.train.class_names, settings.templates, learned_tokens)
    extras: dict[str, Extra] = {}
    jobs = plan_jobs(splits, settings, additions, extras, root)
    for extra in extras.values():
        refuse_test_images(extra, splits.test, allow_near=allow_near_duplicates)
    store = TrainingStore(out)
    freeze_settings(out, "few-shot", _described(splits, clip, settings), begun=bool(store.manifest.units()))
    store.drop_lost()
    names = [job.name for job in jobs]
    left = set(names) - store.manifest.jobs()
    if left:
        bench = Bench.build(splits, clip, settings, jobs, extras, default_root(root) / "features")
        by_name = {job.name: job for job in jobs}
        with track("few-shot trainings", len(left), "trainings") as advance:

            def do(unit: tuple[str, ...]) -> None:
                store.commit(unit[0], json.dumps(bench.do(by_name[unit[0]])).encode())
                advance(1)

            each_unit(out, names, store.manifest, 1, do)
    trainings = [_training(store, job, splits.test) for job in jobs]
    rows = rows_of(trainings)
    found = FewShotResult(
        data=splits.train.name,
        clip=f"{clip.name}, files {clip.hash[:12]}, {clip.image_size} px",
        n_test=len(splits.test),
        class_names=splits.train.class_names,
        seeds=settings.seeds,
        rows=rows,
        differences=differences_of(rows),
        unknown=tuple(
            dict.fromkeys(
                job.addition.name for job in jobs if job.source is not None and extras[job.source].made_from is None
            )
        ),
    )
    for name, content in pages(found, command).items():
        Ledger(out).commit(name, content)
    return found


def _described(splits: Splits, clip: Clip, settings: FewShotSettings) -> dict[str, Any]:
    """All that trainings of one folder have in common, as JSON data; shots, methods and seeds may be added."""
    return {
        "schema": SCHEMA,
        "settings": settings.described({"shots", "methods", "seeds"}),
        "clip": {"files": clip.hash, "device": clip.device.type},
        "train": {"images": len(splits.train), "sha256": splits.train.digest, "size": splits.train.size},
        "test": {"images": len(splits.test), "sha256": splits.test.digest, "size": splits.test.size},
    }


def _training(store: TrainingStore, job: Job, test: LabelledImages) -> Training:
    answers = store.read(job.name)
    predictions = torch.tensor(answers["predictions"])
    if len(predictions) != len(test):
        raise DataError(f"{store.folder}: {job.name} has {len(predictions)} answers for {len(test)} test images.")
    found = score(test.labels, predictions, len(test.class_names))
    alpha, beta = answers["alpha"], answers["beta"]
    return Training(
        method=job.method,
        shots=job.shots,
        seed=job.seed,
        addition=job.addition.name,
        synthetic_images=answers["synthetic_images"],
        accuracy=found.accuracy,
        balanced_accuracy=found.balanced_accuracy,
        correct=predictions == test.labels,
        labels=test.labels,
        choice=None if alpha is None or beta is None else Choice(alpha, beta, answers["fold_accuracy"]),
    )
