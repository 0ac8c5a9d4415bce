"""`dinv retrieve`: images of a pool that are nearest to the training images, in the store that stage 2 writes.

It stands among the stages of a run folder, above `measure/`, whose extractors say what is near.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.sampling import RetrieveSettings
from ..config.settings import DataSettings
from ..data.datasets import Splits
from ..data.forgotten import hashed, read_marks
from ..data.images import LabelledImages, content_hash, square
from ..data.near_duplicates import NearTo, thumbnail
from ..data.pools import Pool, open_pool
from ..data.problems import Problem, raise_fatal
from ..data.reading import read_pixels
from ..data.sources import default_root
from ..engine.disk import require_room
from ..engine.frozen_settings import freeze_settings
from ..engine.ledger import Ledger
from ..engine.lock import run_lock
from ..engine.manifest import timed
from ..engine.progress import track
from ..engine.text import shown
from ..engine.units import each_unit
from ..errors import ConfigMismatchError, DataError, UsageError
from ..generator.device import resolve_device
from ..measure.extractors.cache import cached_features
from ..measure.extractors.catalog import open_extractor
from ..measure.extractors.extractor import Extractor
from ..measure.neighbours import NearestSearch, Neighbours, Taken, nearest_queries
from ..sample.columns import TAKEN
from ..sample.prompting import refuse_vectors
from ..sample.synthetic import SCHEMA, Row, SyntheticStore, job_name
from .images import open_splits
from .layout import RETRIEVAL_FILE
from .methods import RETRIEVAL, is_whole
from .room import SPARE_BYTES, png_bytes
from .stages import make_way

UNIT = 100  # images of the pool that are committed at once
_NAMED = 5  # images that an error names


@dataclass(frozen=True)
class Survey:
    """What a look at every image of a pool of N found, before anything is compared."""

    digest: str  # sha256 hex over all ids and pixels
    contents: NDArray[np.uint8]  # (N, 32): sha256 of the pixels of each
    usable: NDArray[np.bool_]  # (N,)
    left_out: dict[str, int]  # of those that are not usable: test, training and forgotten images, copies of others


def retrieve_sets(
    out: Path, data: DataSettings, settings: RetrieveSettings, *, device: str = "auto", anew: bool = False
) -> dict[int, dict[str, Any]]:
    """`retrieve` into a run folder for each k of the settings, OUT/k<k>, which `dinv train` takes; by k what it found.

    The pool is read once for all that have the same images. `anew`: as `retrieve`.
    """
    folders = {k: out / f"k{k}" for k in settings.k}
    root = default_root(data.root)
    pool = open_pool(settings.pool, root)
    check(folders, pool)
    extractor = open_extractor(settings.extractor, resolve_device(device), settings.weights)
    alike: dict[tuple[str, str], tuple[Splits, dict[int, Path]]] = {}
    for k, folder in folders.items():
        splits = open_splits(folder, data)
        alike.setdefault((splits.train.digest, splits.test.digest), (splits, {}))[1][k] = folder
    found: dict[int, dict[str, Any]] = {}
    for splits, of_these in alike.values():
        found |= retrieve(
            of_these, splits, pool, extractor, settings, cache=root / "features",
            drop_test_images=data.drop_test_duplicates, anew=anew,
        )  # fmt: skip
    return {k: found[k] for k in folders}


def retrieve(
    folders: Mapping[int, Path],
    splits: Splits,
    pool: Pool,
    extractor: Extractor,
    settings: RetrieveSettings,
    *,
    cache: Path | None,
    drop_test_images: bool = False,
    anew: bool = False,
) -> dict[int, dict[str, Any]]:
    """Fill a folder for each k: the k nearest of every training image, those of a class together, each image once.

    An image that is near enough to several training images goes to the nearest of them, and has its class. Images of
    the pool that are test images, exactly or nearly, are refused, or left out with `drop_test_images`; those that are
    training images, and copies of others in the pool, are left out. What is there already is not done again; `anew`
    deletes it, once all that takes its place was found.

    `cache` keeps features by content, so that no image goes through the network twice. Returns by k what
    retrieval.json holds. Raises UsageError (fewer images than k, a side that is too large, a folder of vectors),
    DataError (images that cannot be read, test images in the pool, a class without images), ConfigMismatchError (a
    folder was filled otherwise), LockedError, DiskError.
    """
    check(folders, pool)
    side = settings.image_size or splits.train.size
    if side > splits.train.size:
        raise UsageError(f"image_size={side}: larger than the {splits.train.size} px of the training images.")
    compared = {"listing": pool.listing, "train": splits.train.digest, "test": splits.test.digest}
    made_from = {k: _described(pool, extractor, settings, k, side) | compared for k in folders}
    kept = {} if anew else {k: _kept(folder, k, made_from[k]) for k, folder in folders.items()}
    found: dict[int, dict[str, Any]] = {k: record for k, record in kept.items() if record is not None}
    left = {k: folder for k, folder in folders.items() if k not in found}
    if not left:
        return found
    never = frozenset(mark for folder in folders.values() for mark in read_marks(folder)["never_again"])
    survey = look_at(pool, splits, settings.block_size, drop_test_images, never)
    usable = int(survey.usable.sum())
    if usable < max(left):
        gone = ", ".join(f"{count} {what}" for what, count in survey.left_out.items())
        raise UsageError(
            f"--k {max(left)}: {pool.name} has {usable} images once {gone} are left out. Give a smaller --k or another "
            "pool."
        )
    described = {k: _described(pool, extractor, settings, k, side, survey.digest) for k in left}
    if not anew:
        _freeze(left, described)
    train = splits.train.resized(side)
    near = search(pool, survey, train, extractor, settings, max(left), cache)
    taken = {k: nearest_queries(near, k) for k in left}
    for k in left:
        _require_classes(taken[k], train, pool)
    if anew:
        make_way({folder: len(taken[k]) for k, folder in left.items()}, side, anew=True)
        _freeze(left, described)
    for k, folder in left.items():
        store = SyntheticStore(folder, train.class_names)
        with run_lock(folder), timed(store.manifest):
            _fill(store, taken[k], pool, survey, train, described[k], k)
        record = {
            "made_from": made_from[k],
            "pool": described[k]["pool"],
            "images": len(taken[k]),
            "asked_for": k * len(train),
            "left_out": survey.left_out,
            "classes": _by_class(taken[k], train),
            "licences": dict(Counter(pool.licence_of(one.row) for one in taken[k]).most_common()),
            "similarity": {
                "least": min(one.similarity for one in taken[k]),
                "mean": float(np.mean([one.similarity for one in taken[k]])),
            },
        }
        with run_lock(folder):
            Ledger(folder).commit_json(RETRIEVAL_FILE, record, indent=1)
        found[k] = record
    return {k: found[k] for k in folders}


def check(folders: Mapping[int, Path], pool: Pool) -> None:
    """Raise what can be said before any image is read: UsageError."""
    if len(pool) < max(folders):
        raise UsageError(
            f"--k {max(folders)}: {pool.name} has {len(pool)} images. Give a smaller --k or a larger pool."
        )
    for folder in folders.values():
        refuse_vectors(folder, "retrieved images")


def look_at(
    pool: Pool, splits: Splits, block_size: int, drop_test_images: bool = False, never: Collection[str] = ()
) -> Survey:
    """Decode every image of the pool, a block at a time, and find those that are no help or must not be used.

    `never` are marks of pixels that were forgotten (data/forgotten.py). Raises DataError for images that cannot be
    read, and for test images unless they are to be left out.
    """
    parts = (splits.train, splits.test)
    near_to = NearTo(torch.cat([thumbnail(block) for part in parts for block in part.images.split(256)]))
    known = [{bytes.fromhex(digest) for digest in part.hashes} for part in parts]
    problems: list[Problem] = list(pool.source.problems)
    contents = np.zeros((len(pool), 32), np.uint8)
    is_test, is_train, is_copy, is_gone = (np.zeros(len(pool), np.bool_) for _ in range(4))
    seen: set[bytes] = set()
    digest = hashlib.sha256()
    with track(f"look at {pool.name}", len(pool)) as advance:
        for rows in _blocks(len(pool), block_size):
            thumbnails = torch.zeros(len(rows), 3, 32, 32, dtype=torch.uint8)  # blank where one cannot be read
            for place, pixels in read_pixels(pool.source, rows, problems):
                content, row = bytes.fromhex(content_hash(pixels)), rows[place]
                is_gone[row] = bool(never) and hashed(content.hex()) in never
                digest.update(f"{pool.source.ids[row]}\n".encode("utf-8", "surrogatepass") + content)
                contents[row] = np.frombuffer(content, np.uint8)
                is_train[row], is_test[row] = content in known[0], content in known[1]
                is_copy[row] = content in seen
                seen.add(content)
                thumbnails[place] = thumbnail(square(pixels, splits.train.size))
            for first, second in near_to.pairs(thumbnails):
                (is_train if first < len(splits.train) else is_test)[rows[second]] = True
            advance(len(rows))
    raise_fatal(f"pool {pool.name}", problems)
    if is_test.any() and not drop_test_images:
        named = [shown(pool.source.ids[row]) for row in np.flatnonzero(is_test)[:_NAMED]]
        more = f" and {int(is_test.sum()) - _NAMED} more" if is_test.sum() > _NAMED else ""
        raise DataError(
            f"pool {pool.name}: {int(is_test.sum())} of its images are test images of {splits.test.name}, exactly or "
            f"nearly: {', '.join(named)}{more}. Take them out of the pool, or leave them out with "
            "--drop-test-duplicates."
        )
    reasons = {"test images": is_test, "training images": is_train, "forgotten": is_gone, "copies": is_copy}
    usable, left_out = np.ones(len(pool), np.bool_), {}
    for reason, rows_of in reasons.items():  # each image is counted under its first reason
        left_out[reason] = int((rows_of & usable).sum())
        usable &= ~rows_of
    return Survey(digest.hexdigest(), contents, usable, left_out)


def search(
    pool: Pool,
    survey: Survey,
    train: LabelledImages,
    extractor: Extractor,
    settings: RetrieveSettings,
    k: int,
    cache: Path | None,
) -> Neighbours:
    """The k nearest usable images of the pool for every training image, both seen at the side of `train`."""
    found = NearestSearch(cached_features(extractor, train.images, cache, batch_size=settings.batch_size), k)
    with track(f"{extractor.name} features of {pool.name}", len(pool)) as advance:
        for rows in _blocks(len(pool), settings.block_size):
            images = _read(pool, survey, rows, train.size)  # all of the block: its features serve other data sets too
            features = cached_features(extractor, images, cache, batch_size=settings.batch_size)
            kept = torch.from_numpy(survey.usable[rows.start : rows.stop])
            found.add(features[kept], torch.arange(rows.start, rows.stop)[kept])
            advance(len(rows))
    return found.found()


def _blocks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _read(pool: Pool, survey: Survey, rows: Sequence[int], side: int) -> Tensor:
    """Images (B, 3, side, side) uint8 of rows. Raises ConfigMismatchError where one changed since it was looked at."""
    images = torch.empty(len(rows), 3, side, side, dtype=torch.uint8)
    problems: list[Problem] = []
    for place, pixels in read_pixels(pool.source, rows, problems):
        if content_hash(pixels) != survey.contents[rows[place]].tobytes().hex():
            name = shown(pool.source.ids[rows[place]])
            raise ConfigMismatchError(f"pool {pool.name}: {name} changed while it was in use. Run the command again.")
        images[place] = square(pixels, side)
    raise_fatal(f"pool {pool.name}", problems)
    return images


def _fill(
    store: SyntheticStore,
    taken: Sequence[Taken],
    pool: Pool,
    survey: Survey,
    train: LabelledImages,
    described: dict[str, Any],
    k: int,
) -> None:
    """Commit the images that are missing, in the pool's order; what is there and not wanted any more goes."""
    jobs = {job_name(train.ids[one.query], one.rank): one for one in taken}
    wanted = {job: pool.source.ids[one.row] for job, one in jobs.items()}

    columns = store.table("file_name", "source_id", "variant", "pool_id").columns
    there = list(zip(*(column.to_pylist() for column in columns), strict=True))
    stale = {name for name, source, variant, pool_id in there if wanted.get(job_name(source, variant)) != pool_id}
    if stale:  # training images came or went
        store.remove(stale)
    missing = len(jobs) - len(there) + len(stale)
    if missing:
        require_room(store.run, missing * png_bytes(train.size) + SPARE_BYTES, f"{missing} images of {train.size} px")
    with track("retrieve", missing) as advance:

        def copy(unit: tuple[str, ...]) -> None:
            items = [jobs[job] for job in unit]
            images = _read(pool, survey, [one.row for one in items], train.size)
            store.commit(images, [_metadata_row(one, pool, survey, train, described) for one in items])
            advance(len(items))

        each_unit(store.run, list(jobs), store.manifest, UNIT, copy)
    store.finish(variants=k)


