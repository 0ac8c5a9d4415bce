"""How the images of a folder came to be: drawn around vectors, drawn from prompts, found in a pool, or adopted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..config.training import ARMS
from ..data.datasets import Splits
from ..data.images import LabelledImages, changed, contents
from ..engine.frozen_settings import listed, settings_file
from ..engine.ledger import Ledger
from ..errors import ConfigMismatchError, UsageError
from ..sample.prompting import PROMPTS
from ..sample.synthetic import SyntheticStore
from ..train.arms import ArmResults
from .gathered import grown, joined
from .layout import ADOPTION_FILE, METADATA_FILE, RETRIEVAL_FILE

LECF = "lecf"  # the kind of what CLIP keeps of the images of many sentences
GAN, GAN_INVERSION = "gan", "gan-inversion"  # the kinds of what a GAN drew, at random and by inversion
RETRIEVAL = "retrieval"  # the kind of what is found, among the settings of stage 2
ADOPTED = "adopted"  # the kind of what another program made, nobody knows of what


@dataclass(frozen=True)
class Method:
    """A way to fill the synthetic store."""

    name: str  # as in the column `method` of metadata.parquet
    images: str  # what its images are called where arms are shown
    again: str | None  # the command that makes what is missing; None: a run of vectors, whose stages do


INVERSION = Method("inversion", "synthetic", None)
METHODS = {
    PROMPTS: Method("prompts", "prompted", "dinv sample --prompts"),
    RETRIEVAL: Method("retrieval", "retrieved", "dinv retrieve"),
    LECF: Method("lecf", "LECF", "dinv lecf"),
    GAN: Method(GAN, "GAN", "dinv gan sample"),
    GAN_INVERSION: Method(GAN_INVERSION, "GAN-inverted", "dinv gan invert"),
    ADOPTED: Method(ADOPTED, "adopted", "dinv adopt"),
}
_RECORDS = {RETRIEVAL: RETRIEVAL_FILE, ADOPTED: ADOPTION_FILE}  # what says for which images a folder was filled


def method_of(run: Path) -> Method:
    """How the images of a folder were made, as its settings say; vectors where it has none yet."""
    config = Ledger(run).read_json(settings_file("sample"))
    return METHODS.get(str((config or {}).get("kind")), INVERSION)


def is_whole(run: Path) -> bool:
    """Whether all images that the last call asked for are there, and listed."""
    store = SyntheticStore(run, ())
    files = [METADATA_FILE] if store.storage == "png" else []
    files += [name for kind, name in _RECORDS.items() if kind == method_of(run).name]
    return bool(store.complete()) and all(map(Ledger(run).holds, files))


def images_store(run: Path, class_names: tuple[str, ...]) -> SyntheticStore:
    """The images of a folder. Those of prompts have class names of their own, in alphabetical order."""
    config = Ledger(run).read_json(settings_file("sample")) or {}
    return SyntheticStore(run, tuple(config.get("class_names", class_names)))


def images_made(run: Path, class_names: tuple[str, ...]) -> LabelledImages:
    """The images of a folder, their labels numbered as in `class_names`.

    Raises UsageError where they are not all there, DataError where a file is missing or changed.
    """
    store = images_store(run, class_names)
    more = grown(run, store.class_names)
    return joined([store.read(), *([] if more is None else [more[0]])]).with_classes_after(class_names)


def sources_of_images(run: Path, class_names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Ids of the real images that each image of `images_made` was made from, its source first."""
    store = images_store(run, class_names)
    more = grown(run, store.class_names)
    return [*store.sources(), *([] if more is None else more[1])]


def require_images(run: Path, splits: Splits) -> None:
    """Raise UsageError unless all images of a folder without vectors are there, found for these training images."""
    again = f"Run the same `{method_of(run).again}` command again first."
    if not is_whole(run):
        raise UsageError(f"{run}: not all images are there. {again}")
    if method_of(run).name == RETRIEVAL:
        found = Ledger(run).read_json(RETRIEVAL_FILE)
        if found is None or found["made_from"]["train"] != splits.train.digest:
            raise UsageError(f"{run}: the images were not found for these training images, or not all. {again}")
    if method_of(run).name == ADOPTED:
        looked = Ledger(run).read_json(ADOPTION_FILE)
        if looked is None or looked["made_from"] != {"train": splits.train.digest, "test": splits.test.digest}:
            raise UsageError(f"{run}: DATA's images are others than the adopted ones were compared with. {again}")


def require_same(images: LabelledImages, store: SyntheticStore, column: str, done: str) -> None:
    """Raise ConfigMismatchError where images that the store has one for, named in `column`, changed or are gone.

    New ones are welcome. `done` says what was done with them.
    """
    columns = store.table(column, "source_version", "label").columns
    rows = zip(*(values.to_pylist() for values in columns), strict=True)
    before = {image_id: (version, label) for image_id, version, label in rows}
    now = contents(images.ids, [content[:16] for content in images.hashes], images.labels.tolist())
    if lines := [f"{image_id}: {what}" for image_id, what in changed(before, now)]:
        raise ConfigMismatchError(
            f"{store.run}: {len(lines)} of the {len(before)} images that were {done} changed:\n{listed(lines)}\n"
            "Restore the data and the options that select it, or choose another folder."
        )


def with_arm_names(results: ArmResults, method: Method) -> ArmResults:
    """The results with arms that say how the images were made: `retrieved` and `real+retrieved`, say."""
    names: dict[str, str] = {arm: arm.replace(INVERSION.images, method.images) for arm in ARMS}
    return replace(results, runs=tuple(replace(run, arm=names.get(run.arm, run.arm)) for run in results.runs))
