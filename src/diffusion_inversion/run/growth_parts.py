"""The parts of the training images among which `dinv grow` shares out: classes, or subgroups within them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.sampling import SampleSettings
from ..data.datasets import Splits
from ..errors import DataError, UsageError
from ..sample.balance import parts_of
from .attributes import Attributes, attributes_of, read_attributes
from .images import read_record, recorded_settings

CLASS = "class"  # what shares go by where no attribute is given


@dataclass(frozen=True)
class Parts:
    """Parts by number: the class and the value of each, and of each training image, by id, its part."""

    attribute: str | None  # as it was given; None: the parts are the classes, whose numbers they have
    name: str
    classes: list[int]
    values: list[str]  # none where the parts are classes
    of: Mapping[str, int]

    @property
    def described(self) -> dict[str, Any]:
        """As JSON data to compare rounds by; nothing for classes, by which those of earlier versions would differ."""
        if self.attribute is None:
            return {}
        values = sorted((image_id, self.values[part]) for image_id, part in self.of.items())
        return {"balance": self.attribute, "values": hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]}


def parts_by(run: Path, splits: Splits, balance: str) -> Parts:
    """The classes, or for an attribute the parts of each class that have one value.

    Raises UsageError for an attribute that is not the run's, DataError for training images without a value, and where
    all have the same.
    """
    images = splits.train
    labels = dict(zip(images.ids, images.labels.tolist(), strict=True))
    if balance == CLASS:
        return Parts(None, CLASS, list(range(len(images.class_names))), [], labels)
    kept = attributes_of(run, splits, None)
    if kept is None or balance not in (kept.given, kept.name):
        told = "was given no --attributes" if kept is None else f"has --attributes {kept.given}"
        raise UsageError(
            f"--balance {balance}: {run} {told}; `dinv train {run} --attributes {balance}` first, so that its "
            "subgroups are tested, or give --balance class"
        )
    part_of = parts_of(labels, SampleSettings(balance=f"class,{kept.given}"), _values(run, splits, kept))
    every = sorted({*part_of.values()}, key=lambda part: (int(part[0]), part[1]))
    number = {part: place for place, part in enumerate(every)}
    return Parts(
        kept.given,
        kept.name,
        [int(label) for label, _ in every],
        [value for _, value in every],
        {image_id: number[part] for image_id, part in part_of.items()},
    )


def _values(run: Path, splits: Splits, kept: Attributes) -> dict[str, str]:
    """What the attribute says of the training images, also of those that were added since it was put on record."""
    if kept.of_train.keys() >= {*splits.train.ids}:
        return kept.of_train
    record = read_record(run)
    assert record is not None  # the images were opened
    try:
        return read_attributes(recorded_settings(record["source"]), kept.given, splits.test).of_train
    except (UsageError, DataError):
        return kept.of_train  # a file that is gone: those without a value are named