def _metadata_row(one: Taken, pool: Pool, survey: Survey, train: LabelledImages, described: dict[str, Any]) -> Row:
    """How one image was found; see `columns.COLUMNS`. Its source is the training image, its variant the rank."""
    label = int(train.labels[one.query])
    return {
        **TAKEN,
        "source_id": train.ids[one.query],
        "variant": one.rank,
        "label": label,
        "partner_label": label,
        "partner_id": train.ids[one.query],
        "generator": pool.name,
        "generator_hash": described["pool"]["sha256"],
        "source_version": train.hashes[one.query][:16],
        "partner_version": survey.contents[one.row].tobytes().hex()[:16],
        "resolution": train.size,
        "method": RETRIEVAL,
        "pool_id": pool.source.ids[one.row],
        "licence": pool.licence_of(one.row),
    }


def _described(
    pool: Pool, extractor: Extractor, settings: RetrieveSettings, k: int, side: int, digest: str | None = None
) -> dict[str, Any]:
    """Everything that the images depend on but the training images, which their rows name, as JSON data."""
    return {
        "schema": SCHEMA,
        "kind": RETRIEVAL,
        "settings": settings.model_dump(mode="json", exclude={"pool", "weights"}) | {"k": k, "image_size": side},
        "pool": {"name": pool.name, "images": len(pool), **({"sha256": digest} if digest is not None else {})},
        "extractor": {
            "name": extractor.name,
            "preprocessing": extractor.preprocessing,
            "weights_sha256": extractor.weights_sha256,
        },
    }


