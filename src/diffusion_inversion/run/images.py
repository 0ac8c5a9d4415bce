"""The images of a run: loaded as the run recorded them, compared with what it recorded, less what it must forget."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.settings import DataSettings
from ..data.datasets import Splits, data_record, load_splits
from ..data.forgotten import forgotten_rows, without_mention
from ..data.hub_names import PREFIX, read_hub_name
from ..data.images import LabelledImages, changed, contents
from ..data.selection import Chosen
from ..data.sources import Role
from ..engine.frozen_settings import listed, require_agreed
from ..engine.ledger import Ledger
from ..engine.lock import is_shared, run_lock
from ..errors import ConfigMismatchError, DataError, UsageError
from ..invert.embeddings import EmbeddingStore
from ..sample.synthetic import SyntheticStore
from .layout import DATA_FILE

SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation")
_DECIDE = ("holdout", "seed", "balanced")  # settings that must stay as they were; limits may grow

_CONTENT = ("ids", "hashes", "labels", "groups")  # of a part of data.json, wherever DATA lies


def open_splits(run: Path, settings: DataSettings | None = None, classes: Sequence[str] = ()) -> Splits:
    """Load the images of a run: by `settings` the first time, by what data.json recorded afterwards.

    `classes` are numbered first where nothing is recorded: those of the run that a replicate is of.
    Training images and classes that were added since are welcome. Images that were forgotten stay out (run/forget.py).
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
    if begun and recorded is not None and (settings.groups is None) != ("groups" not in recorded["train"]):
        was = recorded_settings(recorded["source"]).groups
        raise _other_images(run, [f"groups: was {was}, now {settings.groups}"])
    test = recorded["source"].get("test") if begun and recorded is not None else None
    if test is not None and settings.test is None:
        raise ConfigMismatchError(f"{run}: was begun with --test {test}; give it again, or choose another run folder.")
    splits = load(run, settings, recorded if begun else None, classes)
    record = {"source": settings.model_dump(mode="json"), **data_record(splits)}
    if begun and recorded is not None:
        lines = [
            f"{key}: was {was}, now {now}"
            for key, was in recorded_settings(recorded["source"]).model_dump(mode="json").items()
            if key in _DECIDE and was != (now := getattr(settings, key))
            if key != "balanced" or settings.limit is not None
        ]
        lines += [
            f"{part}: {image_id}: {what}"
            for part in ("train", "test")
            for image_id, what in changed_images(recorded[part], record[part])
        ]
        lines += [
            f"{part}: {image_id}: group was {was}, now {now}"
            for part in ("train", "test")
            for image_id, was, now in _changed_groups(recorded[part], record[part])
        ]
        if recorded["size"] != record["size"]:
            lines.append(f"size: was {recorded['size']}, now {record['size']}")
        if lines and recorded["source"]["data"] != settings.data and not _any_shared(recorded, record):
            raise ConfigMismatchError(
                f"{run}: this folder belongs to another data set, {recorded['source']['data']}. "
                "Choose another run folder."
            )
        if lines:
            raise _other_images(run, lines)
    parts = {part: {key: record[part].get(key) for key in _CONTENT} for part in ("train", "test")}
    require_agreed(run, "data", {"class_names": record["class_names"], "size": record["size"], **parts})
    with run_lock(run):
        write_record(run, record)
    return splits


def _other_images(run: Path, lines: list[str]) -> ConfigMismatchError:
    return ConfigMismatchError(
        f"{run}: the images are not those this run began with:\n{listed(lines)}\n"
        "Restore the data and the options that select it, or choose another run folder. Or take the images out "
        f"with all that was made from them: `dinv forget {run} --source ID` for one, `--changed` for all."
    )


def _any_shared(recorded: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two records of images have the pixels of any training image in common."""
    return not set(recorded["train"]["hashes"]).isdisjoint(now["train"]["hashes"])


def adopt_record(run: Path, folder: Path) -> None:
    """Let a folder have the images of a run as its own, so that what is made there can be trained with."""
    record = read_record(run)
    if record is not None and folder.resolve() != run.resolve():
        write_record(folder, record)


def recorded_settings(source: dict[str, Any]) -> DataSettings:
    """The settings that a run recorded."""
    return DataSettings(**source)


def recorded_data(run: Path) -> str | None:
    """What DATA the run was begun with; None where it has no record."""
    record = read_record(run)
    return None if record is None else str(record["source"]["data"])


def read_record(run: Path) -> dict[str, Any] | None:
    """What data.json holds; None where the run has none. Raises DataError where it was damaged."""
    record: dict[str, Any] | None = Ledger(run).read_json(DATA_FILE)
    return record


def data_name(name: str, data: str) -> str:
    """What pages and cards call a data set: its `name`, or the folder above it where that is the name of a split alone.

    A local folder that `data` gives as hf: has the name of the folder, without its path.
    """
    path = Path(data)
    if data.startswith(PREFIX):
        asked = read_hub_name(data)
        if not asked.is_local:
            return name
        path = Path(asked.name)
    folder = Path(os.path.abspath(path.expanduser()))
    if data.startswith(PREFIX):
        name = folder.name
    above = folder.parent.name
    return above if above and name.lower() in SPLIT_NAMES else name


def write_record(run: Path, record: dict[str, Any]) -> None:
    """Let data.json hold `record`; its note has the options that select the images."""
    Ledger(run).commit_json(DATA_FILE, record, {"source": record["source"]}, indent=1)


def load(run: Path, settings: DataSettings, recorded: dict[str, Any] | None, classes: Sequence[str] = ()) -> Splits:
    """Load what `settings` names, parted as it was recorded; without the images that the run was told to forget.

    Classes keep the numbers that were recorded, by name, else begin with `classes`; others come after them.
    """
    splits = load_as(settings, recorded)

    def without(images: LabelledImages, part: Role) -> LabelledImages:
        images = images.with_classes_after(recorded["class_names"] if recorded else tuple(classes))
        gone = set(forgotten_rows(images, run, part))
        if not gone:
            return images
        if len(gone) == len(images):
            raise DataError(f"{images.name}: every image was forgotten; add others")
        names = [images.ids[row] for row in gone]
        kept = images.subset([row for row in range(len(images)) if row not in gone])
        return replace(kept, problems=without_mention(kept.problems, names))

    return Splits(without(splits.train, "train"), without(splits.test, "test"), splits.how)


def load_as(settings: DataSettings, recorded: dict[str, Any] | None = None) -> Splits:
    """Load what `settings` names, parted as it was recorded."""
    return load_splits(
        **settings.model_dump(exclude={"drop_test_duplicates", "balanced", "per_class"}),
        drop_duplicates=settings.drop_test_duplicates,
        chosen=Chosen(
            frozenset(recorded["train"]["ids"] if recorded else ()),
            frozenset(recorded["test"]["ids"] if recorded else ()),
            settings.balanced,
            settings.per_class,
        ),
    )


def changed_images(recorded: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Id of every recorded image of a part of data.json that changed, and how."""
    before, after = (contents(part["ids"], part["hashes"], part["labels"]) for part in (recorded, now))
    return changed(before, after)


def _changed_groups(recorded: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Id of every image that a part of data.json had in another group, that group, and the one it has now."""
    has = dict(zip(now["ids"], now.get("groups", ()), strict=False))
    for image_id, group in zip(recorded["ids"], recorded.get("groups", ()), strict=False):
        if has.get(image_id, group) != group:
            yield image_id, group, has[image_id]
