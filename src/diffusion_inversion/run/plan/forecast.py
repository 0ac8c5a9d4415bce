"""Seconds, disk and memory that a run still takes, from the seconds of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...config.sampling import SampleSettings
from ...config.settings import InvertSettings
from ...config.training import TrainSettings
from ...data.datasets import Splits
from ...engine.disk import human
from ...engine.ledger import Ledger
from ...engine.progress import duration
from ...generator.generator import Generator
from ...invert.embeddings import EmbeddingStore
from ...invert.inversion import unit_size
from ...invert.optimisation import curve_steps
from ...sample.balance import counts_of
from ...sample.synthetic import SyntheticStore, job_name
from ...train.classifiers import choose_architecture
from ...train.evaluation import OWN_SIZE
from ...train.recipes import resolve
from ...train.store import ClassifierStore
from ..balancing import values_of_run
from ..images import read_record
from ..layout import COARSENESS_FILE, GROWN, RECONSTRUCTIONS_FILE, RUN_FILE
from ..online import HELD
from ..replicates import Replicate
from ..room import SPARE_BYTES, classifier_bytes, png_bytes, vector_bytes
from ..strengths import PROBE_STEPS, PROBES, ROUNDS, left_to_search
from .steps import Steps

REPORT = 4.0  # seconds of verdict and report of a small run on an idle core; docs/results/plan.md


@dataclass(frozen=True)
class Left:
    """What a run has still to do."""

    vectors: int
    variants: int  # synthetic images
    reconstructions: int
    classifiers: int  # of the arms whose images have the side of synthetic ones
    own_classifiers: int  # of real images at their own side
    probes: int  # of the autoencoder
    reports: int
    searched: int = 0  # images whose noise strength is to be found
    online: int = 0  # synthetic images that are drawn while classifiers train
    kept: int = 0  # of these that lie on the disk at a time
    grown: int = 0  # images of `dinv grow`, which are there and are trained on

    def __add__(self, other: Left) -> Left:
        return Left(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def nothing(self) -> bool:
        return not (self.vectors or self.variants or self.reconstructions or self.classifiers or self.own_classifiers)


def left(plan: Replicate, images: int, *, own: bool) -> Left:
    """What is missing in the folder of a run or replicate of so many training images; all where there is none."""
    run, ledger = plan.folder, Ledger(plan.folder)
    missing = _undrawn(plan, images)
    learned = len(EmbeddingStore(run).images())
    # Classifiers are of the images that were there: with others all of them are trained anew.
    units = [] if missing or learned < images else ClassifierStore(run).manifest.units().values()
    trained = {(unit["arm"], unit["seed"]) for unit in units}
    asked = [(arm, seed) for seed in plan.train.seeds for arm in (*plan.train.arms, *([OWN_SIZE] if own else []))]
    online = max(plan.train.online - plan.sample.variants, 0)
    lacking = [arm for arm, seed in asked if (arm, seed) not in trained]
    return Left(
        vectors=max(images - learned, 0),
        variants=missing,
        reconstructions=0 if not missing and ledger.holds(RECONSTRUCTIONS_FILE) else images,
        classifiers=len(lacking) - lacking.count(OWN_SIZE),
        own_classifiers=lacking.count(OWN_SIZE),
        probes=int(plan.number == 0 and not ledger.holds(COARSENESS_FILE)),
        reports=int(bool(lacking) or not ledger.holds(RUN_FILE)),
        searched=left_to_search(run, plan.sample, images),
        online=images * online if lacking else 0,
        kept=images * (online if plan.train.online_keep else min(online, HELD + 1)) if lacking else 0,
        grown=sum(unit["count"] for unit in SyntheticStore(run, (), GROWN).manifest.units().values()),
    )


def _undrawn(plan: Replicate, images: int) -> int:
    """How many variants are missing: of the counts that are asked for, where a run was begun with others."""
    there = SyntheticStore(plan.folder, ()).manifest.jobs()
    record = read_record(plan.folder) if there else None
    if record is None:
        return images * plan.sample.variants
    labels = dict(zip(record["train"]["ids"], record["train"]["labels"], strict=True))
    counts = counts_of(labels, plan.sample, values_of_run(plan.folder, plan.sample))
    wanted = (job_name(source, variant) for source, most in counts.items() for variant in range(most))
    return sum(job not in there for job in wanted) + max(images - len(labels), 0) * plan.sample.variants


@dataclass(frozen=True)
class Forecast:
    """Seconds of each stage of a run on one machine or several, bytes of disk, and of memory of one process."""

    seconds: dict[str, float]
    disk: int
    memory: int
    workers: int = 1

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def after(self, seconds: float) -> Forecast:
        """With so many seconds in which a run starts up and reads its images."""
        return replace(self, seconds={"start": seconds, **self.seconds})

    def cost(self, price: float) -> float:
        """Of all machines at so much for an hour of each."""
        return self.total / 3600 * self.workers * price

    def record(self, price: float | None = None) -> dict[str, Any]:
        """As JSON data: seconds, bytes, cost."""
        found = {"seconds": self.seconds, "total_seconds": self.total, "disk_bytes": self.disk}
        asked = {} if price is None else {"price": price, "cost": self.cost(price)}
        return {**found, "memory_bytes": self.memory, "workers": self.workers, **asked}

    def lines(self, price: float | None = None) -> list[str]:
        """What to say of it, in a few lines."""
        stages = ", ".join(f"{stage} {duration(value)}" for stage, value in self.seconds.items() if value)
        workers = f" with {self.workers} workers" if self.workers > 1 else ""
        lines = [
            f"about {duration(self.total)}{workers}: {stages} (steps timed on this machine as it is now)",
            f"{human(self.disk)} of disk and {human(self.memory)} of memory at most",
        ]
        if price is not None:
            machines = f" x {self.workers} machines" if self.workers > 1 else ""
            lines.append(f"cost {self.cost(price):.2f}: {self.total / 3600:.2f} h{machines} x {price:g}")
        return lines


def forecast(
    steps: Steps,
    todo: Left,
    splits: Splits,
    generator: Generator,
    invert: InvertSettings,
    sample: SampleSettings,
    train: TrainSettings,
    *,
    side: int,
    workers: int = 1,
) -> Forecast:
    """Multiply the seconds of steps by how many are left; units of work are shared by `workers` in whole units."""
    found = seconds(steps, todo, len(splits.test), len(splits.train), invert, sample, train)
    units = {
        "stage 1": todo.vectors / unit_size(invert),
        "stage 2": (todo.variants + todo.reconstructions) / sample.batch_size,
        "training": todo.classifiers + todo.own_classifiers,
    }
    shared = {name: value * _share(units[name], workers) if name in units else value for name, value in found.items()}
    disk = disk_bytes(todo, generator, invert, train, side)
    trained_on = len(splits.train) * sample.variants + todo.grown  # of a replicate, from memory
    pixels = trained_on * 3 * side * side
    return Forecast(shared, disk, steps.memory + pixels, workers)


def disk_bytes(todo: Left, generator: Generator, invert: InvertSettings, train: TrainSettings, side: int) -> int:
    """What the files take that are still to be written, with images of `side` px."""
    vectors = todo.vectors * vector_bytes(generator, invert)
    architecture = choose_architecture(train.architecture, generator.device)
    classifiers = (todo.classifiers + todo.own_classifiers) * classifier_bytes(architecture)
    return vectors + (todo.variants + todo.kept) * png_bytes(side) + classifiers + SPARE_BYTES


def _share(units: float, workers: int) -> float:
    """The share of the work that the busiest of so many workers has."""
    whole = max(math.ceil(units), 1)
    return math.ceil(whole / workers) / whole


def seconds(
    steps: Steps,
    todo: Left,
    test: int,
    images: int,
    invert: InvertSettings,
    sample: SampleSettings,
    train: TrainSettings,
) -> dict[str, float]:
    """Seconds of each stage for one worker; `test` images test each classifier, `images` is how many are trained on."""
    # The loss of an image is measured at each point of its curve, and once with the empty prompt.
    evaluations = (len(curve_steps(invert)) + 1) * invert.eval_draws
    with_loss = 1.0 if invert.grouping == "independent" else min(invert.joint_batch_size / invert.group_size, 1.0)
    each = steps.begin + evaluations * steps.evaluation + invert.steps * with_loss * steps.learning
    drawn = (todo.variants + todo.reconstructions) * steps.drawing + todo.reconstructions * steps.likeness
    probe = steps.drawing * min(PROBE_STEPS / sample.inference_steps, 1) + steps.likeness
    drawn += todo.searched * ROUNDS * PROBES * probe
    amount = train.steps + _adversarial_steps(train, images, images * sample.variants + todo.grown)
    trained = todo.classifiers * (steps.setup + amount * steps.training + test * steps.testing)
    trained += todo.online * steps.drawing
    own = todo.own_classifiers * (steps.setup + amount * steps.own_training + test * steps.own_testing)
    return {
        "before": todo.probes * steps.autoencoder,
        "stage 1": todo.vectors * each,
        "stage 2": drawn,
        "training": trained + own,
        "report": todo.reports * REPORT,
    }


def _adversarial_steps(train: TrainSettings, real: int, synthetic: int) -> float:
    """Optimizer steps that ME-ADA's rounds take as long as, for the mean of the arms."""
    if not train.me_ada_every:
        return 0.0
    sizes = {"real": real, "synthetic": synthetic, "real+synthetic": real + synthetic}
    copied = train.me_ada_share * sum(sizes[arm] for arm in train.arms) / len(train.arms)
    rounds = (train.steps - 1) // train.me_ada_every
    return rounds * train.me_ada_steps * copied / resolve(train).batch_size


def sum_left(plans: Sequence[Replicate], images: int, *, own: bool) -> Left:
    """What is missing in all replicates."""
    first, *others = (left(plan, images, own=own) for plan in plans)
    for one in others:
        first = first + one
    return first
