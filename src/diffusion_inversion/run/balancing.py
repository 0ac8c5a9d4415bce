"""Counts of real and synthetic images in the parts that stage 2 evens: before the work, in a run folder, for people."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config.sampling import SampleSettings
from ..config.settings import DataSettings
from ..data.groups import values_of
from ..data.images import LabelledImages
from ..data.sources import default_root, open_data
from ..engine.ledger import Ledger
from ..errors import UsageError
from ..sample.balance import counts_of, parts_of, uneven
from .attributes import kept_attributes
from .images import read_record, recorded_settings
from .layout import BALANCE_FILE
from .report.image_records import BalanceRecord

MOST_SHOWN = 50  # parts in a table


def values_to_balance(data: DataSettings, sample: SampleSettings) -> dict[str, str] | None:
    """What the attribute that stage 2 balances says of each image that DATA names, by id; None: it balances none.

    Nothing is decoded. Raises UsageError for what is no file, column or expression, DataError for images without one.
    """
    if (given := sample.balanced_attribute) is None:
        return None
    source, _ = open_data(data.data, default_root(data.root))
    return dict(zip(source.ids, values_of(source, given, "balance"), strict=True))


def values_of_run(run: Path, sample: SampleSettings) -> dict[str, str] | None:
    """The same of the images of a run. A file that is gone since its subgroups were shown is on record there."""
    given = sample.balanced_attribute
    record = read_record(run) if given is not None else None
    if given is None or record is None:
        return None
    if os.path.isabs(given) and not os.path.exists(given):
        kept = kept_attributes(run)
        if kept is not None and kept.given == given:
            return kept.of_train
    return values_to_balance(recorded_settings(record["source"]), sample)


def whole(sample: SampleSettings) -> SampleSettings:
    """The settings with a file of values by its whole path, so that a run goes on from any folder."""
    given = sample.balanced_attribute
    if given is None or not os.path.isfile(given):
        return sample
    before = "class," if sample.balances_classes else ""
    return sample.model_copy(update={"balance": f"{before}{os.path.abspath(given)}"})


def require_attribute(sample: SampleSettings, attributes: str | None) -> None:
    """Raise UsageError where stage 2 balances another attribute than the one that a run reports on."""
    given = sample.balanced_attribute
    if given is not None and given != attributes:
        told = "no --attributes is given" if attributes is None else f"--attributes is {attributes}"
        raise UsageError(
            f"--balance {sample.balance}: {given} is balanced, but {told}; give --attributes {given}, so that its "
            "subgroups are tested, or --balance class"
        )


def check_balance(data: DataSettings, images: LabelledImages, sample: SampleSettings) -> BalanceRecord | None:
    """What stage 2 will make of the counts, and a note on stderr of what stays uneven; None: all sources have as many.

    Raises as `balance_of`.
    """
    found = balance_of(data, images, sample)
    if found is not None and found["uneven"] is not None:
        print(f"note: {found['uneven']}", file=sys.stderr, flush=True)
    return found


def balance_of(data: DataSettings, images: LabelledImages, sample: SampleSettings) -> BalanceRecord | None:
    """The same without a note. Raises as `values_to_balance`, and DataError where all images have one value."""
    labels = dict(zip(images.ids, images.labels.tolist(), strict=True))
    return counted(labels, images.class_names, sample, values_to_balance(data, sample))


def counted(
    labels: Mapping[str, int],
    class_names: Sequence[str],
    sample: SampleSettings,
    value_of: Mapping[str, str] | None,
) -> BalanceRecord | None:
    """Real and synthetic images of each part; None where nothing is evened. `labels` is the class of each source."""
    if sample.balance == "none":
        return None
    parts, counts = parts_of(labels, sample, value_of), counts_of(labels, sample, value_of)
    real, more = Counter(parts.values()), Counter[tuple[str, ...]]()
    for source, count in counts.items():
        more[parts[source]] += count
    by_class, by_value = sample.balanced_attribute is None or sample.balances_classes, value_of is not None
    attribute = sample.balanced_attribute
    return {
        "of": sample.balance,
        "attribute": None if attribute is None else Path(attribute).stem if os.path.isabs(attribute) else attribute,
        "parts": [
            {
                "class_name": class_names[int(part[0])] if by_class else None,
                "value": part[-1] if by_value else None,
                "real": real[part],
                "synthetic": more[part],
            }
            for part in sorted(real, key=lambda part: (int(part[0]) if by_class else 0, part))
        ],
        "uneven": uneven(labels, sample, value_of),
    }


def keep_counts(run: Path, found: BalanceRecord | None) -> None:
    """Let the run folder say what was made of the counts, for its report; nothing is kept where nothing is evened."""
    ledger = Ledger(run)
    if found is not None:
        ledger.commit_json(BALANCE_FILE, found, indent=1)
    elif ledger.holds(BALANCE_FILE):
        ledger.drop(BALANCE_FILE)


def read_counts(run: Path) -> BalanceRecord | None:
    """What `keep_counts` kept. Raises DataError for a damaged file."""
    found: BalanceRecord | None = Ledger(run).read_json(BALANCE_FILE)
    return found


def named(part: Mapping[str, object]) -> str:
    """A part for people."""
    return " / ".join(str(part[key]) for key in ("class_name", "value") if part[key] is not None)


def line(found: BalanceRecord) -> str:
    """The counts in a line: real ones, + synthetic ones, of each part."""
    shown = [f"{named(part)} {part['real']} + {part['synthetic']}" for part in found["parts"][:MOST_SHOWN]]
    more = len(found["parts"]) - len(shown)
    return f"real + synthetic images: {', '.join(shown)}{f', and {more} more' if more else ''}"
