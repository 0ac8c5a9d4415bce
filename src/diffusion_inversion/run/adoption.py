"""`dinv adopt`: images that another method made, in the store that stage 2 writes, to be judged as ours are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..config.sampling import AdoptSettings
from ..config.settings import DataSettings
from ..data.datasets import Splits, load_images
from ..data.duplicates import same_pixels, test_images
from ..data.forgotten import hashed, read_marks
from ..data.images import LabelledImages
from ..data.naming import class_folder
from ..data.sources import default_root, open_data
from ..engine.frozen_settings import freeze_settings
from ..engine.ledger import Ledger
from ..engine.lock import run_lock
from ..engine.manifest import timed
from ..engine.progress import track
from ..engine.text import shown
from ..engine.units import each_unit
from ..errors import DataError, UsageError
from ..sample.columns import TAKEN
from ..sample.prompting import refuse_vectors
from ..sample.synthetic import SCHEMA, Row, SyntheticStore, job_name
from .images import open_splits
from .layout import ADOPTION_FILE
from .methods import ADOPTED, require_same
from .stages import make_way

UNIT = 100  # images that are committed at once


def adopt(out: Path, data: DataSettings, settings: AdoptSettings, *, anew: bool = False) -> dict[str, Any]:
    """Put the images that `settings` names into a run folder of DATA, which `dinv train` takes; what adoption.json has.

    They have the classes of DATA, by name. Test images among them, exactly or nearly, are refused; `data` may leave
    them out (drop_test_duplicates) or accept the near ones (allow_near_duplicates). Those with the pixels of an image
    that the run was told to forget are left out. What is there already is not done again, images that are new are
    added. `anew` deletes first what is there, once everything is known to be usable and there is room.

    Raises UsageError (a class that DATA has not, a side that is too large, a folder of vectors), DataError (images that
    cannot be read, test images among them, a class of DATA without images), ConfigMismatchError (the folder was filled
    otherwise, or images changed), LockedError, DiskError.
    """
    refuse_vectors(out, "adopted images")
    open_data(settings.images, default_root(data.root))  # or refused, before anything is decoded
    splits = open_splits(out, data)
    images = _as_in(splits.train, _load(settings, splits.train, data.root))
    splits = Splits(splits.train.resized(images.size), splits.test.resized(images.size), splits.how)
    copied = same_pixels(images, splits.train)
    tested = test_images(
        images, splits.train, splits.test, copied, drop=data.drop_test_duplicates, allow_near=data.allow_near_duplicates
    )
    never = read_marks(out)["never_again"]
    gone = {row for row, pixels in enumerate(images.hashes) if hashed(pixels) in never}
    rows = [row for row in range(len(images)) if row not in tested and row not in gone]
    if lacking := {*splits.train.labels.tolist()} - {*images.labels[rows].tolist()}:
        names = ", ".join(shown(images.class_names[label]) for label in sorted(lacking))
        raise DataError(f"{images.name}: no image is left for {names}. Give images of every class of DATA.")
    make_way({out: len(rows)}, images.size, anew=anew)
    store = SyntheticStore(out, images.class_names)
    with run_lock(out), timed(store.manifest):
        made_from = {"schema": SCHEMA, "kind": ADOPTED, "settings": {"image_size": images.size}}
        freeze_settings(out, "sample", made_from, begun=bool(store.manifest.units()))
        require_same(images, store, "pool_id", "adopted")
        _fill(store, images, {row: _metadata_row(images, row, copied.get(row)) for row in rows})
        labels = images.labels[rows]
        record = {
            "made_from": {"train": splits.train.digest, "test": splits.test.digest},
            "name": images.name,
            "images": len(rows),
            "side": images.size,
            "copies": sum(row in copied for row in rows),
            "left_out": {"test images": len(tested), "forgotten": len(gone - tested)},
            "classes": {name: int((labels == label).sum()) for label, name in enumerate(images.class_names)},
            "licence": images.licence,
        }
        Ledger(out).commit_json(ADOPTION_FILE, record, indent=1)
    return record


def _load(settings: AdoptSettings, train: LabelledImages, root: str | None) -> LabelledImages:
    """The images at the side of all arms: that asked for, else the smaller of DATA's and that of their smallest."""
    asked = settings.image_size
    if asked is not None and asked > train.size:
        raise UsageError(f"--image-size {asked}: larger than the {train.size} px of the training images.")
    images = load_images(settings.images, size=asked or train.size, root=root)
    if asked is not None and asked > (least := images.native_size):
        raise UsageError(f"--image-size {asked}: larger than the {least} px of {images.name}. Give a smaller one.")
    fits = images.native_size >= images.size
    return images if fits else load_images(settings.images, size=images.native_size, root=root)


def _as_in(train: LabelledImages, images: LabelledImages) -> LabelledImages:
    """The images with the classes of the training images, by name, as it may be on disk."""
    label_of = {class_folder(name): label for label, name in enumerate(train.class_names)}
    numbers = [label_of.get(class_folder(name), -1) for name in images.class_names]
    used = images.labels.unique().tolist()
    if unknown := [images.class_names[label] for label in used if numbers[label] < 0]:
        own, names = (", ".join(map(shown, some)) for some in (train.class_names, unknown))
        raise UsageError(f"{images.name}: has images of {names}, and DATA's classes are {own}. Give images of these.")
    return replace(images, labels=torch.tensor(numbers)[images.labels], class_names=train.class_names)


def _fill(store: SyntheticStore, images: LabelledImages, described: Mapping[int, Row]) -> None:
    """Commit the images of these rows that are missing; what is there and not wanted any more goes."""
    jobs = {job_name(one["source_id"], 0): row for row, one in described.items()}
    wanted = {one["source_id"]: one["partner_id"] for one in described.values()}
    columns = store.table("file_name", "source_id", "partner_id").columns
    there = list(zip(*(column.to_pylist() for column in columns), strict=True))
    if stale := {name for name, source, partner in there if wanted.get(source) != partner}:
        store.remove(stale)
    with track("adopt", len(jobs) - len(there) + len(stale)) as advance:

        def copy(unit: tuple[str, ...]) -> None:
            rows = [jobs[job] for job in unit]
            store.commit(images.images[rows], [described[row] for row in rows])
            advance(len(rows))

        each_unit(store.run, list(jobs), store.manifest, UNIT, copy)
    store.finish(variants=1)


def _metadata_row(images: LabelledImages, row: int, copied: str | None) -> Row:
    """What is known of one image; see `columns.COLUMNS`. Its source is no image of DATA, whatever names they share.

    `copied` is the training image whose pixels it has: its partner, with which it is forgotten.
    """
    label, version = int(images.labels[row]), images.hashes[row][:16]
    source = f"{images.class_names[label]}: {images.ids[row]}"  # as of prompts and latents
    return {
        **TAKEN,
        "source_id": source,
        "label": label,
        "partner_label": label,
        "partner_id": source if copied is None else copied,
        "generator": images.name,
        "source_version": version,
        "partner_version": version,
        "resolution": images.size,
        "method": ADOPTED,
        "pool_id": images.ids[row],
        "licence": images.licence,
    }
