"""The jobs of a sweep: vectors, synthetic images, classifiers, metrics; cells that share one name the same job."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..config.sampling import RetrieveSettings
from ..config.settings import DataSettings
from ..config.training import TrainSettings
from ..data.datasets import Splits
from ..data.images import LabelledImages
from ..data.sources import Role
from ..engine.lock import run_lock
from ..errors import PartialError
from ..generator.device import resolve_device
from ..generator.generator import Generator
from ..invert.embeddings import read_embeddings
from ..invert.inversion import invert
from ..measure.extractors.catalog import open_extractor
from ..measure.measuring import compare_images
from ..run.methods import images_store, is_whole
from ..run.tune import prepared, tune_training
from ..sample.autoencoding import read_autoencoded, write_autoencoded
from ..sample.synthetic import SyntheticStore
from ..train.arms import check_settings as check_training
from ..train.arms import train_arms
from ..train.choosing import Material
from ..train.classifiers import Classifier
from ..train.evaluation import OWN_SIZE, evaluate
from ..train.own_size import own_side
from ..train.training import fingerprint
from . import runs
from .checks import Checks
from .drawn import counts, draw, images_lacking, vectors_lacking
from .elsewhere import depends_on, fill, place, weights_of
from .jobs import Job, measured, of_classifier, result
from .loaded import Loaded, Trained, is_learned, require_learned_from
from .plan import Cell, SweepPlan
from .ways import SECTIONS

# Settings that make no difference to the arm real, as they are by default.
UNMIXED = TrainSettings().model_dump(include={"real_fraction", "mixing", "online", "online_keep"})


@dataclass(frozen=True)
class CellJobs:
    """The jobs whose results are a cell's: by arm one for each seed, in their order; and the metrics."""

    classifiers: dict[str, tuple[str, ...]]
    images: str | None  # None where the cell needs none, or has its own
    metrics: str | None
    fraction: str | None
    own: int | None = None  # px, of the arm "real (own size)", where there is one


