"""Whether a generator is too coarse for the task, before any work: what a probe loses by its autoencoder.

Stage 1 can find no more of an image than the autoencoder lets through, and all synthetic images come out of it. So a
probe that learns from training images after they went through it, and is tested on others as they are, shows in seconds
what a classifier of synthetic images will lack. Test images play no part.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.images import LabelledImages, resize, to_model_range
from ..data.near_duplicates import near_pairs, thumbnail
from ..engine.ledger import Ledger
from ..engine.lock import briefly
from ..engine.progress import track
from ..errors import DataError
from ..generator.features import load_lite0, profile
from ..generator.generator import Generator
from ..invert.embeddings import CONFIG_FILE as INVERT_CONFIG
from ..sample.autoencoding import autoencoded
from ..train.evaluation import compare, half_width
from ..train.own_size import OWN_SIZE_LIMIT
from ..train.verdict import is_uneven
from .layout import COARSENESS_FILE
from .report.record import CoarsenessRecord

SCHEMA = 1
FOLDS, MOST_IMAGES, FEWEST_IMAGES = 5, 400, 40
COARSE = 0.03  # a loss from which on it is worth a word: three points, the aim for `mini` (docs/generator.md)
STRENGTH = 1e-3  # C of the logistic regression on standardised profiles, as in benchmarks/autoencoders.py
CONFIDENCE = 0.95
BATCH = 16  # images that a network sees at once: more of them leave the cache of a core
# Parameters of the autoencoder times pixels that a CPU is asked for: 400 images of 96 px by `mini`, half a minute.
MOST_WORK = 2e13
_ROUNDED = 6  # decimals of what is kept


@dataclass(frozen=True)
class Coarseness:
    """What a probe on Lite0 profiles recognises of training images that it did not learn from; rates in [0, 1]."""

    generator: str
    resolution: int  # px at which images go through the autoencoder
    own: int  # px of the images as they are, at most those of "real (own size)"
    used: int  # px at which classifiers see images
    images: int
    classes: int
    measure: str  # accuracy, or balanced accuracy where the classes are uneven
    plain: float  # learned from images as they are, tested on others as they are
    through: float  # learned from images after the autoencoder, tested on others as they are, at `used` px
    within: float  # learned and tested on images after the autoencoder: what of the classes is still in them
    low: float  # interval of the loss, plain - through, at `CONFIDENCE`
    high: float
    seconds: float

    @property
    def loss(self) -> float:
        return self.plain - self.through

    @property
    def too_coarse(self) -> bool:
        """Whether more is lost than chance explains, and enough to matter."""
        return self.low > 0 and self.loss >= COARSE

    @property
    def sentence(self) -> str:
        """What was measured, with numbers and n."""
        seen = "" if self.used == min(self.resolution, self.own) else f", seen at {self.used} px"
        of = f" of their {self.own} px" if self.own > min(self.resolution, self.used) else ""
        shown = "" if self.measure == "accuracy" else f"{self.measure} "
        loss, low, high, plain, through = (
            f"{100 * value:.1f}" for value in (self.loss, self.low, self.high, self.plain, self.through)
        )
        return (
            f"a probe on their features loses {loss} points [{low}, {high}] when it learns from them after its "
            f"autoencoder at {self.resolution} px{of}{seen} ({shown}{plain} -> {through} %, {FOLDS} folds of "
            f"{self.images} training images)"
        )

    @property
    def warning(self) -> str | None:
        """What to say before the work; None where nothing is lost that matters."""
        if not self.too_coarse:
            return None
        return (
            f"{self.generator} keeps too little of these images: {self.sentence}. Expect synthetic images to lose too; "
            "a generator of a larger size (--generator) may keep more."
        )

    def record(self) -> CoarsenessRecord:
        """For run.json."""
        return {**vars(self), "loss": self.loss, "too_coarse": self.too_coarse, "sentence": self.sentence}  # type: ignore[typeddict-item]


def drawn(images: LabelledImages, most: int = MOST_IMAGES) -> LabelledImages:
    """At most `most` images, as many of each class as there are, by the hash of their ids; in an order of its own.

    Classes of fewer images than folds are left out; so are classes by the hash of their names where there are too many
    to have so many images each. Raises DataError where fewer than 40 images or 2 classes are left.
    """
    counts = images.labels.bincount(minlength=len(images.class_names)).tolist()
    usable = [label for label, count in enumerate(counts) if count >= FOLDS]
    usable.sort(key=lambda label: _hash(images.class_names[label]))
    kept = set(usable[: most // FOLDS])
    rows = [row for row, label in enumerate(images.labels.tolist()) if label in kept]
    rank: dict[int, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for row in sorted(rows, key=lambda row: _hash(images.ids[row])):
        label = int(images.labels[row])
        ranked.append((rank.setdefault(label, 0), len(ranked), row))
        rank[label] += 1
    chosen = [row for _, _, row in sorted(ranked)[:most]]
    if len(chosen) < FEWEST_IMAGES or len(kept) < 2:
        raise DataError(
            f"{len(chosen)} images are in classes of at least {FOLDS}; it takes {FEWEST_IMAGES}, in two classes or more"
        )
    return images.subset(chosen)


def measure(
    images: LabelledImages,
    generator: Generator,
    *,
    resolution: int,
    used: int,
    advance: Callable[[int], None] = lambda n: None,
) -> Coarseness:
    """Cross-validate the probe on training images as they are and after the autoencoder, in the same folds.

    Images are resized to `resolution` px, encoded and decoded, and resized to the `used` px that classifiers see; what
    they are compared with is at their own side, at most 96 px. Near-duplicates share a fold. The interval is that of
    paired differences over the images, each tested once (`evaluation.compare`); benchmarks/coarseness.py has
    its coverage. At most 400 images are drawn, fewer where the autoencoder is slow on this device. Raises DataError
    where there are too few, or too few groups of them.
    """
    start = time.monotonic()
    part = drawn(images, affordable(generator, resolution))
    fold = folds(part)
    own, lite0 = min(part.size, OWN_SIZE_LIMIT), load_lite0().to(generator.device)
    real, seen, through = [], [], []
    for batch in part.images.split(BATCH):
        real.append(_profiles(lite0, _at(batch, own), generator.device))
        seen.append(real[-1] if used == own else _profiles(lite0, _at(batch, used), generator.device))
        decoded = autoencoded(_at(batch, resolution), generator, resolution)
        through.append(_profiles(lite0, _at(decoded, used), generator.device))
        advance(len(batch))
    labels = part.labels.unique(return_inverse=True)[1]
    plain, after, within = (
        cross_validated(torch.cat(learned), torch.cat(tested), labels, fold)
        for learned, tested in ((real, real), (through, seen), (through, through))
    )
    accuracies, low, high, name = loss_interval({"plain": plain, "through": after, "within": within}, labels)
    return Coarseness(
        generator.name, resolution, own, used, len(part), int(labels.max()) + 1, name,
        accuracies["plain"], accuracies["through"], accuracies["within"], low, high, time.monotonic() - start,
    )  # fmt: skip


def affordable(generator: Generator, resolution: int) -> int:
    """How many images can go through the autoencoder in about half a minute, at most 400; on CUDA always so many."""
    if generator.device.type != "cpu":
        return MOST_IMAGES
    parameters = sum(parameter.numel() for parameter in generator.vae.parameters())
    count = int(MOST_WORK / max(parameters * resolution**2, 1))
    if count < FEWEST_IMAGES:
        raise DataError(f"on a CPU the autoencoder of {generator.name} takes too long at {resolution} px")
    return min(count, MOST_IMAGES)


def folds(images: LabelledImages) -> NDArray[np.int64]:
    """The fold of each image (N,), classes spread evenly; images of a group or of nearly equal pixels share one.

    Raises DataError below 5 such groups, and where all other folds than one have images of one class alone.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    group = np.arange(len(images))
    first: dict[str, int] = {}
    alike = [(first.setdefault(digest, row), row) for row, digest in enumerate(images.hashes)]
    alike += [(first.setdefault(f"group {name}", row), row) for row, name in enumerate(images.groups)]
    alike += near_pairs(thumbnail(images.images))
    for one, other in alike:
        group[group == group[other]] = group[one]
    if (count := len(np.unique(group))) < FOLDS:
        raise DataError(f"the images are of {count} group(s), near-duplicates of one; it takes {FOLDS}")
    fold = np.empty(len(images), np.int64)
    labels = images.labels.numpy()
    parts = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels, group)
    for number, (_, tested) in enumerate(parts):
        fold[tested] = number
    if any(len(np.unique(labels[fold != number])) < 2 for number in range(FOLDS)):
        raise DataError(f"of {count} groups of images too few have each class: without one fold a single class is left")
    return fold


