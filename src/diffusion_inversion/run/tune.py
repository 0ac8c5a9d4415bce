"""Settings of stage 2 and of training, chosen on folds of the training images before they are used: `dinv run --tune`.

Images of candidates are drawn from the run's vectors into RUN/tuning/images, which is deleted once the choice is made:
the run then draws its own, with the settings that were chosen. Test images play no part.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from ..config.sampling import SampleSettings
from ..config.settings import Settings
from ..config.training import TrainSettings
from ..config.tuning import AUTO, Tuning
from ..data.images import LabelledImages
from ..engine.frozen_settings import freeze_settings, settings_file
from ..engine.ledger import Ledger
from ..engine.lock import briefly, is_shared
from ..engine.units import unit_name
from ..errors import ConfigMismatchError, UsageError
from ..generator.device import resolve_device
from ..generator.generator import Generator
from ..invert.embeddings import Embeddings, read_embeddings
from ..sample.balance import counts_of
from ..sample.sampling import check, draw_variants
from ..sample.synthetic import SyntheticStore
from ..train.choosing import (
    FOLDER,
    SAMPLE_FILE,
    SCRATCH,
    TRAIN_FILE,
    Candidate,
    Folds,
    Material,
    choices_of,
    choose_all,
    chosen_before,
    seconds_of,
)
from ..train.store import ClassifierStore
from ..train.training import recipe
from .balancing import values_of_run

MIXTURE = ("real_fraction", "mixing")  # settings that arms of one kind of image do not see
HELD = 3  # sets of images in memory


def prepared(tuning: Tuning | None, sample: SampleSettings | None, train: TrainSettings) -> Tuning:
    """What is to be chosen, `real_fraction=auto` with it, after every value was checked beside the run's own.

    Raises UsageError, one line, for a value that cannot be, or where training has no synthetic images to choose for.
    """
    given = tuning = tuning or Tuning()
    if train.real_fraction == "auto":
        if any(axis.key == AUTO.key for axis in tuning.axes):
            raise UsageError(f"--tune {AUTO.name}: --real-fraction auto chooses it already; leave out one of them.")
        tuning = replace(tuning, axes=(*tuning.axes, AUTO))
    if tuning.seconds is not None and not tuning.axes:
        raise UsageError("--tune-seconds: nothing is to be chosen; give --tune or --real-fraction auto too.")
    if given.axes and "real+synthetic" not in train.arms and not scored_by_real(tuning, train):
        raise UsageError(
            f"--tune: arms={','.join(train.arms)}: choices are scored by real+synthetic; add that arm. By real alone, "
            "where it is the only arm, settings of training are that are not about both."
        )
    if sample is not None and sample.noise_strength == "auto" and tuning.of("sample"):
        names = ", ".join(axis.key for axis in tuning.of("sample"))
        raise UsageError(
            f"--tune {names}: with --noise-strength auto every value would need strengths of its own; give a number, "
            "or choose first and go on with what was chosen."
        )
    bases: dict[str, Settings | None] = {"sample": sample, "train": plain(train)}
    tried = [axis.others(base) for axis in tuning.axes if (base := bases[axis.stage]) is not None]
    return replace(tuning, family=sum(map(len, tried)))


def scored_by_real(tuning: Tuning, train: TrainSettings) -> bool:
    """Whether real images alone score: they are the only arm, and no setting is about synthetic ones beside them."""
    return train.arms == ("real",) and all(axis.stage == "train" and axis.name not in MIXTURE for axis in tuning.axes)


def plain(train: TrainSettings) -> TrainSettings:
    """The settings with the default number where real_fraction=auto: what the choice has to beat."""
    if train.real_fraction != "auto":
        return train
    return train.model_copy(update={"real_fraction": TrainSettings.model_fields["real_fraction"].default})


def tune_sampling(
    run: Path,
    images: LabelledImages,
    generator: Generator,
    sample: SampleSettings,
    train: TrainSettings,
    tuning: Tuning,
) -> SampleSettings:
    """The settings of stage 2, chosen once for a run before it draws; RUN/sample.tuning.json keeps what was found.

    Call it after stage 1, inside `run_lock`. Raises ConfigMismatchError where images were drawn before a choice.
    """
    axes, train = tuning.of("sample"), plain(train)
    if not axes:
        return sample

    def describe(settings: SampleSettings) -> dict[str, object]:
        return {"sample": settings.described(), "train": recipe(train, generator.device)}

    with briefly(run, FOLDER):
        found, chosen = chosen_before(run, SAMPLE_FILE, axes, sample, describe)
        if len(found) < len(axes):
            if SyntheticStore(run, ()).manifest.units():
                names = ", ".join(axis.key for axis in axes)
                raise ConfigMismatchError(
                    f"{run}: --tune {names}: images were drawn here before it was chosen. Give the values of "
                    f"{settings_file('sample')} as options to go on with them, or choose another run folder."
                )
            embeddings = read_embeddings(run)
            folds = Folds(run, images.resized(check(embeddings, generator, sample)), str(generator.device))
            pictures = _Pictures(folds, embeddings, generator)

            def make(settings: SampleSettings, purpose: str) -> Candidate:
                return Candidate(
                    train,
                    partial(pictures.key, settings, purpose),
                    partial(pictures.material, settings),
                    partial(pictures.seconds, settings, purpose),
                )

            _, chosen = choose_all(folds, SAMPLE_FILE, sample, axes, make, describe, tuning)
        shutil.rmtree(run / FOLDER / SCRATCH, ignore_errors=True)
    return chosen


class _Pictures:
    """The images of candidates, drawn when first asked for; those that differ in their number alone share a folder."""

    def __init__(self, folds: Folds, embeddings: Embeddings, generator: Generator) -> None:
        self.folds, self.embeddings, self.generator = folds, embeddings, generator
        self.material = lru_cache(HELD)(self._material)

    def _unit(self, settings: SampleSettings) -> str:
        made_from = [settings.described(), self.embeddings.digest, self.generator.record]
        return f"images-{unit_name([json.dumps(made_from, sort_keys=True)])}"

    def key(self, settings: SampleSettings, purpose: str) -> str:
        """What identifies them, once they were drawn and that was recorded."""
        unit, manifest = self._unit(settings), self.folds.manifest
        if (known := manifest.units().get(unit)) is not None:
            return str(known["key"])
        clock = seconds_of(self.generator.device)
        key = self.material(settings).key
        manifest.commit(unit, [unit], purpose=purpose, key=key, seconds=round(clock(), 3))
        return key

    def seconds(self, settings: SampleSettings, purpose: str) -> float:
        """What drawing them took, where it was done for this purpose."""
        record = self.folds.manifest.units()[self._unit(settings)]
        return float(record["seconds"]) if record["purpose"] == purpose else 0.0

    def _material(self, settings: SampleSettings) -> Material:
        """The images; those that several numbers of variants have in common lie there once."""
        embeddings = self.embeddings
        like = json.dumps([settings.described({"variants", "balance"}), embeddings.digest], sort_keys=True)
        home = self.folds.run / FOLDER / SCRATCH / hashlib.sha256(like.encode()).hexdigest()[:16]
        store = SyntheticStore(home, embeddings.class_names)
        value_of = values_of_run(self.folds.run, settings)
        draw_variants(embeddings, self.generator, home, settings, value_of)
        labels = dict(zip(embeddings.ids, embeddings.labels.tolist(), strict=True))
        asked, known = counts_of(labels, settings, value_of), self.folds.real.class_names
        return Material(store.read(asked).with_classes_after(known), store.sources(asked))


def tune_training(
    run: Path,
    real: LabelledImages,
    material: Callable[[], Material | None],
    settings: TrainSettings,
    device: str,
    tuning: Tuning,
) -> TrainSettings:
    """The settings of training, chosen once for a run, whatever its arms; RUN/train.tuning.json keeps what was found.

    So arms, seeds and images that are added later, in whatever order, have the same ones. Where real is the only arm it
    scores, whatever the `material`. Raises ConfigMismatchError where classifiers leave nothing to choose.
    """
    axes, settings = tuning.of("train"), plain(settings)
    if not axes:
        return settings
    alone = scored_by_real(tuning, settings)

    def describe(candidate: TrainSettings) -> dict[str, object]:
        return recipe(candidate, resolve_device(device)) | ({"arm": "real"} if alone else {})

    with briefly(run, FOLDER):
        found, chosen = chosen_before(run, TRAIN_FILE, axes, settings, describe)
        if len(found) < len(axes):
            _require_choosable(run, chosen, tuning, device)
            spent = sum(one["seconds"] for one in choices_of(run) if one["setting"].startswith("sample."))
            folds, made = Folds(run, real, device), None if alone else material()
            folds.check(made)
            arm, key = ("real", "no synthetic images") if made is None else ("real+synthetic", made.key)

            def make(candidate: TrainSettings, _: str) -> Candidate:
                return Candidate(candidate, lambda: key, lambda: made, arm=arm)

            _, chosen = choose_all(folds, TRAIN_FILE, settings, axes, make, describe, tuning, spent=spent)
    _freeze_mixture(run, chosen, device)
    return chosen


def _require_choosable(run: Path, settings: TrainSettings, tuning: Tuning, device: str) -> None:
    """Raise ConfigMismatchError, before any trial, where the classifiers of a run leave nothing to choose.

    They were trained with other settings, or with what is now to be chosen.
    """
    frozen = Ledger(run).read_json(settings_file("train"))
    if frozen is None or not ClassifierStore(run).manifest.units():
        return
    axes = tuning.of("train")
    numbers = {axis.name: frozen["settings"][axis.name] for axis in axes}
    freeze_settings(run, "train", recipe(settings.model_copy(update=numbers), resolve_device(device)))
    if _mixed(run) or any(axis.name not in MIXTURE for axis in axes):
        had = ", ".join(f"{name} {value}" for name, value in numbers.items())
        raise ConfigMismatchError(
            f"{run}: {', '.join(numbers)}: nothing is left to choose, classifiers were trained here with {had}. Give "
            "that as options, or `dinv train --restart` to choose anew."
        )


def _freeze_mixture(run: Path, settings: TrainSettings, device: str) -> None:
    """Let a run whose classifiers saw no mixture go on with another one: it plays no part in what they are.

    In a shared run nothing changes, since others may train with what is recorded.
    """
    ledger, name = Ledger(run), settings_file("train")
    frozen, described = ledger.read_json(name), recipe(settings, resolve_device(device))
    if frozen is None or frozen == described or _mixed(run) or is_shared(run):
        return
    frozen["settings"] |= {one: described["settings"][one] for one in MIXTURE}
    if frozen == described:
        ledger.commit_json(name, described, copied=True, indent=2)


def _mixed(run: Path) -> bool:
    return any(record["arm"] == "real+synthetic" for record in ClassifierStore(run).manifest.units().values())
