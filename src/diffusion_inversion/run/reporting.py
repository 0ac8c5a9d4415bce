"""What a finished run shows: run.json, and report.html with pictures of what it was made from."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..config.settings import TrainSettings
from ..data.datasets import Splits
from ..data.duplicates import doubts
from ..data.images import resize
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..engine.manifest import Manifest
from ..invert.embeddings import Embeddings, EmbeddingStore, read_embeddings
from ..sample.synthetic import SyntheticStore, read_images
from ..train.arms import ArmResults
from ..train.evaluation import OWN_SIZE
from ..train.own_size import OWN_SIZE_LIMIT, Sides, own_side
from ..train.real_fraction import FRACTION_FILE
from ..train.recipes import resolved
from ..train.replicated import Replicated, sides_of, spread
from ..train.store import ClassifierStore
from .coarseness import read_coarseness
from .foresight import too_few, visible_gain
from .layout import DATA_FILE, GENERATOR_FILE, REPORT_FILE, RUN_FILE
from .reconstructions import Likeness, read_likeness, read_reconstructions
from .report import ReportImages, RunRecord, render_report
from .report.record import CurveRecord, ReplicateRecord
from .verdict_record import arms_of, verdict_of

REPORT_VARIANTS = 6
MOST_CONFUSION_CLASSES = 200  # above it the matrices would swell run.json
PACKAGES = ("diffusion-inversion", "torch", "torchvision", "diffusers", "transformers", "datasets", "timm")


def report_stage(
    run: Path,
    splits: Splits,
    results: ArmResults,
    settings: TrainSettings,
    command: str,
    others: Sequence[Replicated] = (),
) -> RunRecord:
    """Write run.json and report.html: what was done, measured and concluded, with pictures.

    `others` are the replicates beside this run: accuracies, times and verdict are then those of all.
    """
    replicates = [replicated(run, splits, results), *others]
    embeddings = read_embeddings(run)
    inverted, sampled = read_config(run, "invert"), read_config(run, "sample")
    trained = read_config(run, "train")["settings"]  # with the number that real_fraction=auto became
    generator = Ledger(run).read_json(GENERATOR_FILE)
    variants = SyntheticStore(run, embeddings.class_names).variants()
    losses = embeddings.losses
    curve: CurveRecord = {
        "steps": list(embeddings.curve_steps),
        "mean": losses.mean(1).tolist(),
        "p10": losses.quantile(0.1, dim=1).tolist(),
        "p90": losses.quantile(0.9, dim=1).tolist(),
    }
    problems = (*splits.train.problems, *splits.test.problems)
    near, conflicting = doubts(problems)
    record: RunRecord = {
        "name": splits.train.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "versions": {name: version(name) for name in PACKAGES},
        "data": {
            "name": splits.train.name,
            "n_train": len(splits.train),
            "n_test": len(splits.test),
            "how": splits.how,
            "class_names": list(splits.train.class_names),
            "licence": splits.train.licence,
            "near_duplicates": near,
            "conflicting_labels": conflicting,
            "problems": [{"file": p.file, "cause": p.cause, "remedy": p.remedy, "fatal": p.fatal} for p in problems],
        },
        "generator": {
            "name": generator["name"],
            "hash": generator["hash"],
            "resolution": embeddings.resolution,
            "prediction_type": generator["prediction_type"],
        },
        "settings": {
            "invert": inverted["settings"],
            "sample": {"variants": variants, **sampled["settings"]},
            "train": resolved(settings).model_dump(mode="json") | {"real_fraction": trained["real_fraction"]},
        },
        "stages": {
            "invert": {
                "seconds": sum(_seconds(EmbeddingStore(replicate.folder).manifest) for replicate in replicates),
                "loss_initial": float(losses[0].mean()),
                "loss_final": float(losses[-1].mean()),
                "null_loss": float(embeddings.null_losses.mean()),
            },
            "sample": {
                "seconds": sum(_seconds(SyntheticStore(replicate.folder, ()).manifest) for replicate in replicates),
                "images": variants * len(embeddings),
            },
            "train": {"seconds": sum(_seconds(ClassifierStore(replicate.folder).manifest) for replicate in replicates)},
        },
        "inversion_curve": curve,
        "arms": arms_of(replicates),
        "verdict": verdict_of(replicates),
    }
    record["verdict"]["visible"] = visible_gain(splits.test.labels, settings, len(replicates))
    if (few := too_few(splits.test.labels, settings, len(replicates))) is not None:
        record["verdict"]["too_few"] = few
    if (coarse := read_coarseness(run, sampled["settings"]["image_size"])) is not None:
        record["verdict"]["coarseness"] = coarse.record()
    if (likeness := read_likeness(run, embeddings)) is not None:
        record["likeness"] = likeness.record()
    if (sides := sides_of(replicates)) is not None:
        record["sides"] = {"native": sides.native, "used": sides.used, "own": sides.own, "limit": OWN_SIZE_LIMIT}
    if others:
        record["replicates"] = [_replicate(run, number, one) for number, one in enumerate(replicates)]
        parts = spread(replicates)
        record["components"] = {name: {"between": c.between, "within": c.within} for name, c in parts.items()}
    if len(splits.train.class_names) <= MOST_CONFUSION_CLASSES:
        every = [one for replicate in replicates for one in replicate.results.runs]
        runs = {arm: [one.evaluation.confusion for one in every if one.arm == arm] for arm in record["arms"]}
        record["confusion"] = {arm: torch.stack(found).sum(0).tolist() for arm, found in runs.items()}
    ledger = Ledger(run)
    if (choice := ledger.read_json(FRACTION_FILE)) is not None:
        record["real_fraction_trials"] = choice["trials"]
        record["real_fraction_measure"] = choice.get("measure", "accuracy")
    before = ledger.read_json(RUN_FILE) if ledger.holds(RUN_FILE) else None
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    if before is not None and before == json.loads(text) | {"created": before.get("created")}:
        record["created"] = before["created"]  # nothing new: a report that a kill cut short goes on
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    chosen: dict[str, Any] = {"arms": list(settings.arms), "seeds": list(settings.seeds), "replicates": len(replicates)}
    if OWN_SIZE in record["arms"]:
        chosen["own_size"] = True
    ledger.commit(RUN_FILE, text.encode(), note={"command": command, **chosen})
    ledger.commit(REPORT_FILE, render_report(record, _report_images(run, splits, embeddings, likeness)).encode())
    return record


def replicated(run: Path, splits: Splits, results: ArmResults) -> Replicated:
    """A run that went through as one replicate among others."""
    used = read_config(run, "sample")["settings"]["image_size"]
    own = own_side(splits.train, used) if OWN_SIZE in results.accuracies() else None
    return Replicated(run, results, splits.train.ids, splits.test.ids, Sides(splits.train.native_size, used, own))


def _replicate(run: Path, number: int, replicate: Replicated) -> ReplicateRecord:
    source = Ledger(replicate.folder).read_json(DATA_FILE)["source"]
    seeds = {stage: read_config(replicate.folder, stage)["settings"]["seed"] for stage in ("invert", "sample")}
    return {
        "number": number,
        "folder": replicate.folder.relative_to(run).as_posix(),
        "seeds": {"data": source["seed"], **seeds},
        "classifier_seeds": list(dict.fromkeys(one.seed for one in replicate.results.runs)),
        "n_train": len(replicate.train_ids),
        "n_test": len(replicate.test_ids),
        "arms": {arm: list(accuracies) for arm, accuracies in replicate.results.accuracies().items()},
    }


def _report_images(run: Path, splits: Splits, embeddings: Embeddings, likeness: Likeness | None) -> ReportImages:
    """A few real images beside their reconstructions and variants, those that are least like their sources first."""
    store = SyntheticStore(run, embeddings.class_names)
    shown = min(REPORT_VARIANTS, store.variants())
    rows, drawn_again = read_reconstructions(run, embeddings)
    columns = ("file_name", "sha256", "label", "source_id", "variant")
    each = zip(*(column.to_pylist() for column in store.table(*columns).columns), strict=True)
    drawn_from = {(source, variant): file for *file, source, variant in each}
    files = zip(*(drawn_from[embeddings.ids[row], v] for row in rows for v in range(shown)), strict=True)
    drawn = read_images(store.folder, embeddings.class_names, *files)
    row_of = {image_id: row for row, image_id in enumerate(splits.train.ids)}
    real = splits.train.subset([row_of[embeddings.ids[row]] for row in rows]).resized(drawn.size)
    return ReportImages(
        real=real.images,
        reconstruction=resize(drawn_again, drawn.size),
        variants=drawn.images.unflatten(0, (len(rows), shown)),
        labels=embeddings.labels[rows],
        distances=None if likeness is None else tuple(likeness.distances[embeddings.ids[row]] for row in rows),
    )


def read_config(run: Path, stage: str) -> dict[str, Any]:
    """What `freeze_settings` recorded of a stage."""
    config: dict[str, Any] = Ledger(run).read_json(settings_file(stage))
    return config


def _seconds(manifest: Manifest) -> float:
    return float(sum(record["seconds"] for record in manifest.records() if record["event"] == "time"))
