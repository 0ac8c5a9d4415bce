"""What run.json and the report have of noise strengths that were found: how many by class, and the extremes."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from torch import Tensor

from ..data.images import LabelledImages
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..invert.embeddings import read_embeddings
from ..sample.strengths import LADDER
from ..sample.synthetic import SyntheticStore
from .report.image_records import StrengthClassRecord, StrengthImageRecord, StrengthsRecord
from .strengths import MOST_MISSED, PROBES, Found, strengths_of

EXTREMES, VARIANTS = 4, 3  # images at each end, and variants of each, that are shown


def strengths_record(run: Path, class_names: tuple[str, ...]) -> StrengthsRecord | None:
    """What was found for a run; None where its settings have a number."""
    config = Ledger(run).read_json(settings_file("sample")) or {}
    if config.get("settings", {}).get("noise_strength") != "auto":
        return None
    found = strengths_of(run, read_embeddings(run))
    judged = [one for one in found if one.level is not None]
    ordered = sorted(judged, key=lambda one: (one.level or 0, one.strength, one.source))
    few = min(EXTREMES, len(ordered) // 2)
    classes: list[StrengthClassRecord] = []
    for label, name in enumerate(class_names):
        own = [one for one in judged if one.label == label]
        counts = [sum(one.level == level for one in own) for level in range(len(LADDER))]
        middle = median(one.strength for one in own) if own else None
        classes.append({"class_name": name, "counts": counts, "median": middle})

    def shown(one: Found) -> StrengthImageRecord:
        return {
            "file": one.source,
            "class_name": class_names[one.label],
            "strength": one.strength,
            "level": LADDER[one.level or 0],
            "kept": one.kept or 0,
            "copies": one.copies or 0,
        }

    record: StrengthsRecord = {
        "images": len(found),
        "judged": len(judged),
        "probes": PROBES,
        "ladder": list(LADDER),
        "never": sum((one.kept or 0) < PROBES - MOST_MISSED for one in judged),
        "copies": sum((one.copies or 0) > MOST_MISSED for one in judged),
        "classes": classes,
        "lowest": [shown(one) for one in ordered[:few]],
        "highest": [shown(one) for one in ordered[len(ordered) - few :][::-1]],
    }
    return record


def strength_images(run: Path, train: LabelledImages, record: StrengthsRecord) -> list[tuple[Tensor, Tensor]]:
    """Of each image of the lowest and then of the highest noise: itself (3, S, S), and its first variants."""
    store = SyntheticStore(run, train.class_names)
    rows = store.asked_for(store.table("file_name", "sha256", "label", "source_id", "variant")).to_pylist()
    found = []
    for one in (*record["lowest"], *record["highest"]):
        own = sorted((row for row in rows if row["source_id"] == one["file"]), key=lambda row: row["variant"])[
            :VARIANTS
        ]
        names, hashes, labels = ([row[key] for row in own] for key in ("file_name", "sha256", "label"))
        drawn = store.images(names, hashes, labels).images
        real = train.subset([train.row_of[one["file"]]])
        # Where counts are balanced sources may have no variants.
        found.append(((real.resized(drawn.shape[-1]) if own else real).images[0], drawn))
    return found
