"""Take an image out of a run, with everything that was made from it: its owner withdrew consent, or it changed."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.datasets import data_record
from ..data.forgotten import Marks, hashed, id_marks, is_marked, read_marks, without_mention, write_marks
from ..data.problems import Problem
from ..data.sources import Role
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..engine.lock import is_shared, run_lock
from ..engine.manifest import Manifest
from ..engine.store import sync_folder
from ..errors import UsageError
from ..invert.embeddings import EmbeddingStore
from ..sample.columns import PARENTS, parents
from ..train.choosing import FOLDER as TUNING
from ..train.store import FOLDER as CLASSIFIERS
from ..train.store import ClassifierStore
from .attributes import keep_attributes, kept_attributes
from .images import changed_images, load, read_record, recorded_settings, write_record
from .layout import (
    ATTRIBUTES_FILE,
    DATA_FILE,
    GROWN,
    GROWTH,
    MEMBERSHIP_FILE,
    ONLINE,
    REDRAWN,
    STORES,
    STRENGTHS,
    ledger_files,
)
from .methods import images_store, method_of
from .replicates import replicate_folders

_PARTS: tuple[Role, Role] = ("train", "test")
_Image = tuple[Role, str]  # the part of data.json that has it, and its id there: both may have an a/00.png
POSITION = re.compile(r".+/\d{6}")
AVERAGING = ("guidance_scale", "unconditional", "rival_weight", "interpolation_kind", "partner")


@dataclass(frozen=True)
class Forgotten:
    """What `forget` deleted."""

    images: int  # ids that were named
    vectors: int
    synthetic: int
    classifiers: int
    kept_by_average: int  # images that owe it a mean of vectors alone, left because `keep_averages` was given


def forget(
    run: Path,
    ids: Collection[str],
    *,
    never_again: bool = True,
    keep_averages: bool = False,
    dry_run: bool = False,
) -> Forgotten:
    """Delete images of a run and its replicates by id, their vectors, what was drawn from these, and the classifiers.

    An image descends from a vector where it is its source or one of its partners. Where a mean of vectors went into
    it, of guidance or of a class, it also descends from all vectors, and with class-mean starts every vector of a
    class descends from all its images: these go too, unless `keep_averages`. Test images are forgotten in the same way.
    An id means the images of both parts that have it, which may be different pictures where test images were given
    apart; `train:ID` and `test:ID` mean one of them.
    Reports, audits and reconstructions are deleted; the stages make them again. `never_again` keeps the images out of
    this run for good, also where DATA still holds them or the same pixels under another name; only hashes of their
    ids and pixels stay in the run, in forgotten.json. DATA itself, caches of it and copies elsewhere are not touched.
    With `dry_run` nothing is deleted: what is returned is what would be.

    A killed call goes on when it or any other command is run again. Raises UsageError for an id that the run does
    not know, LockedError, DiskError.
    """
    folders = replicate_folders(run)
    records = {folder: read_record(folder) for folder in folders}
    if records[run] is None:
        raise UsageError(f"{run}: not a run folder ({DATA_FILE} is missing); nothing to forget")
    content = {image: pixels for record in records.values() for image, pixels in _content(record).items()}
    named = {image: {image[1], ":".join(image)} for image in content}
    unknown = [image_id for image_id in ids if not any(image_id in names for names in named.values())]
    if unknown:
        known = dict.fromkeys(image_id for _, image_id in content)
        near = [image_id for image_id in known if image_id.endswith(f"/{unknown[0]}")][:3]
        near = near or difflib.get_close_matches(unknown[0], known, n=3)
        hint = f"; near to it: {', '.join(near)}" if near else ""
        raise UsageError(f"{run}: no image {unknown[0]!r} in {DATA_FILE}{hint}. Give ids as they stand there.")
    wanted = {image for image, names in named.items() if not names.isdisjoint(ids)}
    never: set[str] = set()
    if never_again:  # the same picture under another name goes too
        pixels = {content[image] for image in wanted}
        wanted |= {image for image, value in content.items() if value in pixels}
        # An id that is a position in a file (train/000123) can come to mean another picture.
        kept = [image for image in wanted if not POSITION.fullmatch(image[1])]
        never = {*_marks(records[run], kept), *(hashed(content[image]) for image in wanted)}
    own = {folder: _marks(record, wanted & _content(record).keys()) for folder, record in records.items()}
    if dry_run:
        touched = [folder for folder in folders if own[folder]]
        return _sum(len(wanted), [_doomed(folder, own[folder], keep_averages).counts(0) for folder in touched])
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(run_lock(folder))
            for store in STORES:  # damaged records are mended first: then nothing below can stop half way
                Manifest(folder / store.manifest).records()
        if wanted:
            # The run has attributes, and rates of members, of its replicates' images too.
            _without_attributes(run, set[str]().union(*own.values()))
            Ledger(run).drop(MEMBERSHIP_FILE)
            for folder, gone in own.items():  # the run first: what a kill leaves to its replicates, they follow
                _mark(folder, never, gone, keep_averages)
            for name in ledger_files(stage="report"):
                Ledger(run).drop(name)
        done = [finish_pending(folder) for folder in folders]
    return _sum(len(wanted), done)


def _sum(images: int, done: Sequence[Forgotten]) -> Forgotten:
    """What was deleted in several folders, for so many ids."""
    counts = ("vectors", "synthetic", "classifiers", "kept_by_average")
    return Forgotten(images, *(sum(getattr(one, count) for one in done) for count in counts))


def _mark(run: Path, never: set[str], gone: Collection[str], keep_averages: bool) -> None:
    """Note what a run folder must never use again, and which ids of its own are to be deleted now, all hashed."""
    marks = read_marks(run)
    pending = sorted({*marks["pending"], *gone})
    again = sorted({*marks["never_again"], *never})
    keep = keep_averages and (marks["keep_averages"] or not marks["pending"])
    write_marks(run, Marks(never_again=again, pending=pending, keep_averages=keep))


def follow(run: Path, folder: Path) -> None:
    """Forget in a replicate's folder what the run must never use, and finish what a killed `forget` left there.

    So a replicate that is begun later never sees those images. Call it inside `run_lock(folder)`.
    """
    missing = set(read_marks(run)["never_again"]) - set(read_marks(folder)["never_again"])
    if missing:
        record = read_record(folder)
        found = _content(record).items()
        gone = [image for image, pixels in found if hashed(pixels) in missing or is_marked(missing, *image)]
        _mark(folder, missing, _marks(record, gone), keep_averages=False)
    finish_pending(folder)


def _content(record: dict[str, Any] | None) -> dict[_Image, str]:
    """Image => hash of its pixels, of all images that data.json records."""
    parts = [(part, record[part]) for part in _PARTS] if record is not None else []
    return {(name, i): pixels for name, part in parts for i, pixels in zip(part["ids"], part["hashes"], strict=True)}


def _marks(record: dict[str, Any] | None, images: Collection[_Image]) -> set[str]:
    """What is kept of ids. Where DATA was parted an id is one image, whatever part it may come to lie in later."""
    apart = record is not None and record["how"] == "given"
    return {id_marks(*image)[apart] for image in images}


def finish_pending(run: Path) -> Forgotten:
    """Go on with a `forget` that was killed; nothing happens where there is none. Call it inside `run_lock`."""
    marks = read_marks(run)
    if not marks["pending"]:
        if marks["never_again"]:
            write_marks(run, marks)  # completes a record that a kill cut short
        return Forgotten(0, 0, 0, 0, 0)
    if is_shared(run):
        raise UsageError(f"{run}: a `dinv forget` was cut short here. `dinv repair {run}` finishes it.")
    done = _delete(run, set(marks["pending"]), marks["keep_averages"])
    write_marks(run, Marks(never_again=marks["never_again"], pending=[], keep_averages=False))
    return done


def changed(run: Path) -> list[str]:
    """Images recorded here or in a replicate that DATA no longer holds, or holds otherwise, by ids for `forget`."""
    both: set[str] = set()
    found: dict[_Image, None] = {}
    for folder in replicate_folders(run):
        record = read_record(folder)
        if record is None and folder != run:
            continue
        if record is None:
            raise UsageError(f"{run}: not a run folder ({DATA_FILE} is missing); nothing to forget")
        now = data_record(load(folder, recorded_settings(record["source"]), record))
        found |= {(part, i): None for part in _PARTS for i, _ in changed_images(record[part], now[part])}
        both |= {*record["train"]["ids"]} & {*record["test"]["ids"]}
    return [":".join(image) if image[1] in both else image[1] for image in found]


def _delete(run: Path, gone: set[str], keep_averages: bool) -> Forgotten:
    """Delete the images whose ids `gone` marks. Whatever part of this was done before is not missed."""
    ledger, doomed = Ledger(run), _doomed(run, gone, keep_averages)
    # What shows or summarises the images, and choices by classifiers that saw them: the stages make them again.
    for name in reversed(ledger_files("derived", "choice")):
        if name != ATTRIBUTES_FILE:
            ledger.drop(name)
    _without_attributes(run, gone)
    records, choices = ledger.manifest.records(), ledger_files("choice")
    if any(record.get("unit") in choices for record in records):  # they hold copies of them
        ledger.manifest.rewrite([record for record in records if record.get("unit") not in choices])
    # What was judged, trained and chosen by what was learned from the images.
    for folder in (CLASSIFIERS, GROWN, GROWTH, ONLINE, REDRAWN, STRENGTHS, TUNING):
        shutil.rmtree(run / folder, ignore_errors=True)
    if doomed.drawn:
        images_store(run, doomed.class_names).remove(doomed.files)
    if doomed.inverted:
        EmbeddingStore(run).remove(doomed.learned)
    if (record := read_record(run)) is not None:  # last: it says what classes the images are of, also after a kill
        write_record(run, _without(record, gone))
    _sweep(run)
    return doomed.counts(len(gone))


def _without_attributes(run: Path, gone: set[str]) -> None:
    """Keep what attributes say of the other images alone: the file that they were given as may be gone."""
    if (kept := kept_attributes(run)) is not None:
        tested = [image_id for image_id in kept.of_test if not is_marked(gone, "test", image_id)]
        trained = [image_id for image_id in kept.of_train if not is_marked(gone, "train", image_id)]
        keep_attributes(run, kept, tested, trained)


@dataclass(frozen=True)
class _Doomed:
    """What was made from images that are to be deleted."""

    inverted: bool  # whether there are vectors at all
    drawn: bool  # whether there can be images
    class_names: tuple[str, ...]
    learned: set[str]  # ids of images that were learned, or that vectors began with
    vectors: int
    files: set[str]  # names of synthetic images
    averaged: int
    trained: int  # classifiers

    def counts(self, images: int) -> Forgotten:
        return Forgotten(images, self.vectors, len(self.files), self.trained, self.averaged)


def _doomed(run: Path, gone: set[str], keep_averages: bool) -> _Doomed:
    """What goes with the images whose ids `gone` marks; nothing is deleted."""
    record = read_record(run)
    vectors = EmbeddingStore(run)
    header = vectors.manifest.last("header")
    labels = dict(zip(record["train"]["ids"], record["train"]["labels"], strict=True)) if record is not None else {}
    # Dropped units name their images too, and the header those that vectors of others began with.
    commits = [entry for entry in vectors.manifest.records() if entry["event"] == "commit"]
    tried = {i: label for entry in commits for i, label in zip(entry["ids"], entry["labels"], strict=True)}
    labels.update(tried)
    learned = {i for i in {*tried, *(header or {}).get("means_of", ())} if is_marked(gone, "train", i)}
    if learned and not keep_averages and begun_at_means(run):
        classes = {labels.get(image_id) for image_id in learned}  # None of an image that no record has any more
        learned |= {image_id for image_id, label in labels.items() if None in classes or label in classes}
    class_names = tuple((header or record or {"class_names": ()})["class_names"])
    drawn = header is not None or (record is not None and method_of(run).again is not None)
    files: set[str] = set()
    averaged = 0
    if drawn:
        table = images_store(run, class_names).table("file_name", *PARENTS, *AVERAGING)
        names, *columns = (column.to_pylist() for column in table.columns)
        made = dict(zip(names, parents(*columns[: len(PARENTS)]), strict=True))
        taken = learned | {image_id for ids in made.values() for image_id in ids if is_marked(gone, "train", image_id)}
        how = zip(names, *columns[len(PARENTS) :], strict=True)
        averages = {name for name, *settings in how if is_averaged(*settings)}
        descended = {name for name, ids in made.items() if not taken.isdisjoint(ids)}
        files = descended | averages if learned and not keep_averages else descended
        averaged = len(averages - files) if learned else 0
    trained = len(ClassifierStore(run).manifest.units())
    held = len(learned & vectors.images().keys())
    return _Doomed(header is not None, drawn, class_names, learned, held, files, averaged, trained)


def is_averaged(scale: float, unconditional: str, rival_weight: float, kind: str, partner: str) -> bool:
    """Whether a mean of vectors went into an image (`AVERAGING`). Those of a class or group count as those of all."""
    guided = scale != 1.0 and (unconditional not in ("empty", "zero") or rival_weight > 0)
    return guided or kind == "circle" or partner == "context"


def _without(record: dict[str, Any], gone: set[str]) -> dict[str, Any]:
    """data.json's record without the images, and without problems that name them."""
    names = [i for part in _PARTS for i in record[part]["ids"] if is_marked(gone, part, i)]
    parts: dict[str, Any] = {}
    for name in _PARTS:
        part = record[name]
        rows = [row for row, image_id in enumerate(part["ids"]) if not is_marked(gone, name, image_id)]
        lists = {key: [part[key][row] for row in rows] for key in ("ids", "hashes", "labels", "groups") if key in part}
        problems = without_mention([Problem(**problem) for problem in part["problems"]], names)
        parts[name] = {**part, **lists, "problems": [asdict(problem) for problem in problems]}
    return {**record, **parts}


def begun_at_means(run: Path) -> bool:
    """Whether every vector of a run began at a mean over its class."""
    config = Ledger(run).read_json(settings_file("invert"))
    return config is not None and config["settings"].get("init") == "class-mean"


def _sweep(run: Path) -> None:
    """Delete files of units that no record names, which a killed call may have left, and make all deletions durable."""
    for store in STORES:
        listed = {name for record in Manifest(run / store.manifest).units().values() for name in record["files"]}
        folder = run / store.folder
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in listed and store.kind_of(name) in ("unit", "state"):
                path.unlink(missing_ok=True)
        for path in (folder, *folder.glob("*/")):
            if path.is_dir():
                sync_folder(path)
    sync_folder(run)
