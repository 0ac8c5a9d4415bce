"""The images of a run: loaded as the run recorded them, compared with what it recorded, less what it must forget."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.settings import DataSettings
from ..data.datasets import Splits, data_record, load_splits
from ..data.forgotten import forgotten_rows, without_mention
from ..data.images import LabelledImages
from ..data.selection import Chosen
from ..engine.claim import listed
from ..engine.ledger import Ledger
from ..engine.lock import is_shared, run_lock
from ..errors import ConfigMismatchError, DataError, UsageError
from ..invert.embeddings import EmbeddingStore
from ..sample.synthetic import SyntheticStore

DATA_FILE = "data.json"
_DECIDE = ("holdout", "seed", "balanced")  # settings that must stay as they were; limits may grow
EARLIER_RULE = (
    "begun by an earlier version, whose --limit took as many images of every class. It keeps its images, and those "
    "that a larger limit adds are chosen so too (as by --balanced)"
)


def open_splits(run: Path, settings: DataSettings | None = None) -> Splits:
    """Load the images of a run: by `settings` the first time, by what data.json recorded afterwards.

    Training images and classes that were added since are welcome. Images that were forgotten stay out (forgetting.py).
    Raises UsageError where neither settings nor a record is there, ConfigMismatchError where recorded images changed
    or are gone, with what changed.
    """
    recorded = read_record(run)
    if settings is None:
        note = recorded or Ledger(run).note(DATA_FILE)
        if note is None:
            raise UsageError(
                f"{run}: not a run folder ({DATA_FILE} is missing). Start with `dinv invert DATA --out {run}`; images "
                "from prompts know their DATA where they are drawn with --classes-of RUN."
            )
        settings = recorded_settings(note["source"])
    made = EmbeddingStore(run).begun() or SyntheticStore(run, ()).manifest.last("commit") is not None
    begun = recorded is not None and (is_shared(run) or made)
    earlier = begun and recorded is not None and _was_balanced(recorded["source"])
    if earlier and settings.limit is not None:
        if not settings.balanced:
            print(f"note: {run}: {EARLIER_RULE}", file=sys.stderr, flush=True)
        settings = settings.model_copy(update={"balanced": True})
    splits = load(run, settings, recorded if begun else None)
    # A run of an earlier version goes on as one, so that the command it was begun with stays the right one.
    source = settings.model_dump(mode="json", exclude={"balanced"} if earlier else None)
    record = {"source": source, **data_record(splits)}
    if begun and recorded is not None:
        lines = [
            f"{key}: was {was}, now {now}"
            for key, was in recorded_settings(recorded["source"]).model_dump(mode="json").items()
            if key in _DECIDE and was != (now := getattr(settings, key))
            if key != "balanced" or settings.limit is not None
        ]
        lines += [f"{part}: {line}" for part in ("train", "test") for line in changes(recorded[part], record[part])]
        if recorded["size"] != record["size"]:
            lines.append(f"size: was {recorded['size']}, now {record['size']}")
        if lines:
            raise ConfigMismatchError(
                f"{run}: the images are not those this run began with:\n{listed(lines)}\n"
                "Restore the data and the options that select it, or choose another run folder. Or take the images out "
                f"with all that was made from them: `dinv forget {run} --source ID` for one, `--changed` for all."
            )
    with run_lock(run):
        text = json.dumps(record, indent=1) + "\n"
        Ledger(run).commit(DATA_FILE, text.encode(), note={"source": record["source"]})
    return splits


def adopt_record(run: Path, folder: Path) -> None:
    """Let a folder have the images of a run as its own, so that what is made there can be trained with."""
    record = read_record(run)
    if record is not None and folder.resolve() != run.resolve():
        text = json.dumps(record, indent=1) + "\n"
        Ledger(folder).commit(DATA_FILE, text.encode(), note={"source": record["source"]})


def recorded_settings(source: dict[str, Any]) -> DataSettings:
    """The settings that a run recorded, with the rule of its subset where it was made before there were two."""
    return DataSettings(**{**source, "balanced": source.get("balanced", False) or _was_balanced(source)})


def recorded_data(run: Path) -> str | None:
    """What DATA the run was begun with; None where it has no record."""
    record = read_record(run)
    return None if record is None else str(record["source"]["data"])


def _was_balanced(source: dict[str, Any]) -> bool:
    """Whether the record is of a version that knew no other subset than a balanced one, and has one."""
    return "balanced" not in source and source["limit"] is not None


def read_record(run: Path) -> dict[str, Any] | None:
    """What data.json holds; None where the run has none. Raises DataError where it was damaged."""
    record: dict[str, Any] | None = Ledger(run).read_json(DATA_FILE)
    return record


def load(run: Path, settings: DataSettings, recorded: dict[str, Any] | None) -> Splits:
    """Load what `settings` names, parted as it was recorded; without the images that the run was told to forget.

    Classes keep the numbers that were recorded, by name; those that were added since come after them.
    """
    splits = load_splits(
        settings.data,
        test=settings.test,
        size=settings.size,
        limit=settings.limit,
        test_limit=settings.test_limit,
        holdout=settings.holdout,
        seed=settings.seed,
        root=settings.root,
        drop_duplicates=settings.drop_test_duplicates,
        allow_near_duplicates=settings.allow_near_duplicates,
        chosen=Chosen(
            frozenset(recorded["train"]["ids"] if recorded else ()),
            frozenset(recorded["test"]["ids"] if recorded else ()),
            settings.balanced,
            settings.per_class,
        ),
    )

    def without(images: LabelledImages) -> LabelledImages:
        images = images.with_classes_after(recorded["class_names"] if recorded else ())
        gone = set(forgotten_rows(images, run))
        if not gone:
            return images
        if len(gone) == len(images):
            raise DataError(f"{images.name}: every image was forgotten; add others")
        names = [images.ids[row] for row in gone]
        kept = images.subset([row for row in range(len(images)) if row not in gone])
        return replace(kept, problems=without_mention(kept.problems, names))

    train, test = without(splits.train), without(splits.test)
    return Splits(train, test, splits.how)


def changes(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for every recorded image of a part that is gone, has other pixels or another label."""
    return [f"{image_id}: {what}" for image_id, what in changed_images(recorded, now)]


def changed_images(recorded: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str]]:
    """Id of every recorded image of a part that changed, and how."""
    found = dict(zip(now["ids"], zip(now["hashes"], now["labels"], strict=True), strict=True))
    lines = []
    for image_id, content, label in zip(recorded["ids"], recorded["hashes"], recorded["labels"], strict=True):
        if image_id not in found:
            lines.append((image_id, "gone, or not selected any more"))
        elif found[image_id][0] != content:
            lines.append((image_id, "other pixels"))
        elif found[image_id][1] != label:
            lines.append((image_id, "another class"))
    return lines
