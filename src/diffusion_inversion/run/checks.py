"""What of a run's settings a later stage would refuse, refused before the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config.fidelity import FilterSettings
from ..config.sampling import SampleSettings
from ..config.settings import DataSettings, InvertSettings
from ..config.training import TrainSettings
from ..config.tuning import Tuning
from ..data.datasets import Splits
from ..data.images import LabelledImages
from ..engine.frozen_settings import require_unchanged
from ..errors import UsageError
from ..generator.generator import Generator
from ..invert.embeddings import EmbeddingStore
from ..invert.inversion import made_from as vectors_made_from
from ..sample.sampling import check_settings as check_sampling
from ..sample.sampling import described as images_described
from ..sample.synthetic import SyntheticStore
from ..train.arms import check_settings as check_training
from ..train.choosing import Folds
from ..train.mixing import refuse_unjudged
from ..train.own_size import own_side
from ..train.store import ClassifierStore
from ..train.training import recipe
from .balancing import balance_of
from .fidelity.judging import Judges
from .fidelity.stage import judges_for
from .replicates import Replicate
from .strengths import is_auto
from .tune import plain


def check_run(
    splits: Splits,
    generator: Generator,
    invert: InvertSettings,
    sample: SampleSettings,
    train: TrainSettings,
    *,
    own_size: bool,
    tuning: Tuning,
    judged: bool = False,
) -> tuple[int, int | None]:
    """The side in px that classifiers see, and the real images' own where an arm has that (train/own_size.py).

    `judged` says that a judge of labels is asked before training. Raises UsageError or DataError for settings, and for
    what `tuning` tries, that these images or the generator do not allow.
    """
    images = splits.train
    if tuning.of("sample") and train.mixing == "confidence":
        names = ", ".join(axis.key for axis in tuning.of("sample"))
        raise UsageError(
            f"--tune {names}: mixing=confidence: it is chosen by images that no judge has looked at yet. Leave it out, "
            "or give another mixing."
        )
    for settings in (*tuning.candidates("sample", sample), sample):
        side = check_sampling(
            generator,
            settings,
            steps=invert.checkpoints,
            resolution=invert.resolution or generator.resolution,
            image_size=images.size,
            classes=len({*images.labels.tolist()}),
        )
    for chosen in (*tuning.candidates("train", plain(train)), train):
        check_training(chosen, images.class_names, side)
        if not judged:
            refuse_unjudged(chosen)
    own = own_side(images, side) if own_size and "real" in train.arms else None
    if own is not None:
        check_training(train, images.class_names, own)
    return side, own


def check_subset(
    run: Path,
    images: LabelledImages,
    generator: Generator,
    data: DataSettings,
    sample: SampleSettings,
    tuning: Tuning,
    filtering: FilterSettings,
) -> None:
    """Raise DataError where the training images of a replicate are too few, or too alike, for what is asked of them.

    That is to be balanced, also as what `tuning` tries would, to be split into folds, and to judge labels by.
    """
    for balance, one in {one.balance: one for one in (*tuning.candidates("sample", sample), sample)}.items():
        if balance != "none":
            balance_of(data, images, one)
    if tuning.axes:
        Folds(run, images, str(generator.device))
    judges_for(run, images, filtering, generator.device)
    if is_auto(sample):
        Judges(images, generator.device)


def require_as_begun(plans: Sequence[Replicate], splits: Splits, generator: Generator, tuning: Tuning) -> None:
    """Raise ConfigMismatchError for settings of any stage that differ from those that its work here was done with.

    So images are not added for hours to be refused by the classifiers that are there. What `tuning` chooses, and how
    images are kept, is known later, and compared then.
    """
    for plan in plans:
        run, resolution = plan.folder, plan.invert.resolution or generator.resolution
        if EmbeddingStore(run).begun():
            vectors = vectors_made_from(splits.train, generator, plan.invert, resolution)
            require_unchanged(run, "invert", vectors["settings"])
        if SyntheticStore(run, ()).manifest.units():
            images = images_described(plan.sample, resolution, splits.train.size)
            later = {"storage", *(axis.name for axis in tuning.of("sample"))}
            require_unchanged(run, "sample", images, later)
        if ClassifierStore(run).manifest.last("commit") is not None:
            classifiers = recipe(plain(plan.train), generator.device)
            require_unchanged(run, "train", classifiers["settings"], {axis.name for axis in tuning.of("train")})