def _freeze(folders: Mapping[int, Path], described: Mapping[int, dict[str, Any]]) -> None:
    """Raise ConfigMismatchError where a folder was filled otherwise; note for the others how they are filled."""
    for k, folder in folders.items():
        with run_lock(folder):
            freeze_settings(folder, "sample", described[k], begun=bool(SyntheticStore(folder, ()).manifest.units()))


def _kept(folder: Path, k: int, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call found, where the same call would find it again; else None. The pool is not read for it."""
    ledger = Ledger(folder)
    record: dict[str, Any] | None = ledger.read_json(RETRIEVAL_FILE) if ledger.holds(RETRIEVAL_FILE) else None
    same = record is not None and record["made_from"] == made_from
    return record if same and is_whole(folder) and SyntheticStore(folder, ()).complete() == k else None


def _by_class(taken: Sequence[Taken], train: LabelledImages) -> dict[str, int]:
    counts = Counter(int(train.labels[one.query]) for one in taken)
    return {name: counts[label] for label, name in enumerate(train.class_names)}


def _require_classes(taken: Sequence[Taken], train: LabelledImages, pool: Pool) -> None:
    """Raise DataError where a class of the training images has none of the images."""
    present = {train.class_names[label] for label in train.labels.tolist()}
    if empty := [shown(name) for name, count in _by_class(taken, train).items() if not count and name in present]:
        raise DataError(
            f"pool {pool.name}: no image is left for {', '.join(empty[:_NAMED])}: all that are near are nearer to "
            "training images of other classes. Give a larger --k or another pool."
        )
