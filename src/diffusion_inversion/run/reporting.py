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
from ..engine.ledger import Ledger
from ..engine.manifest import Manifest
from ..invert.embeddings import Embeddings, EmbeddingStore, read_embeddings
from ..sample.synthetic import SyntheticStore, read_rows
from ..train.arms import ArmResults
from ..train.draws import Draw, sides_of, spread
from ..train.evaluation import OWN_SIZE
from ..train.own_size import OWN_SIZE_LIMIT, Sides, own_side
from ..train.real_fraction import FRACTION_FILE
from ..train.recipes import resolved
from ..train.store import ClassifierStore
from .coarseness import read_coarseness
from .foresight import too_few, visible_gain
from .images import DATA_FILE
from .reconstructions import Likeness, read_likeness, read_reconstructions
from .report import ReportImages, RunRecord, render_report
from .report.record import CurveRecord, ReplicateRecord
from .verdict_record import arms_of, verdict_of

RUN_FILE, REPORT_FILE = "run.json", "report.html"
GENERATOR_FILE = "generator.json"
REPORT_VARIANTS = 6
MOST_CONFUSION_CLASSES = 200  # above it the matrices would swell run.json
PACKAGES = ("diffusion-inversion", "torch", "torchvision", "diffusers", "transformers", "datasets", "timm")


def report_stage(
    run: Path,
    splits: Splits,
    results: ArmResults,
    settings: TrainSettings,
    command: str,
    others: Sequence[Draw] = (),
) -> RunRecord:
    """Write run.json and report.html: what was done, measured and concluded, with pictures.

    `others` are the replicates beside this run: accuracies, times and verdict are then those of all.
    """
    draws = [draw_of(run, splits, results), *others]
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
                "seconds": sum(_seconds(EmbeddingStore(draw.folder).manifest) for draw in draws),
                "loss_initial": float(losses[0].mean()),
                "loss_final": float(losses[-1].mean()),
                "null_loss": float(embeddings.null_losses.mean()),
            },
            "sample": {
                "seconds": sum(_seconds(SyntheticStore(draw.folder, ()).manifest) for draw in draws),
                "images": variants * len(embeddings),
            },
            "train": {"seconds": sum(_seconds(ClassifierStore(draw.folder).manifest) for draw in draws)},
        },
        "inversion_curve": curve,
        "arms": arms_of(draws),
        "verdict": verdict_of(draws),
    }
    record["verdict"]["visible"] = visible_gain(splits.test.labels, settings, len(draws))
    if (few := too_few(splits.test.labels, settings, len(draws))) is not None:
        record["verdict"]["too_few"] = few
    if (coarse := read_coarseness(run, sampled["settings"]["image_size"])) is not None:
        record["verdict"]["coarseness"] = coarse.record()
    if (likeness := read_likeness(run, embeddings)) is not None:
        record["likeness"] = likeness.record()
    if (sides := sides_of(draws)) is not None:
        record["sides"] = {"native": sides.native, "used": sides.used, "own": sides.own, "limit": OWN_SIZE_LIMIT}
    if others:
        record["replicates"] = [_replicate(run, number, draw) for number, draw in enumerate(draws)]
        record["components"] = {name: {"between": c.between, "within": c.within} for name, c in spread(draws).items()}
    if len(splits.train.class_names) <= MOST_CONFUSION_CLASSES:
        every = [one for draw in draws for one in draw.results.runs]
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
    chosen: dict[str, Any] = {"arms": list(settings.arms), "seeds": list(settings.seeds), "replicates": len(draws)}
    if OWN_SIZE in record["arms"]:
        chosen["own_size"] = True
    ledger.commit(RUN_FILE, text.encode(), note={"command": command, **chosen})
    ledger.commit(REPORT_FILE, render_report(record, _report_images(run, splits, embeddings, likeness)).encode())
    return record


def draw_of(run: Path, splits: Splits, results: ArmResults) -> Draw:
    """The results of a run as one draw among others."""
    used = read_config(run, "sample")["settings"]["image_size"]
    own = own_side(splits.train, used) if OWN_SIZE in results.accuracies() else None
    return Draw(run, results, splits.train.ids, splits.test.ids, Sides(splits.train.native_size, used, own))


def _replicate(run: Path, number: int, draw: Draw) -> ReplicateRecord:
    source = Ledger(draw.folder).read_json(DATA_FILE)["source"]
    seeds = {stage: read_config(draw.folder, stage)["settings"]["seed"] for stage in ("invert", "sample")}
    return {
        "number": number,
        "folder": draw.folder.relative_to(run).as_posix(),
        "seeds": {"data": source["seed"], **seeds},
        "classifier_seeds": list(dict.fromkeys(one.seed for one in draw.results.runs)),
        "n_train": len(draw.train_ids),
        "n_test": len(draw.test_ids),
        "arms": {arm: list(accuracies) for arm, accuracies in draw.results.accuracies().items()},
    }


def _report_images(run: Path, splits: Splits, embeddings: Embeddings, likeness: Likeness | None) -> ReportImages:
    """A few real images beside their reconstructions and variants, those that are least like their sources first."""
    store = SyntheticStore(run, embeddings.class_names)
    shown = min(REPORT_VARIANTS, store.variants())
    rows, drawn_again = read_reconstructions(run, embeddings)
    variants: dict[str, list[dict[str, Any]]] = {embeddings.ids[row]: [] for row in rows}
    for entry in sorted(store.rows(), key=lambda entry: int(entry["variant"])):
        if entry["source_id"] in variants and entry["variant"] < shown:
            variants[entry["source_id"]].append(entry)
    drawn = read_rows(store.folder, [entry for found in variants.values() for entry in found], embeddings.class_names)
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
    """What `claim_run` recorded of a stage."""
    config: dict[str, Any] = Ledger(run).read_json(f"{stage}.config.json")
    return config


def _seconds(manifest: Manifest) -> float:
    return float(sum(record["seconds"] for record in manifest.records() if record["event"] == "time"))
