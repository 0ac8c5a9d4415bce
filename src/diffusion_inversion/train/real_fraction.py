"""Which share of each batch should be real: measured on real training images that are held out for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ..config.settings import TrainSettings
from ..data.images import LabelledImages
from ..engine.frozen_settings import freeze_settings, settings_file
from ..engine.ledger import Ledger
from ..engine.lock import briefly, is_shared
from ..engine.manifest import timed
from ..engine.progress import track
from ..errors import ConfigMismatchError, DataError, UsageError
from ..generator.device import resolve_device
from ..sample.synthetic import SyntheticStore
from .evaluation import evaluate
from .store import ClassifierStore
from .training import fingerprint, recipe, train
from .verdict import is_uneven

# Section C.2 of the paper: real to synthetic 1:7, 1:3, 1:1, 3:1, 7:1.
PAPER_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)
FRACTION_FILE, CONFIG_FILE = "real_fraction.json", settings_file("train")
COUNTS = ("n_train", "n_synthetic", "n_validation")


@dataclass(frozen=True)
class FractionChoice:
    """What each real fraction gave on the validation images, and the one to train with."""

    real_fraction: float  # the best mean in the measure; of equals the one nearest to 1/2, then the larger
    accuracies: dict[float, tuple[float, ...]]  # of each candidate, one per seed of the settings, in [0, 1]
    n_train: int  # real images trained on
    n_synthetic: int  # synthetic images trained on
    n_validation: int  # real images measured on
    measure: str = "accuracy"  # or "balanced accuracy", where the classes of the real images are uneven


def choose_real_fraction(
    real: LabelledImages,
    synthetic: LabelledImages,
    settings: TrainSettings | None = None,
    *,
    sources: Sequence[Collection[str]],
    candidates: Sequence[float] = PAPER_FRACTIONS,
    share: float = 0.2,
    seed: int = 0,
    device: str = "auto",
    known: Mapping[tuple[float, int], float] | None = None,
    on_candidate: Callable[[float, int, float], None] | None = None,
) -> FractionChoice:
    """Train real+synthetic at every candidate and seed of the settings on a part of the real training images.

    `share` of every class of `real` is held out to measure on; a class of one image stays in training. `sources` names
    for each synthetic image, in their order, the ids of `real` that it was made from (source and partner): those made
    from a held-out image are left out, else the choice would be measured on what was trained on. Their trace in the
    mean vector of guidance stays. Test images play no part. What counts is accuracy, or balanced accuracy where the
    classes of `real` are uneven, as for the verdict.

    `known` holds accuracies by (fraction, seed) that are not measured again. `on_candidate(fraction, seed, accuracy)`
    follows every classifier that is trained. Raises UsageError for arguments that cannot be used, DataError where the
    split leaves nothing to train on or to measure on.
    """
    settings = settings or TrainSettings()
    if settings.mixing == "concatenate":
        raise UsageError("mixing=concatenate: the sizes of the sets decide, there is no real fraction to choose.")
    if len(sources) != len(synthetic):
        raise UsageError(f"sources: {len(sources)} for {len(synthetic)} synthetic images; give one entry for each.")
    if not candidates or len(set(candidates)) < len(candidates) or not all(0 < c < 1 for c in candidates):
        raise UsageError(f"candidates={list(candidates)}: give different shares between 0 and 1, both excluded.")
    held_out = set(validation_rows(real, share, seed))
    held_ids = {real.ids[row] for row in held_out}
    kept = [row for row, made_from in enumerate(sources) if held_ids.isdisjoint(made_from)]
    if not held_out or not kept:
        raise DataError(
            f"{real.name}: {len(held_out)} of {len(real)} images to validate on and {len(kept)} synthetic ones that "
            "were made without them. Give more images, or set real_fraction yourself."
        )
    training = real.subset([row for row in range(len(real)) if row not in held_out])
    validation = real.subset(sorted(held_out))
    mixed_with = synthetic.subset(kept)
    measure = measure_of(real)
    accuracies: dict[float, tuple[float, ...]] = {}
    for fraction in candidates:
        chosen = settings.model_copy(update={"real_fraction": fraction})
        found: list[float] = []
        for run in settings.seeds:
            if known is not None and (fraction, run) in known:
                found.append(known[fraction, run])
                continue
            classifier = train(training, synthetic=mixed_with, settings=chosen, seed=run, device=device)
            measured = evaluate(classifier, validation)
            found.append(measured.accuracy if measure == "accuracy" else measured.balanced_accuracy)
            if on_candidate is not None:
                on_candidate(fraction, run, found[-1])
        accuracies[fraction] = tuple(found)
    best = max(candidates, key=lambda c: (fmean(accuracies[c]), -abs(c - 0.5), c))
    return FractionChoice(best, accuracies, len(training), len(mixed_with), len(validation), measure)


def measure_of(real: LabelledImages) -> str:
    """What the choice counts: accuracy, or balanced accuracy where the classes of the real images are uneven."""
    return "balanced accuracy" if is_uneven(real.labels) else "accuracy"


def real_fraction_of(
    run: Path,
    real: LabelledImages,
    synthetic: LabelledImages,
    settings: TrainSettings,
    *,
    sources: Sequence[Collection[str]],
    device: str = "auto",
    on_trial: Callable[[], None] = lambda: None,
) -> float:
    """The real fraction of a run: chosen once by `choose_real_fraction`, kept in RUN/real_fraction.json, then read.

    Each trial is kept as it ends, so a killed call goes on. Images that are added later, other arms and other seeds do
    not change the choice; other settings of training do, and other seeds before it is made. `on_trial` follows every
    trial, those that were kept too.
    """
    ledger = Ledger(run)
    made_with = recipe(settings, resolve_device(device)) | {"seeds": list(settings.seeds)}
    made_from = [fingerprint(real), fingerprint(synthetic)]
    kept = ledger.read_json(FRACTION_FILE)
    if (number := chosen_before(run, settings, device)) is not None:
        for _ in kept["trials"]:
            on_trial()
        return number
    measure = measure_of(real)
    if kept is not None and (kept["made_with"] != made_with or kept.get("measure", "accuracy") != measure):
        kept = None
    trials: list[list[float]] = kept["trials"] if kept is not None and kept["made_from"] == made_from else []

    def keep(choice: FractionChoice | None = None) -> None:
        counts = {} if choice is None else {name: getattr(choice, name) for name in COUNTS}
        fraction = None if choice is None else choice.real_fraction
        record = {"real_fraction": fraction, "measure": measure, **counts, "trials": trials}
        text = json.dumps({**record, "made_with": made_with, "made_from": made_from}, indent=1) + "\n"
        ledger.commit(FRACTION_FILE, text.encode(), note={"copy": text})

    def on_candidate(fraction: float, seed: int, accuracy: float) -> None:
        trials.append([fraction, seed, accuracy])
        keep()
        on_trial()

    for _ in trials:
        on_trial()
    choice = choose_real_fraction(
        real, synthetic, settings, sources=sources, device=device, on_candidate=on_candidate,
        known={(fraction, int(seed)): accuracy for fraction, seed, accuracy in trials},
    )  # fmt: skip
    keep(choice)
    return choice.real_fraction


def with_fraction(
    run: Path, real: LabelledImages, synthetic: LabelledImages, settings: TrainSettings, device: str
) -> TrainSettings:
    """The settings with a number for real_fraction=auto: the one chosen before, or one chosen now, whatever the arms.

    So arms and seeds that are added later, in whatever order, have the same number.
    """
    if settings.real_fraction != "auto":
        return settings
    fraction = chosen_before(run, settings, device)
    if fraction is None:
        require_choosable(run, settings, device)
        sources = SyntheticStore(run, real.class_names).sources()
        total = len(PAPER_FRACTIONS) * len(settings.seeds)
        with (
            briefly(run, "real-fraction"),
            timed(ClassifierStore(run).manifest),
            track("real fraction", total, "trials") as advance,
        ):
            fraction = real_fraction_of(
                run, real, synthetic, settings, sources=sources, device=device, on_trial=lambda: advance(1)
            )
    settings = settings.model_copy(update={"real_fraction": fraction})
    freeze_fraction(run, settings, device)
    return settings


def check_fraction(run: Path, real: LabelledImages, synthetic: LabelledImages, settings: TrainSettings) -> None:
    """Raise what choosing the real fraction raises: choose it, as if every trial had been measured."""
    sources = SyntheticStore(run, real.class_names).sources()
    measured = {(fraction, seed): 0.0 for fraction in PAPER_FRACTIONS for seed in settings.seeds}
    choose_real_fraction(real, synthetic, settings, sources=sources, known=measured)


def chosen_before(run: Path, settings: TrainSettings, device: str = "auto") -> float | None:
    """The number that a run chose with these settings, whatever their arms and seeds; None where it has none yet."""
    kept = Ledger(run).read_json(FRACTION_FILE)
    if kept is None or kept["real_fraction"] is None:
        return None
    made_with = {key: value for key, value in kept["made_with"].items() if key != "seeds"}
    return float(kept["real_fraction"]) if made_with == recipe(settings, resolve_device(device)) else None


def require_choosable(run: Path, settings: TrainSettings, device: str = "auto") -> None:
    """Raise ConfigMismatchError, before any trial, where the classifiers of a run leave nothing to choose.

    They were trained with other settings, or with a mixture whose number was given.
    """
    frozen = Ledger(run).read_json(CONFIG_FILE)
    if frozen is None or not ClassifierStore(run).manifest.units():
        return
    number = frozen["settings"]["real_fraction"]
    freeze_settings(run, "train", recipe(settings.model_copy(update={"real_fraction": number}), resolve_device(device)))
    if _mixed(run):
        raise ConfigMismatchError(
            f"{run}: real_fraction=auto: real+synthetic was trained here with the number {number:g}. Give "
            f"--real-fraction {number:g}, or --restart to choose another."
        )


def freeze_fraction(run: Path, settings: TrainSettings, device: str = "auto") -> None:
    """Let a run whose classifiers saw no mixture go on with another number: it plays no part in what they are.

    In a shared run nothing changes, since others may train with the number that is recorded.
    """
    ledger = Ledger(run)
    frozen, described = ledger.read_json(CONFIG_FILE), recipe(settings, resolve_device(device))
    if frozen is None or frozen == described or _mixed(run) or is_shared(run):
        return
    frozen["settings"]["real_fraction"] = settings.real_fraction
    if frozen == described:
        text = json.dumps(described, indent=2) + "\n"
        ledger.commit(CONFIG_FILE, text.encode(), note={"copy": text})


def _mixed(run: Path) -> bool:
    return any(record["arm"] == "real+synthetic" for record in ClassifierStore(run).manifest.units().values())


def validation_rows(images: LabelledImages, share: float, seed: int) -> list[int]:
    """Rows to hold out, ascending: `share` of every class, at least one image and never the last.

    Which images of a class are held out depends on the seed and their ids alone. Raises UsageError for a bad share.
    """
    if not 0 < share < 1:
        raise UsageError(f"share={share}: give a share between 0 and 1, both excluded.")
    rows: list[int] = []
    for label in range(len(images.class_names)):
        members = (images.labels == label).nonzero()[:, 0].tolist()
        members.sort(key=lambda row: hashlib.sha256(f"{seed}/validation/{images.ids[row]}".encode()).digest())
        rows += members[: max(min(max(round(share * len(members)), 1), len(members) - 1), 0)]
    return sorted(rows)
