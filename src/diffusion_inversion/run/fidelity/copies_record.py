"""What run.json and the report have of copies that were drawn again: counts, by class and by try, and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.images import LabelledImages
from ...engine.ledger import Ledger
from ...errors import UsageError
from ...generator.safety import ATTEMPTS
from ...sample.synthetic import SyntheticStore, job_name
from ..copies import images_digest, mosaic, settings_of_audit
from ..gathered import job_of
from ..layout import AUDIT_FILE, GROWN
from .copies import recorded_copies
from .redraw import TRIES, redrawn_store

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = 8  # images that are shown, at most


def redrawn_record(run: Path, class_names: tuple[str, ...], audit: Mapping[str, Any]) -> dict[str, Any] | None:
    """What became of the images that an audit's record flags; None where copies were not drawn again.

    JSON data: how many `flagged` images there are, how many `passed` when drawn again, after which `tries`, and how
    many are `left` out; the same by class; and the first flagged ones with what was drawn in their place.
    """
    if recorded_copies(run) is None:
        return None
    jobs, again = job_of(SyntheticStore(run, class_names)), redrawn_store(run, class_names)
    columns = ("file_name", "source_id", "variant", "attempt", "failed", "copied", "noise_strength", "interpolation")
    rows = again.table(*columns).to_pylist() if again.manifest.units() else []
    drawn = {job_name(row["source_id"], row["variant"]): row for row in rows}
    pairs = [(pair, drawn.get(jobs.get(pair["file"], ""))) for pair in audit["pairs"]]
    passed = [row is not None and not row["failed"] and not row["copied"] for _, row in pairs]
    of_class = Counter(pair["class"] for pair, _ in pairs)
    left = Counter(pair["class"] for (pair, _), good in zip(pairs, passed, strict=True) if not good)
    at = Counter(row["attempt"] // ATTEMPTS for (_, row), good in zip(pairs, passed, strict=True) if good and row)
    return {
        "flagged": len(pairs),
        "passed": sum(passed),
        "left": len(pairs) - sum(passed),
        "tries": [at[number] for number in range(1, TRIES + 1)],
        "classes": [
            {"class_name": name, "flagged": count, "passed": count - left[name], "left": left[name]}
            for name, count in sorted(of_class.items())
        ],
        "examples": [
            {
                "file": pair["file"],
                "nearest": pair["nearest"],
                "again": row["file_name"],
                "passed": good,
                "try": row["attempt"] // ATTEMPTS,
                "noise_strength": row["noise_strength"],
                "interpolation": row["interpolation"],
            }
            for (pair, row), good in zip(pairs, passed, strict=True)
            if row is not None
        ][:EXAMPLES],
    }


def without_copies(
    run: Path, store: SyntheticStore, table: pa.Table, grown: Collection[str] = ()
) -> tuple[pa.Table, frozenset[str]]:
    """A table of a run's images as `store.table` has it, without those that copy a training image.

    In their place what was drawn again and passed, with the names of these, which lie in RUN/redrawn. `grown` are the
    names of those that lie in RUN/grown, which are not drawn again. The table as it
    is where copies were not drawn again. Raises UsageError where nobody looked for copies in all of these images, as
    the run's classifiers were trained without them.
    """
    import pyarrow as pa

    asked = recorded_copies(run)
    if asked is None:
        return table, frozenset()
    audit = Ledger(run).read_json(AUDIT_FILE)
    seen = audit is not None and audit["made_from"]["synthetic"] == images_digest(run, store.class_names)
    if not seen or audit["copies"]["n"] < len(table):  # an audit may have been of a part of them
        raise UsageError(f"{run}: not all images were compared with the training images. `dinv train {run}` does it.")
    if audit["settings"] != settings_of_audit(asked):
        raise UsageError(
            f"{run}: the last audit was made with other settings than the run's, which say what was drawn again. "
            f"`dinv train {run}` audits as the run does."
        )
    copies = {pair["file"] for pair in audit["pairs"]}
    files = table["file_name"].to_pylist()
    kept = table.filter([(f"{GROWN}/{name}" if name in grown else name) not in copies for name in files])
    later = redrawn_store(run, store.class_names)
    if not later.manifest.units():
        return kept, frozenset()
    again = later.table(*table.column_names)
    faults = zip(*(one.to_pylist() for one in later.table("file_name", "failed", "copied").columns), strict=True)
    again = again.filter([name in copies and not failed and not copied for name, failed, copied in faults])
    both = pa.concat_tables([kept, again], promote_options="permissive").sort_by("file_name")
    return both, frozenset(again["file_name"].to_pylist())


def redrawn_picture(run: Path, train: LabelledImages, record: Mapping[str, Any]) -> bytes | None:
    """PNG of the examples of `redrawn_record`: training image, first drawing and last one, below each other."""
    examples = record["examples"]
    if not examples:
        return None
    # As pictures, not as a set of images: variants of one source are near to the same training image.
    shown = [train.images[[train.row_of[one["nearest"]] for one in examples]]]
    for store, key in (
        (SyntheticStore(run, train.class_names), "file"),
        (redrawn_store(run, train.class_names), "again"),
    ):
        table = store.table("file_name", "sha256", "label").to_pylist()
        digests = {row["file_name"]: (row["sha256"], row["label"]) for row in table}
        names = [one[key] for one in examples]
        hashes, labels = zip(*(digests[name] for name in names), strict=True)
        shown.append(store.images(names, hashes, labels).images)
    return mosaic(shown)
