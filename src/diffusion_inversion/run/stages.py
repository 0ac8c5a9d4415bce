"""The stages over a run folder, one after the other: what the commands call, each on its own or all by `run`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from ..config.commands import AuditSettings
from ..config.fidelity import OFF, FilterSettings
from ..config.planning import LogSettings
from ..config.sampling import SampleSettings
from ..config.settings import DataSettings, InvertSettings
from ..config.training import TrainSettings
from ..config.tuning import Tuning
from ..data.datasets import Splits
from ..data.images import LabelledImages
from ..engine.disk import require_room
from ..engine.ledger import Ledger
from ..engine.lock import is_shared, run_lock, say
from ..engine.manifest import timed
from ..engine.progress import track
from ..errors import DinvError, UsageError
from ..generator.device import resolve_device
from ..generator.generator import Generator
from ..invert.embeddings import Embeddings, EmbeddingStore, read_embeddings
from ..invert.inversion import invert
from ..sample.sampling import check, draw_variants, storage_of
from ..sample.synthetic import NAMED, SyntheticStore
from ..train.arms import ArmResults, ArmRun, check_arms, train_arms
from ..train.choosing import Folds, Material
from ..train.classifiers import choose_architecture
from ..train.own_size import at_own_size
from ..train.recipes import resolve
from ..train.store import ClassifierStore
from .attributes import attributes_of
from .balancing import check_balance, counted, keep_counts, require_attribute, values_of_run
from .checks import check_run, check_subset, require_as_begun
from .coarseness import coarseness
from .fidelity.copies import copy_gate, keep_copies_setting, recorded_copies
from .fidelity.stage import JUDGED, filtered, judges_for
from .foresight import forewarnings
from .forget import follow
from .gallery import images_of_vectors
from .gathered import is_grown
from .images import open_splits, read_record
from .layout import GENERATOR_FILE, ledger_files, stages_from, stores_of
from .logs import SILENT, Log, logging_of
from .methods import images_made, method_of, require_images, sources_of_images
from .online import ahead_of, refuse_online
from .plan.forecast import disk_bytes, sum_left
from .plan.start import begin
from .preview import Wanted, picture
from .reconstructions import draw_reconstructions, read_likeness, read_reconstructions
from .replicates import Replicate, open_replicate, replicate
from .report import RunRecord
from .reporting import replicated, report_stage
from .room import SPARE_BYTES, classifier_bytes, png_bytes, vector_bytes
from .strengths import strengths_for
from .tune import prepared, tune_sampling, tune_training


def invert_stage(run: Path, splits: Splits, generator: Generator, settings: InvertSettings) -> Embeddings:
    """Stage 1 over the training images; notes its time and the generator to load again."""
    missing = len(set(splits.train.ids) - set(EmbeddingStore(run).images()))
    _require_room(run, missing, vector_bytes(generator, settings), "vectors")
    with timed(EmbeddingStore(run).manifest):
        found = invert(splits.train, generator, run, settings)
    source = {"name": generator.name, "source": generator.source, "revision": generator.revision, **generator.record}
    Ledger(run).commit_json(GENERATOR_FILE, source, copied=True, indent=2)
    return found


def sample_stage(
    run: Path,
    generator: Generator,
    settings: SampleSettings,
    *,
    anew: bool = False,
    sources: LabelledImages | None = None,
) -> int:
    """Stage 2 over the stored vectors; notes its time and returns how many images there are.

    With `sources`, the images that were inverted, it is measured how much of each its vector keeps; without them
    noise_strength cannot be auto.
    `anew` deletes what this stage and later ones made, once the settings are known to be usable and there is room for
    what they ask for beyond what is deleted.
    """
    embeddings, value_of = read_embeddings(run), values_of_run(run, settings)
    side = check(embeddings, generator, settings)
    labels, count = embeddings.labels.tolist(), len(embeddings) * settings.variants
    balance = counted(dict(zip(embeddings.ids, labels, strict=True)), embeddings.class_names, settings, value_of)
    make_way({run: count}, side, anew=anew)
    store = SyntheticStore(run, embeddings.class_names)
    settings = settings.model_copy(update={"storage": storage_of(store, settings, count)})
    with timed(store.manifest):
        strengths = strengths_for(run, embeddings, generator, settings, sources)
        draw_variants(embeddings, generator, run, settings, value_of, strengths)
        keep_counts(run, balance)
        draw_reconstructions(run, embeddings, generator, settings, sources)
    return count


def sources_of(run: Path) -> LabelledImages | None:
    """The training images of a run; None, with a warning, where they cannot be had: stage 2 can do without."""
    try:
        return open_splits(run).train
    except DinvError as error:
        cause = str(error).partition("\n")[0]
        print(f"warning: how much of each image its vector keeps is not measured: {cause}", file=sys.stderr, flush=True)
        return None


def _require_room(run: Path, missing: int, size: int, what: str) -> None:
    if missing:
        require_room(run, missing * size + SPARE_BYTES, f"{missing} {what}")


def make_way(counts: Mapping[Path, int], side: int, *, anew: bool) -> None:
    """Raise DiskError unless there is room for so many images of `side` px in each run, less those that it has.

    Then, with `anew`, `restart` stage 2 in all of them: what is deleted makes room for as many.
    """
    missing = sum(max(count - SyntheticStore(run, ()).count, 0) for run, count in counts.items())
    _require_room(next(iter(counts)), missing, png_bytes(side), f"images of {side} px")
    if anew:
        for run in counts:
            with run_lock(run):
                restart(run, "sample")


def inverted_with(run: Path) -> tuple[str, str | None]:
    """Path or hub id, and revision, of the generator a run was inverted with; UsageError where it was not inverted."""
    found = Ledger(run).read_json(GENERATOR_FILE)
    if found is None:
        raise UsageError(f"{run}: not inverted yet. Start with `dinv invert DATA --out {run}`.")
    return found["source"], found["revision"]


def restart(run: Path, stage: Literal["sample", "train"]) -> None:
    """Delete what a stage made, and what was made from it, so that it can be done otherwise."""
    ledger = Ledger(run)
    for part in reversed(stages_from(stage)):  # so a kill between leaves nothing whose sources are gone
        # The manifest first and the settings last: a kill between leaves nothing that other settings could take over.
        for store in stores_of(part):
            (run / store.manifest).unlink(missing_ok=True)
            shutil.rmtree(run / store.folder, ignore_errors=True)
        for name in ledger_files(stage=part):
            ledger.drop(name)


def train_stage(
    run: Path,
    splits: Splits,
    settings: TrainSettings,
    device: str = "auto",
    *,
    anew: bool = False,
    own_size: bool = True,
    tuning: Tuning | None = None,
    filtering: FilterSettings = OFF,
    copies: AuditSettings | None = None,
    generator: Generator | None = None,
    log: Log = SILENT,
) -> ArmResults:
    """Train and test every arm and seed; notes its time. `anew` deletes what this stage made before, once it can begin.

    Synthetic images that show another class than their label, or copy a training image, are seen to first, as
    `filtering` and `copies` say (run/fidelity/); where `copies` is not given, as the run did before. Then settings of
    training that `tuning` names are chosen (run/tune.py), and real_fraction where it is "auto".
    With `own_size` the real images are an arm at their own side too, where that is larger (own_size.py).
    Raises UsageError where images or vectors were added since the stage before this one ran.
    """
    where = resolve_device(device)
    require_whole(run, splits)
    synthetic = images_made(run, splits.train.class_names)
    real, test = splits.train.resized(synthetic.size), splits.test.resized(synthetic.size)
    own = at_own_size(splits, synthetic.size) if own_size else None
    checked = synthetic
    if filtering.filter in JUDGED:  # whatever the judge will say of them, each has a confidence then
        checked = replace(synthetic, confidence=torch.ones(len(synthetic)))
    arms = check_arms(real, checked, test, settings, own)
    tuning = prepared(None, None, settings) if tuning is None else tuning
    copies = recorded_copies(run) if copies is None else copies
    refuse_online(run, settings, filtering, tuning, copies)
    if filtering.filter != "off" and is_grown(run):
        how = f"--filter {filtering.filter}"
        raise UsageError(f"{how}: images were grown in {run}, chosen by what they show. Leave it out.")
    judges = judges_for(run, real, filtering, where)
    copies = None if copies is None else copies.model_copy(update={"device": str(where)})
    gate = copy_gate(run, copies, splits, synthetic.size)

    def material() -> Material:
        return Material(synthetic, sources_of_images(run, real.class_names))

    if anew:
        if tuning.of("train"):
            Folds(run, real, device).check(material())
        restart(run, "train")
    keep_copies_setting(run, copies)
    if (kept := filtered(run, material, filtering, judges, generator, gate)) is not None:
        synthetic, material = kept.synthetic, lambda: kept
    settings = tune_training(run, real, material, settings, device, tuning)
    total = settings.steps * len(arms) * len(settings.seeds)
    trained = {(one["arm"], one["seed"]) for one in ClassifierStore(run).manifest.units().values()}
    size = classifier_bytes(choose_architecture(settings.architecture, where))
    _require_room(run, max(len(arms) * len(settings.seeds) - len(trained), 0), size, "classifiers")
    with timed(ClassifierStore(run).manifest), track("train", total, "steps", resolve(settings).batch_size) as advance:
        done: dict[tuple[str, int], int] = {}  # steps of each classifier, also those before a kill

        def on_step(arm: str, seed: int, step: int, loss: float) -> None:
            if (arm, seed) in trained - done.keys():  # on other images
                log.trained_anew(arm, seed)
            advance(step - done.get((arm, seed), 0))
            done[arm, seed] = step
            log.step(arm, seed, step, loss, settings.steps)

        def on_run(found: ArmRun) -> None:
            advance(settings.steps - done.get((found.arm, found.seed), 0))
            done[found.arm, found.seed] = settings.steps
            log.classifier(found, settings.seeds.index(found.seed))

        results = train_arms(
            real,
            synthetic,
            test,
            own_size=own,
            settings=settings,
            device=device,
            folder=run,
            on_step=on_step,
            on_run=on_run,
            ahead=ahead_of(run, splits.train, settings, where, generator),
        )
        advance(total - sum(done.values()))  # what another process trained
    return results


def require_whole(run: Path, splits: Splits) -> None:
    """Raise UsageError unless every training image has its vector and every vector its variants: arms must be equal.

    And unless the reconstructions are there, without which training would end without its report. Images that were
    made without vectors must be those of the training images (methods.py).
    """
    if method_of(run).again is not None:
        require_images(run, splits)
        return
    store = EmbeddingStore(run)
    if set(store.images()) != set(splits.train.ids):
        lacking = len(set(splits.train.ids) - set(store.images()))
        raise UsageError(
            f"{run}: {lacking} of {len(splits.train)} training images have no vector: stage 1 did not finish, or they "
            "were added since. Run the same `dinv invert` command again first."
        )
    embeddings = read_embeddings(run)
    synthetic = SyntheticStore(run, embeddings.class_names)
    if len(synthetic.asked_for(synthetic.table(*NAMED))) != len(embeddings) * synthetic.variants():
        raise UsageError(f"{run}: vectors were added since stage 2. Run the same `dinv sample` command again first.")
    read_reconstructions(run, embeddings)


def run_all(
    run: Path,
    data: DataSettings,
    generator: Generator,
    *,
    invert: InvertSettings,
    sample: SampleSettings,
    train: TrainSettings,
    command: str,
    replicates: int = 1,
    own_size: bool = True,
    tuning: Tuning | None = None,
    filtering: FilterSettings = OFF,
    attributes: str | None = None,
    audit: AuditSettings | None = None,
    time_limit: float | None = None,
    preview: Wanted | None = None,
    logs: LogSettings | None = None,
) -> RunRecord:
    """Every stage in order, for every replicate; what is already in `run` is not done again.

    `time_limit`, in seconds, lowers some settings before the work where it would take longer (plan/time_limit.py).
    What `tuning` names is chosen in each replicate before it is used. Settings that a later stage would refuse, and
    images that a replicate would, are refused before stage 1. With `audit` copies of training images are seen to
    before training. With `preview` a few images are drawn first and thrown away, which changes no bit of the run.
    """
    tuning = prepared(tuning, sample, train)
    plans = [replicate(run, number, data, invert, sample, train) for number in range(replicates)]
    splits = open_splits(run, data)
    for one in (*tuning.candidates("sample", sample), sample):
        require_attribute(one, attributes)
        refuse_online(run, train, filtering, tuning, audit, one.balance)
    tested_by = attributes_of(run, splits, attributes)
    images = splits.train
    check_balance(data, images, sample)
    side, own = check_run(
        splits, generator, invert, sample, train, own_size=own_size, tuning=tuning, judged=filtering.filter in JUDGED
    )
    if time_limit is None:  # which may lower what is asked for
        require_as_begun(plans, splits, generator, tuning)
        _require_all_room(plans, images, generator, side, own)
    check_subset(run, images, generator, data, sample, tuning, filtering)
    for plan in plans[1:]:
        if read_record(plan.folder) is None:
            with _replicate(run, plan) as theirs:
                check_subset(plan.folder, theirs.train, generator, data, sample, tuning, filtering)
    forewarn(splits, train, side, replicates=replicates, own_size=own_size)
    coarseness(run, images, generator, sample.resolution or invert.resolution or generator.resolution, side)
    if preview is not None:
        notes = forewarnings(splits, train, side, replicates=replicates, own_size=own_size)
        preview = replace(preview, notes=notes)
    now = begin(
        plans, splits, generator, side=side, own=own, limit=time_limit, tuning=tuning, filtering=filtering, audit=audit,
        preview=preview,
    )  # fmt: skip
    train = now.train
    plans = [replicate(run, number, data, now.invert, now.sample, train) for number in range(replicates)]
    classifiers = len(train.seeds) * (len(train.arms) + (own is not None))
    totals = {"vectors": len(images), "images": len(images) * plans[0].sample.variants, "classifiers": classifiers}
    say({"totals": {kind: replicates * count for kind, count in totals.items()}})
    described = {"data": data, "invert": now.invert, "sample": now.sample, "train": train}
    settings = {part: one.model_dump(mode="json") for part, one in described.items()}
    with logging_of(run, logs, settings) as log:
        results = _all_stages(plans[0], splits, generator, own_size, tuning, filtering, audit, log)
        others = []
        for plan in plans[1:]:
            print(f"replicate {plan.number} of 0 to {replicates - 1}", file=sys.stderr, flush=True)
            with _replicate(run, plan) as theirs:
                numbered = log.of(plan.number)
                found = _all_stages(plan, theirs, generator, own_size, tuning, filtering, audit, numbered)
                report_stage(plan.folder, theirs, found, plan.train, command)
                others.append(replicated(plan.folder, theirs, found))
        record = report_stage(run, splits, results, train, command, others, tested_by)
    say({"totals": {}})  # what is there is all, of chosen variants or groups too
    return record


def _require_all_room(
    plans: Sequence[Replicate], images: LabelledImages, generator: Generator, side: int, own: int | None
) -> None:
    """Raise DiskError unless there is room for all that a run still writes, before it begins."""
    todo, first = sum_left(plans, len(images), own=own is not None), plans[0]
    if not todo.nothing:
        needed = disk_bytes(todo, generator, first.invert, first.train, side)
        require_room(first.folder, needed, f"{todo.vectors} vectors, {todo.variants} images of {side} px and the rest")


def forewarn(splits: Splits, settings: TrainSettings, used: int, *, replicates: int = 1, own_size: bool = True) -> None:
    """Say on stderr what can be said before the work (foresight.py)."""
    for sentence in forewarnings(splits, settings, used, replicates=replicates, own_size=own_size):
        print(f"note: {sentence}", file=sys.stderr, flush=True)


def _all_stages(
    plan: Replicate,
    splits: Splits,
    generator: Generator,
    own_size: bool,
    tuning: Tuning,
    filtering: FilterSettings,
    audit: AuditSettings | None,
    log: Log,
) -> ArmResults:
    vectors = invert_stage(plan.folder, splits, generator, plan.invert)
    log.vectors(vectors)
    sample = tune_sampling(plan.folder, splits.train, generator, plan.sample, plan.train, tuning)
    sample_stage(plan.folder, generator, sample, sources=splits.train)
    log.picture("images", lambda: picture_of(plan.folder, splits.train, vectors), 0)
    return train_stage(
        plan.folder, splits, plan.train, str(generator.device), own_size=own_size, tuning=tuning, filtering=filtering,
        copies=audit, generator=generator, log=log,
    )  # fmt: skip


def picture_of(run: Path, sources: LabelledImages, vectors: Embeddings) -> bytes:
    """The images that the report shows, as one PNG."""
    images = images_of_vectors(run, sources, vectors, read_likeness(run, vectors))
    return picture(images, sources.class_names)


@contextmanager
def _replicate(run: Path, plan: Replicate) -> Iterator[Splits]:
    """Hold the folder of a replicate as the run is held, without what the run must forget, and open its images."""
    with run_lock(plan.folder, shared=is_shared(run)):
        follow(run, plan.folder)
        yield open_replicate(run, plan)
