"""Subgroups of the test images in the report of a run: `dinv run --attributes`, `dinv train --attributes`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.settings import DataSettings
from ..data.datasets import Splits
from ..data.groups import values_of
from ..data.images import LabelledImages
from ..data.sources import default_root, open_data
from ..engine.ledger import Ledger
from ..errors import DataError, UsageError
from ..train.replicated import Replicated, verdict_over
from ..train.subgroups import Estimate, Subgroups, subgroups
from .images import read_record, recorded_settings
from .layout import ATTRIBUTES_FILE, RUN_FILE
from .report.record import EstimateRecord, RunRecord, SubgroupRecord
from .verdict_record import comparison_record

MOST_VALUES = 50  # that a table can show


@dataclass(frozen=True)
class Attributes:
    """What an attribute says of images, by id: both parts may have an id, of different pictures."""

    given: str  # a file by its whole path
    of_test: dict[str, str]  # each image that may be tested on
    of_train: dict[str, str]  # each image that may be trained on, or none where it says nothing of one of them

    @property
    def name(self) -> str:
        """What it is called: a column or an expression as it is, a file by its stem."""
        return Path(self.given).stem if Path(self.given).is_absolute() else self.given


def read_attributes(data: DataSettings, given: str, test: LabelledImages) -> Attributes:
    """The attribute of the images that DATA names to test on. Nothing is decoded.

    Raises UsageError for what is no file, column or expression, DataError for images without a value, and for an
    attribute of which the images of `test` have one value alone, or too many.
    """
    root = default_root(data.root)
    whole, part = open_data(
        data.data if data.test is None else data.test, root, "train" if data.test is None else "test"
    )
    tested = part or whole
    of_test = dict(zip(tested.ids, values_of(tested, given, "attributes"), strict=True))
    held_out = tested is whole and data.test is None
    found = Attributes(given, of_test, of_test if held_out else _of_training(data, root, given))
    values = {of_test[image_id] for image_id in test.ids}
    if len(values) == 1:
        raise DataError(
            f"--attributes {given}: all {len(test)} test images have one value, {min(values)}; give an attribute that "
            "tells test images apart, or leave it out"
        )
    if len(values) > MOST_VALUES:
        raise DataError(
            f"--attributes {given}: {len(values)} values among {len(test)} test images, more than {MOST_VALUES}; give "
            "a coarser attribute"
        )
    return found


def _of_training(data: DataSettings, root: Path, given: str) -> dict[str, str]:
    """The same of each image that may be trained on; empty where it says nothing of one of them."""
    try:
        source, _ = open_data(data.data, root)
        return dict(zip(source.ids, values_of(source, given, "attributes"), strict=True))
    except (UsageError, DataError):
        return {}


def attributes_of(run: Path, splits: Splits, given: str | None) -> Attributes | None:
    """The same of a run whose images were opened. Where none is given, that which it had before; None: it had none.

    What a file said then is on record, so it may be gone. It is read anew where images were added since.
    """
    kept = kept_attributes(run)
    before = (Ledger(run).note(RUN_FILE) or {}).get("attributes")
    if given is None and kept is not None and set(splits.test.ids) <= kept.of_test.keys():
        return kept
    if (asked := given or (kept.given if kept else None) or before) is None:
        return None
    record = read_record(run)
    assert record is not None  # they were recorded when they were opened
    return read_attributes(recorded_settings(record["source"]), asked, splits.test)


def kept_attributes(run: Path) -> Attributes | None:
    """What `keep_attributes` kept; None where it kept nothing."""
    ledger = Ledger(run)
    if not ledger.holds(ATTRIBUTES_FILE):
        return None
    kept = ledger.read_json(ATTRIBUTES_FILE)
    if "values" not in kept:
        return Attributes(kept["given"], kept["of_test"], kept["of_train"])
    # Before they were told apart, values of training images replaced those of test images of the same id.
    own_ids = (read_record(run) or {"how": "given"})["how"] != "given"
    return Attributes(kept["given"], kept["values"] if own_ids else {}, kept["values"])


def keep_attributes(run: Path, attributes: Attributes, test: Collection[str], train: Collection[str]) -> None:
    """Put on record what the attribute says of images of a run and its replicates, where it says something."""
    of_test, of_train = (
        {image_id: values[image_id] for image_id in ids if image_id in values}
        for ids, values in ((test, attributes.of_test), (train, attributes.of_train))
    )
    content = {"given": attributes.given, "of_test": of_test, "of_train": of_train}
    Ledger(run).commit_json(ATTRIBUTES_FILE, content, indent=1)


def add_subgroups(record: RunRecord, replicates: Sequence[Replicated], attributes: Attributes) -> None:
    """Put what each arm recognises of every subgroup into the record, and into the verdict what happened to the worst.

    The headline has it where the arm that the verdict rests on lowers the worst subgroup.
    """
    found = subgroups(replicates, attributes.of_test)
    worst = found.worst
    record["subgroups"] = {
        "attribute": attributes.name,
        "baseline": found.baseline,
        "worst": None if worst is None else worst.value,
        "lowered_by": [one.arm for one in found.lowered],
        "parts": _parts(found),
    }
    if worst is None or not found.lowered:
        return
    named = f"lowers the worst subgroup, {attributes.name} = {worst.value}"
    verdict = record["verdict"]
    verdict["sentence"] += "".join(f"; {one.arm} {named} ({one.summary})" for one in found.lowered)
    if verdict_over(replicates).arm in record["subgroups"]["lowered_by"]:
        headline = verdict.get("headline", verdict["outcome"])
        verdict["headline"] = f"{headline}, {'but' if headline == 'helps' else 'and'} {named}"


def _parts(found: Subgroups) -> list[SubgroupRecord]:
    return [
        {
            "value": part.value,
            "images": part.images,
            "accuracy": {arm: _estimate(one) for arm, one in part.accuracy.items()},
            "ece": {arm: _estimate(one) for arm, one in part.ece.items()},
            "comparisons": [comparison_record(one) for one in part.comparisons],
        }
        for part in found.parts
    ]


def _estimate(found: Estimate) -> EstimateRecord:
    return {"mean": found.mean, "low": found.low, "high": found.high}