def cross_validated(learned: Tensor, tested: Tensor, labels: Tensor, fold: NDArray[np.int64]) -> Tensor:
    """Which images a probe recognises by `tested` (N, D) that learned other folds by `learned` (N, D): (N,) bool."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, truth = learned.numpy(), tested.numpy(), labels.numpy()
    correct = np.zeros(len(truth), bool)
    for number in np.unique(fold):
        inside = fold == number
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=500))
        correct[inside] = probe.fit(x[~inside], truth[~inside]).predict(y[inside]) == truth[inside]
    return torch.from_numpy(correct)


def loss_interval(correct: dict[str, Tensor], labels: Tensor) -> tuple[dict[str, float], float, float, str]:
    """Accuracies of "plain", "through" and others, (N,) bool each, the interval of the loss, and the measure's name.

    Balanced accuracy where the classes of `labels` (N,) are uneven, as for the verdict. Every image is tested once, in
    its own fold, so the spread over folds is that over their images and does not count a second time.
    """
    uneven = is_uneven(labels)
    classes = labels.unique().tolist()

    def rate(hits: Tensor) -> float:
        parts = [hits[labels == label] for label in classes] if uneven else [hits]
        return float(torch.stack([part.double().mean() for part in parts]).mean())

    accuracies = {name: rate(hits) for name, hits in correct.items()}
    found = compare(
        "plain", {name: [value] for name, value in accuracies.items()}, baseline="through", unit="sets of images",
        correct={name: hits[None] for name, hits in correct.items()}, labels=labels if uneven else None,
    )  # fmt: skip
    assert found.test_error is not None
    half = float(half_width(0.0, found.test_error**2, 2, len(labels) - len(classes) + 1, CONFIDENCE))
    low, high = max(found.difference - half, -1.0), min(found.difference + half, 1.0)
    return accuracies, low, high, "balanced accuracy" if uneven else "accuracy"


def coarseness(
    run: Path, images: LabelledImages, generator: Generator, resolution: int, used: int
) -> Coarseness | None:
    """`measure` once for a run, kept in RUN/coarseness.json; says on stderr what a user should know.

    It stands beside the work and never ends it: where it cannot be done, a note says why, and the result is None. So
    it is, without a note, where stage 1 was begun with another generator, which it will refuse.
    """
    try:
        begun = Ledger(run).read_json(INVERT_CONFIG)
        if begun is not None and begun["generator"]["hash"] != generator.hash:
            return None
        with briefly(run, "coarseness"):
            found = _kept(run, images, generator, resolution, used)
    except Exception as error:  # whatever it is, the run can do without
        cause = str(error).partition("\n")[0]
        print(
            f"note: how much {generator.name} keeps of these images is not known: {cause}.", file=sys.stderr, flush=True
        )
        return None
    if found.warning is not None:
        print(f"note: {found.warning}", file=sys.stderr, flush=True)
    return found


def _kept(run: Path, images: LabelledImages, generator: Generator, resolution: int, used: int) -> Coarseness:
    ledger = Ledger(run)
    part = drawn(images, affordable(generator, resolution))
    made_with = {
        "schema": SCHEMA, "generator": generator.hash, "resolution": resolution, "used": used, "size": part.size,
        "images": part.digest,
    }  # fmt: skip
    before = ledger.read_json(COARSENESS_FILE) if ledger.holds(COARSENESS_FILE) else None
    if before is not None and before["made_with"] == made_with:
        return replace(Coarseness(**before["found"]), generator=generator.name)
    with track("autoencoder", len(part)) as advance:
        found = measure(part, generator, resolution=resolution, used=used, advance=advance)
    content: dict[str, Any] = {
        name: round(value, _ROUNDED) if isinstance(value, float) else value for name, value in vars(found).items()
    }
    # Of no image but in sum, so the note, which a damaged file is measured again by, has only what was asked for.
    note = {"resolution": resolution, "used": used}
    ledger.commit_json(COARSENESS_FILE, {"made_with": made_with, "found": content}, note, indent=1)
    return Coarseness(**content)


def read_coarseness(run: Path, used: int) -> Coarseness | None:
    """What was measured for classifiers that see `used` px; None where it was not. Raises DataError where damaged."""
    kept: dict[str, Any] | None = Ledger(run).read_json(COARSENESS_FILE)
    return None if kept is None or kept["found"]["used"] != used else Coarseness(**kept["found"])


def again(run: Path, images: LabelledImages, generator: Generator) -> None:
    """Measure what a run had measured, where its file was lost since."""
    asked = Ledger(run).note(COARSENESS_FILE)
    if asked is not None:
        coarseness(run, images, generator, asked["resolution"], asked["used"])


def _at(images: Tensor, side: int) -> Tensor:
    return images if images.shape[-1] == side else resize(images, side)


@torch.no_grad()
def _profiles(lite0: torch.nn.Module, images: Tensor, device: torch.device) -> Tensor:
    return profile(lite0, to_model_range(images).to(device)).float().cpu()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
