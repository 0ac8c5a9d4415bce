"""The audit of a run, or of any two DATA: which synthetic images are copies of training images."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.commands import AuditSettings
from ..data.datasets import Splits, load_images
from ..data.images import LabelledImages, resize
from ..data.sources import default_root, open_data
from ..engine.ledger import Ledger
from ..engine.lock import briefly
from ..engine.progress import track
from ..engine.store import commit_bytes, disk_errors
from ..errors import DataError, UsageError
from ..generator.device import resolve_device
from ..measure.copies.auditing import audit_images, images_to_search
from ..measure.copies.found import CopyAudit
from ..measure.copies.said import sentence
from ..measure.copies.views import View, feature_view, part_view, pixel_view
from ..measure.extractors.catalog import open_extractor
from ..measure.variant_groups import recorded_sources
from ..randomness import generator_for
from ..sample.png import encode_png
from ..sample.synthetic import NAMED, SyntheticStore
from .gathered import is_grown
from .images import open_splits
from .layout import AUDIT_FILE, AUDIT_PICTURE, DATA_FILE, GROWN
from .methods import images_made, images_store

SHOWN_PAIRS, PAIRS_IN_A_ROW = 24, 8
_CELL, _GAP = 96, 6  # px, least side of an image in the picture and between images


@dataclass(frozen=True)
class Kept:
    """The audit that a run folder holds, of the images that are there now."""

    record: dict[str, Any]
    picture: bytes | None  # PNG of the worst pairs; None where nothing is flagged

    def shown(self) -> dict[str, Any]:
        """The record for run.json: of the pairs those that the picture shows."""
        left = {key: value for key, value in self.record.items() if key not in ("schema", "settings", "made_from")}
        return left | {"pairs": self.record["pairs"][:SHOWN_PAIRS]}


def audit_run(run: Path, settings: AuditSettings, splits: Splits | None = None) -> dict[str, Any]:
    """Audit the synthetic images of a run and keep what was found; what is there already is not done again.

    Returns the record. Raises, before images are read, UsageError for an extractor that cannot be had; then UsageError
    where stage 2 is not finished, DataError and UsageError where the training images cannot be read or are too few.
    """
    views = views_of(settings)
    splits = splits or open_splits(run)
    with briefly(run, "audit"):
        ledger, made_of = Ledger(run), made_from(run, splits)
        asked = settings_of_audit(settings)
        kept = read_audit(run, splits)
        if kept is not None and kept.record["settings"] == asked:
            return kept.record
        generated = images_made(run, splits.train.class_names)
        sources = list(generated.source_ids)
        known = None if {*sources}.isdisjoint(splits.train.ids) else sources
        found = _audit(splits.train, generated, splits.test, known, settings, views)
        for name in (AUDIT_FILE, AUDIT_PICTURE):
            ledger.drop(name)
        picture = worst_pairs(found)
        if picture is not None:
            ledger.commit(AUDIT_PICTURE, picture)
        record = {**found.record(), "settings": asked, "made_from": made_of}
        note = {"settings": settings.model_dump(mode="json")}
        ledger.commit_json(AUDIT_FILE, record, note, indent=1, allow_nan=False)
    return record


def settings_of_audit(settings: AuditSettings) -> dict[str, Any]:
    """What an audit's record has of its settings."""
    return settings.model_dump(mode="json", exclude={"copies", "device"})


def audit_again(run: Path, splits: Splits) -> None:
    """Audit a run that was audited, where a file of it was lost since."""
    ledger = Ledger(run)
    asked = ledger.note(AUDIT_FILE)
    if asked is not None and read_audit(run, splits) is None:
        audit_run(run, AuditSettings(**asked["settings"]), splits)


def guard(run: Path, settings: AuditSettings, splits: Splits) -> dict[str, Any] | None:
    """Audit a run before it is trained on, as `settings.copies` says, and return the record; None without one.

    "report" and "redraw": what cannot be audited is said on stderr. "refuse": DataError where more images are copies
    than chance explains, or where that cannot be known.
    """
    if settings.copies == "off":
        return None
    try:
        record = audit_run(run, settings, splits)
    except DataError as error:
        if settings.copies == "refuse":
            raise
        print(f"note: copies of training images were not looked for: {error}", file=sys.stderr, flush=True)
        return None
    if settings.copies == "refuse" and record["exceeds_chance"]:
        raise DataError(
            f"{run}: {sentence(record)}. {AUDIT_FILE} lists them. Let them be drawn again (--copies redraw), draw "
            "farther from the vectors (--noise-strength, --interpolation), or accept them (--copies report)",
            {"copies": record["copies"]},
        )
    return record


def audit_data(
    real: str, generated: str, test: str | None, settings: AuditSettings
) -> tuple[CopyAudit, dict[str, Any]]:
    """Audit any two DATA, and the record of it. `test` is by default the test split of `real`, where it has one.

    Raises, before images are read, UsageError for an extractor that cannot be had.
    """
    views = views_of(settings)
    images = load_images(real)
    made = load_images(generated)
    apart: LabelledImages | None = None
    if test is not None:
        apart = load_images(test)
    elif open_data(real, default_root())[1] is not None:
        apart = load_images(real, split="test")
    recorded = recorded_sources(generated)
    sources = [recorded.get(image_id, image_id) for image_id in made.ids] if recorded else None
    found = _audit(images, made, apart, sources, settings, views)
    return found, {**found.record(), "settings": settings.model_dump(mode="json", exclude={"copies", "device"})}