@dataclass
class Workshop:
    """Makes the jobs of every cell, and does them in `folder`."""

    plan: SweepPlan
    folder: Path
    generator: Generator
    device: str  # cpu or cuda
    jobs: dict[str, Job] = field(default_factory=dict)
    suffix: str = ""  # of the metrics' names
    _most_variants: dict[str, int] = field(default_factory=dict)  # by the folder of the images
    _loaded: Loaded = field(default_factory=Loaded)

    def add(self, cells: Sequence[Cell]) -> list[CellJobs]:
        """The jobs of every cell, in their order.

        Raises what `Checks` do, and UsageError for an extractor that cannot be had.
        """
        if self.plan.metrics is not None:
            device, wanted = resolve_device(self.device), self.plan.metrics
            self.suffix = open_extractor(wanted.extractor, device, wanted.weights).suffix
        for cell in cells:
            images = self.images_folder(cell)
            self._most_variants[images] = max(self._most_variants.get(images, 0), cell.sample.variants)
        self._check(cells)
        return [self._add(cell) for cell in cells]

    def _check(self, cells: Sequence[Cell]) -> None:
        checks = Checks(self.plan, self.generator)
        for cell in sorted(cells, key=lambda one: json.dumps(one.data.described())):  # each data set is opened once
            splits, home = self.splits(cell.data), self._run_name(cell) if cell.is_run else self.images_folder(cell)
            checks.check(cell, splits, self.folder / home, self.side(cell, splits.train.size))

    def _add(self, cell: Cell) -> CellJobs:
        arms: dict[str, tuple[str, ...]] = {
            arm: tuple(self._classifier(cell, arm, seed) for seed in cell.train.seeds) for arm in cell.train.arms
        }
        own = self._own_side(cell) if self.plan.own_size and "real" in arms else None
        if own is not None:
            arms[OWN_SIZE] = tuple(self._of_own_size(cell, own, seed) for seed in cell.train.seeds)
        if cell.is_run:
            return CellJobs(arms, None, None, None, own)
        drawn = set(cell.train.arms) != {"real"} or self.plan.metrics is not None
        fraction = self._fraction(cell) if cell.chooses_fraction else None
        metrics = self._metrics(cell) if self.plan.metrics is not None else None
        return CellJobs(arms, self._images(cell) if drawn else None, metrics, fraction, own)

    def read(self, name: str) -> dict[str, Any]:
        """The result of a job that is done."""
        return result(self.folder, self.jobs[name])

    def _name(self, kind: str, *key: Any) -> str:
        """The name of a job, which is that of its folder too, from all that its result depends on."""
        text = json.dumps([self.generator.record, self.device, *key], sort_keys=True)
        return f"{kind}/{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _job(
        self,
        name: str,
        says: str,
        needs: list[str],
        do: Callable[[Path], dict[str, Any]],
        home: str | None = None,
        whole: Callable[[], bool] = lambda: True,
        size: Callable[[], int] = lambda: 0,
    ) -> str:
        """Register a job, unless an equal one is there; `do` gets a folder, by default of its own name."""
        if name not in self.jobs:
            place = home or name
            says = f"{name.partition('/')[0]}: {says}"
            self.jobs[name] = Job(name, says, tuple(needs), lambda: do(self.folder / place), place, whole, size)
        return name

    def _vectors(self, cell: Cell) -> str:
        name = self._vectors_name(cell)
        if name not in self.jobs:
            self._require_learned_from(cell)  # before any job is done

        def do(home: Path) -> dict[str, Any]:
            with run_lock(home):
                self._require_learned_from(cell)  # of processes that share the folder another may have begun it since
                try:
                    found = invert(self.splits(cell.data).train, self.generator, home, cell.invert)
                except PartialError as error:
                    print(f"warning: {error}", file=sys.stderr, flush=True)
                    found = read_embeddings(home)
            curve = found.losses.mean(1).tolist()
            return {"images": len(found), "loss_initial": curve[0], "loss_final": curve[-1]}

        whole = partial(is_learned, self.folder / name, self._trained(cell))
        size = partial(vectors_lacking, self.folder / name, self._trained(cell), self.generator, cell.invert)
        return self._job(name, f"{cell.invert.steps} steps an image", [self._data(cell)], do, None, whole, size)

    def _require_learned_from(self, cell: Cell) -> None:
        vectors = self.folder / self._vectors_name(cell)
        require_learned_from(vectors, self._trained(cell), cell.data.data, self.folder)

    def _vectors_name(self, cell: Cell) -> str:
        # Which images test makes no difference to those that are learned, but whether DATA is parted does.
        learned = cell.data.described({"test", "test_limit", "drop_test_duplicates", "allow_near_duplicates"})
        return self._name("vectors", learned, cell.data.test is None, cell.invert.described())

    def _data(self, cell: Cell) -> str:
        def do(_: Path) -> dict[str, Any]:
            splits = self.splits(cell.data)
            return {"train": fingerprint(splits.train), "test": fingerprint(splits.test), "how": splits.how}

        return self._job(self._data_name(cell.data), cell.data.data, [], do)

    def _data_name(self, settings: DataSettings) -> str:
        return self._name("splits", settings.described())

    def _images(self, cell: Cell) -> str:
        """Cells that differ in the number of variants alone share the images of the largest."""
        if not cell.learns:
            return self._made_elsewhere(cell)
        vectors, folder = self._vectors(cell), self.images_folder(cell)
        asked, name = cell.sample, self._name("images", folder, *cell.amounts)
        if asked.balance == "none":
            most = self._most_variants[folder]
            asked, name = asked.model_copy(update={"variants": most}), f"{folder}-{most}"

        def do(home: Path) -> dict[str, Any]:
            return draw(self.folder / vectors, home, asked, cell.data, self.generator, self.splits)

        def whole() -> bool:
            return SyntheticStore(self.folder / folder, ()).holds(counts(self.folder / vectors, asked, cell.data))

        trained, says = self._trained(cell), f"{asked.variants} an image, {cell.differs('sample')}"
        count = asked.variants * len(trained.images)
        size = partial(images_lacking, self.folder / folder, count, self.side(cell, trained.size))
        return self._job(name, says, [vectors], do, folder, whole, size)

    def _counts(self, cell: Cell) -> dict[str, int] | None:
        """How many variants of each source a cell uses; None: all that are there."""
        return counts(self.folder / self._vectors_name(cell), cell.sample, cell.data) if cell.learns else None

    def _made_elsewhere(self, cell: Cell) -> str:
        name, home = self.images_folder(cell), self._home_elsewhere(cell)
        section = SECTIONS[type(cell.way)]
        says = f"{section}, {cell.differs(section)}"

        def do(home: Path) -> dict[str, Any]:
            splits = self.splits(cell.data)
            return fill(home, cell, splits, self.side(cell, splits.train.size), self.generator, self.device)

        return self._job(name, says, [self._data(cell)], do, home, whole=lambda: is_whole(self.folder / name))

    def _home_elsewhere(self, cell: Cell) -> str:
        return self._name("images", *depends_on(cell, self.device), cell.asked_sides)

    def images_folder(self, cell: Cell) -> str:
        if not cell.learns:
            return f"{self._home_elsewhere(cell)}/{place(cell)}".rstrip("/")
        return self._name("images", self._vectors_name(cell), cell.sample.described({"variants", "balance"}))

    def _autoencoded(self, cell: Cell, part: Role, resolution: int) -> str:
        def do(home: Path) -> dict[str, Any]:
            found = write_autoencoded(self._part(cell, part), self.generator, home, resolution=resolution, part=part)
            return {"images": found.images, "psnr": found.psnr}

        data = cell.data
        # Test images of their own are the same whatever is drawn from the training images: once for all replicates.
        apart = part == "test" and data.test is not None and data.test_limit is None and not data.drop_test_duplicates
        drawn = ("seed", "limit", "per_class", "balanced", "holdout") if apart else ()
        name = self._name("autoencoded", data.described(drawn), part, resolution)
        return self._job(name, f"{part} at {resolution} px", [self._data(cell)], do)

    def _fraction(self, cell: Cell) -> str:
        images = self._images(cell)
        train = cell.train.model_copy(update={"arms": ("real+synthetic",)})

        def do(home: Path) -> dict[str, Any]:
            material = self.made(cell)
            real, _ = self._real(cell, "real+synthetic")
            with run_lock(home):
                chosen = tune_training(home, real, lambda: material, train, self.device, prepared(None, None, train))
            return {"real_fraction": chosen.real_fraction}

        drawn = [self.images_folder(cell), *cell.amounts]
        folds = "on folds" if cell.autoencode.train is None else "on folds, by original names"
        name = self._name("fraction", folds, drawn, train.described(), cell.autoencode.train)
        return self._job(name, cell.differs(), [images, *self._trained_on(cell)], do)

    def _classifier(self, cell: Cell, arm: str, seed: int) -> str:
        if runs.has_own(cell, arm):
            return self._in_run(cell, arm, seed)
        images = None if arm == "real" else self._images(cell)
        fraction = self._fraction(cell) if arm == "real+synthetic" and cell.is_auto else None
        mixed = {} if arm == "real+synthetic" else UNMIXED
        settings = cell.train.model_copy(update={"arms": (arm,), "seeds": (seed,), **mixed})

        def do(home: Path) -> dict[str, Any]:
            synthetic = None if images is None else self.made(cell).synthetic
            real, test = self._real(cell, arm)
            chosen = settings
            if fraction is not None:
                chosen = settings.model_copy(update={"real_fraction": self.read(fraction)["real_fraction"]})
            found = train_arms(real, synthetic, test, settings=chosen, device=self.device, folder=home)
            return of_classifier(found.runs[0], self.folder)

        drawn = [] if images is None else [self.images_folder(cell), *cell.amounts]
        through = cell.autoencode.train if arm != "synthetic" else None
        side = [*cell.asked_sides, *filter(None, [self._found_at(cell)])]
        needs = [self._data(cell), *([] if images is None else [images]), *([fraction] if fraction else [])]
        needs += self._trained_on(cell) if arm != "synthetic" else []
        says = f"{arm}, seed {seed}, {cell.differs()}"
        name = self._name(
            "classifiers", cell.data.described(), arm, settings.described(), side, through, drawn, fraction
        )
        self._job(name, says, needs, do)
        return name if cell.autoencode.test is None else self._tested(cell, name, cell.autoencode.test, says)

    def _run_name(self, cell: Cell) -> str:
        return self._name("runs", *runs.depends_on(cell, self._vectors_name(cell)))

    def _in_run(self, cell: Cell, arm: str, seed: int) -> str:
        """The classifier of an arm and seed, as the run folder of the cell has it; the first job does them all."""
        name, needs = self._run_name(cell), [self._data(cell)]
        if not runs.alone(cell):  # what is drawn around the vectors may be chosen first
            needs.append(self._vectors(cell) if cell.tuning.of("sample") else self._images(cell))

        def do(home: Path) -> dict[str, Any]:
            if runs.alone(cell):
                found = runs.train_alone(home, cell, *self._real(cell, arm), self.device)
            else:
                vectors = self.folder / self._vectors_name(cell)
                found = runs.train_run(
                    home, cell, self.splits(cell.data), self.generator, vectors,
                    lambda sample: self.folder / self.images_folder(replace(cell, sample=sample)),
                )  # fmt: skip
            (one,) = (run for run in found.runs if (run.arm, run.seed) == (arm, seed))
            return of_classifier(one, self.folder) | runs.found_in(home, cell)

        says = f"{arm}, seed {seed}, {cell.differs()}"
        return self._job(self._name("classifiers", name, arm, seed), says, needs, do, name)

    def _own_side(self, cell: Cell) -> int | None:
        """The side of the real images without a generator, where it is above that of all arms; it takes the images."""
        self._data(cell)
        train = self.splits(cell.data).train
        own = own_side(train, self.side(cell, train.size))
        if own is not None:
            check_training(cell.train, train.class_names, own)
        return own

    def _of_own_size(self, cell: Cell, own: int, seed: int) -> str:
        """The arm `real` at that side; what makes the synthetic images makes no difference to it."""
        settings = cell.train.model_copy(update={"arms": ("real",), "seeds": (seed,), **UNMIXED})

        def do(home: Path) -> dict[str, Any]:
            splits = self.splits(cell.data)
            real, test = splits.train.resized(own), splits.test.resized(own)
            found = train_arms(real, None, test, settings=settings, device=self.device, folder=home)
            return of_classifier(found.runs[0], self.folder)

        says = f"{OWN_SIZE}, {own} px, seed {seed}"
        name = self._name("classifiers", cell.data.described(), OWN_SIZE, settings.described(), own)
        self._job(name, says, [self._data(cell)], do)
        return name if cell.autoencode.test is None else self._tested(cell, name, cell.autoencode.test, says)

    def _tested(self, cell: Cell, classifier: str, resolution: int, says: str) -> str:
        """The same classifier on test images that went through the VAE."""
        test = self._autoencoded(cell, "test", resolution)

        def do(home: Path) -> dict[str, Any]:
            trained = Classifier.load(self.folder / self.read(classifier)["classifier"])
            images = self._read_autoencoded(cell, "test", resolution).resized(trained.image_size)
            return measured(evaluate(trained, images))

        return self._job(self._name("tests", classifier, test), says, [classifier, test], do)

    def _metrics(self, cell: Cell) -> str:
        images, wanted = self._images(cell), self.plan.metrics
        assert wanted is not None

        def do(home: Path) -> dict[str, Any]:
            made = self.made(cell)
            synthetic = made.synthetic
            real = self._part(cell, wanted.against).resized(synthetic.size)
            called = "" if wanted.against == "train" else "train: "  # a test image may be called as a source is
            return compare_images(
                real, synthetic, extractor=wanted.extractor, weights=wanted.weights, k=wanted.k, device=self.device,
                generated_groups=[f"{called}{source}" for source, *_ in made.sources],
            ).record()  # fmt: skip

        # "by source": results of versions that resampled images are not taken for these.
        of = [self.images_folder(cell), *cell.amounts, wanted.described()]
        of += [] if wanted.against == "train" else [self._data_name(cell.data)]
        of += weights_of(wanted.extractor, wanted.weights, self.device)
        name = self._name("metrics", "by source, in two parts", *of)
        return self._job(name, cell.differs(), [images, self._data(cell)], do)

    def splits(self, settings: DataSettings) -> Splits:
        """The images of a data set. Raises ConfigMismatchError where they are not those that this sweep began with."""
        return self._loaded.splits(self.folder, settings, f"results/{self._data_name(settings)}.json")

    def _trained(self, cell: Cell) -> Trained:
        return self._loaded.trained_on(self.folder, cell.data, f"results/{self._data_name(cell.data)}.json")

    def _part(self, cell: Cell, part: Role) -> LabelledImages:
        splits = self.splits(cell.data)
        return splits.train if part == "train" else splits.test

    def _read_autoencoded(self, cell: Cell, part: Role, resolution: int) -> LabelledImages:
        through, home = self._part(cell, part), self.folder / self._autoencoded(cell, part, resolution)
        # By the names of what went through: folds hold out what was made from an image with it.
        return replace(read_autoencoded(through, home, part), ids=through.ids, groups=through.groups)

    def _trained_on(self, cell: Cell) -> list[str]:
        return [] if cell.autoencode.train is None else [self._autoencoded(cell, "train", cell.autoencode.train)]

    def _real(self, cell: Cell, arm: str) -> tuple[LabelledImages, LabelledImages]:
        """Training images, through the VAE where the arm's are, and test images, at the side of the synthetic ones."""
        splits = self.splits(cell.data)
        through = None if arm == "synthetic" else cell.autoencode.train
        train = splits.train if through is None else self._read_autoencoded(cell, "train", through)
        side = self.side(cell, train.size)
        return train.resized(side), splits.test.resized(side)

    def side(self, cell: Cell, size: int) -> int:
        """The side in px of a cell's images, and so of every arm but that of the training images' own `size`.

        What is found has that of what is made, unless it was given its own.
        """
        drawn_at = cell.sample.resolution or cell.invert.resolution or self.generator.resolution
        return self._found_at(cell) or cell.sample.image_size or min(size, drawn_at)

    def _found_at(self, cell: Cell) -> int | None:
        return cell.way.image_size if isinstance(cell.way, RetrieveSettings) else None

    def made(self, cell: Cell) -> Material:
        """A cell's images, and what they were made from. Those of prompts have an order of classes of their own."""
        names, asked = self.splits(cell.data).train.class_names, self._counts(cell)
        store = images_store(self.folder / self.images_folder(cell), names)
        return Material(store.read(asked).with_classes_after(names), store.sources(asked))
