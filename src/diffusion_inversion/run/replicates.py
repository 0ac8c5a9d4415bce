"""Replicates: an experiment again with everything drawn anew, each in a run folder of its own; 0 is the run itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..config.sampling import PromptSettings, SampleSettings
from ..config.settings import DataSettings, InvertSettings
from ..config.training import TrainSettings
from ..data.datasets import Splits
from ..errors import ConfigMismatchError, UsageError
from .gathered import has_grown
from .images import open_splits, read_record
from .layout import REPLICATES

Drawn = TypeVar("Drawn", DataSettings, InvertSettings, SampleSettings, PromptSettings, TrainSettings)


@dataclass(frozen=True)
class Replicate:
    """Where one replicate lies, and its settings: the run's with seeds of its own."""

    number: int
    folder: Path
    data: DataSettings
    invert: InvertSettings
    sample: SampleSettings
    train: TrainSettings


def seed_of(seed: int, number: int) -> int:
    """The seed of a replicate from the run's and its number, below 2^31; that of replicate 0 is the run's."""
    if number == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/replicate/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def open_replicate(run: Path, plan: Replicate) -> Splits:
    """The images of a replicate, whose classes have the numbers that they have in the run. Call it inside `run_lock`.

    Raises ConfigMismatchError where they were numbered otherwise; else as `open_splits`.
    """
    classes = tuple((read_record(run) or {}).get("class_names", ()))
    splits = open_splits(plan.folder, plan.data, classes)
    if splits.train.class_names[: len(classes)] != classes:
        raise ConfigMismatchError(
            f"{plan.folder}: its classes are numbered otherwise than those of {run}, so they would be told as one "
            "another. Delete this folder: the same command makes it again."
        )
    return splits


def replicate_folders(run: Path) -> list[Path]:
    """The run folder and those of its other replicates, as far as they were begun, by number."""
    found = [path for path in (run / REPLICATES).glob("*") if path.is_dir() and path.name.isdecimal()]
    return [run, *sorted(found, key=lambda path: int(path.name))]


def drawn_anew(settings: Drawn, number: int) -> Drawn:
    """The settings of replicate `number`: the run's with other seeds."""
    if isinstance(settings, TrainSettings):
        return settings.model_copy(update={"seeds": tuple(seed_of(seed, number) for seed in settings.seeds)})
    return settings.model_copy(update={"seed": seed_of(settings.seed, number)})


def replicate(
    run: Path, number: int, data: DataSettings, invert: InvertSettings, sample: SampleSettings, train: TrainSettings
) -> Replicate:
    """Replicate `number` of a run: other subset and hold-out, other vectors, images and classifiers.

    Raises UsageError where images were grown in the run, which its other replicates would go without.
    """
    if number > 0 and has_grown(run):
        raise UsageError(
            f"{run}: images were grown here, and other replicates would be trained without any, in one verdict. Leave "
            f"out --replicates, or take them out (`dinv sample {run} --restart`)."
        )
    return Replicate(
        number,
        run if number == 0 else run / REPLICATES / str(number),
        drawn_anew(data, number),
        drawn_anew(invert, number),
        drawn_anew(sample, number),
        drawn_anew(train, number),
    )