def require_own_out(out: Path, name: str, picture: str | None = None) -> None:
    """Raise UsageError for a folder `out` where a record `name`, or its picture, would replace what is not of an
    earlier call: a run's own, or another's file. DiskError where nothing can be written there.
    """
    if (out / DATA_FILE).is_file():
        raise UsageError(f"--out {out}: a run folder, whose own record would be replaced; choose another folder.")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    if (out / name).exists():
        try:
            ours = "false_positives" in json.loads((out / name).read_bytes())
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise UsageError(f"--out {out}: its {name} is no such record and would be replaced; choose another folder.")
    elif picture is not None and (out / picture).exists():
        raise UsageError(
            f"--out {out}: its {picture} has no {name} beside it and would be replaced; choose another folder."
        )


def write_audit(folder: Path, found: CopyAudit, record: dict[str, Any]) -> None:
    """Write audit.json, and audit.png where something is flagged, into a folder; an older picture goes. Raises
    DiskError.
    """
    picture = worst_pairs(found)
    if picture is not None:
        commit_bytes(folder / AUDIT_PICTURE, picture)
    else:
        with disk_errors(folder / AUDIT_PICTURE):
            (folder / AUDIT_PICTURE).unlink(missing_ok=True)
    commit_bytes(folder / AUDIT_FILE, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def read_audit(run: Path, splits: Splits) -> Kept | None:
    """The audit of a run; None where there is none of the images that are there now. Raises DataError where damaged."""
    ledger = Ledger(run)
    record = ledger.read_json(AUDIT_FILE)
    if record is None or record["made_from"] != made_from(run, splits):
        return None
    picture = ledger.read(AUDIT_PICTURE)
    return None if (picture is None) == bool(record["pairs"]) else Kept(record, picture)


def worst_pairs(found: CopyAudit) -> bytes | None:
    """PNG of the flagged images, worst first, each above the training image that it is nearest to; None for none."""
    rows = found.worst_first()[:SHOWN_PAIRS]
    if not rows:
        return None
    return mosaic([found.generated.images[rows], found.real.images[[found.nearest_row(row) for row in rows]]])


def mosaic(shown: Sequence[Tensor]) -> bytes:
    """PNG of images that belong together below each other: uint8 (N, 3, S, S) for each place, S may differ."""
    side = min(images.shape[-1] for images in shown)
    factor = max(-(-_CELL // side), 1)
    shown = [_enlarged(images, side, factor) for images in shown]
    step, count, places = side * factor + _GAP, len(shown[0]), len(shown)
    lines = -(-count // PAIRS_IN_A_ROW)
    canvas = torch.full((3, lines * (places * step + _GAP) - _GAP, min(count, PAIRS_IN_A_ROW) * step), 255).byte()
    for number in range(count):
        line, column = divmod(number, PAIRS_IN_A_ROW)
        for below, images in enumerate(shown):
            top, left = line * (places * step + _GAP) + below * step, column * step
            canvas[:, top : top + step - _GAP, left : left + step - _GAP] = images[number]
    return encode_png(canvas)


def _enlarged(images: Tensor, side: int, factor: int) -> Tensor:
    same = images if images.shape[-1] == side else resize(images, side)
    return same.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


def _audit(
    real: LabelledImages,
    generated: LabelledImages,
    test: LabelledImages | None,
    sources: Sequence[str] | None,
    settings: AuditSettings,
    views: Sequence[View],
) -> CopyAudit:
    if settings.limit is not None and settings.limit < len(generated):
        order = torch.randperm(len(generated), generator=generator_for(settings.seed, "audited"))
        rows = order[: settings.limit].sort().values.tolist()
        generated = generated.subset(rows)
        sources = None if sources is None else [sources[row] for row in rows]
    total = len(views) * images_to_search(len(real), len(generated), len(test) if test else None, settings.planted)
    with track("audit", total, "images") as advance:
        return audit_images(
            real,
            generated,
            test,
            views,
            false_positives=settings.false_positives,
            neighbours=settings.neighbours,
            planted=settings.planted,
            seed=settings.seed,
            sources=sources,
            advance=advance,
        )


def views_of(settings: AuditSettings) -> list[View]:
    """The views that images are compared in. Raises UsageError for an extractor that cannot be had."""
    if settings.weights is not None and settings.extractor is None:
        raise UsageError(f"--weights {settings.weights}: of which network? Give --extractor too.")
    device = resolve_device(settings.device)
    views = [pixel_view(device), part_view(device)]
    if settings.extractor is not None:
        views.append(feature_view(open_extractor(settings.extractor, device, settings.weights)))
    return views


def made_from(run: Path, splits: Splits) -> dict[str, str]:
    """Hashes of the images that an audit, or a figure of membership, speaks of."""
    made = images_digest(run, splits.train.class_names)
    return {"train": splits.train.digest, "test": splits.test.digest, "synthetic": made}


def images_digest(run: Path, class_names: tuple[str, ...]) -> str:
    """sha256 hex of the names and contents of a run's synthetic images, those that were grown with them.

    Of stage 2 those that its last finished call asked for: others may be there, which nobody uses now.
    """
    found, between = hashlib.sha256(), ""
    grown = [(f"{GROWN}/", SyntheticStore(run, class_names, GROWN))] if is_grown(run) else []
    for prefix, store in [("", images_store(run, class_names)), *grown]:
        rows = store.table(*NAMED, "sha256")
        asked = store.asked_for(rows) if not prefix and store.complete() else rows
        rows = asked.select(["file_name", "sha256"]).sort_by("file_name")
        for batch in rows.to_batches(max_chunksize=1000):
            for name, digest in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                found.update(f"{between}{prefix}{name} {digest}".encode("utf-8", "surrogatepass"))
                between = "\n"
    return found.hexdigest()
