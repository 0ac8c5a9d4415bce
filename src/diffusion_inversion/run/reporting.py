"""What a finished run shows: run.json, and report.html with pictures of what it was made from."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..config.training import TrainSettings
from ..data.datasets import Splits
from ..data.duplicates import doubts
from ..data.licences import findings
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..engine.manifest import Manifest
from ..invert.embeddings import Embeddings, EmbeddingStore, read_embeddings
from ..sample.synthetic import NAMED, SyntheticStore
from ..train.arms import ArmResults
from ..train.choosing import choices_of
from ..train.evaluation import OWN_SIZE
from ..train.own_size import OWN_SIZE_LIMIT, Sides, own_side
from ..train.recipes import resolved
from ..train.replicated import Replicated, sides_of, spread, tested_ids
from ..train.store import ClassifierStore
from .attributes import Attributes, add_subgroups, attributes_of, keep_attributes
from .balancing import read_counts
from .coarseness import Coarseness, read_coarseness
from .copies import read_audit
from .fidelity.copies_record import redrawn_picture, redrawn_record
from .fidelity.record import example_images, fidelity_record
from .foresight import too_few, visible_gain
from .gallery import images_of_classes, images_of_vectors
from .gathered import grown_rows
from .growth_record import growth_record
from .images import data_name
from .layout import DATA_FILE, GENERATOR_FILE, REPORT_FILE, RETRIEVAL_FILE, RUN_FILE, TIME_LIMIT_FILE
from .materials import materials
from .membership import read_membership, shown
from .methods import INVERSION, images_store, method_of, with_arm_names
from .reconstructions import Likeness, read_likeness
from .report import RunRecord, render_report
from .report.record import CurveRecord, FoundRecord, GeneratorRecord, InvertRecord, ReplicateRecord
from .strengths_record import strength_images, strengths_record
from .strips import read_strips
from .verdict_record import arms_of, verdict_of

MOST_CONFUSION_CLASSES = 200  # above it the matrices would swell run.json
PACKAGES = ("diffusion-inversion", "torch", "torchvision", "diffusers", "transformers", "datasets", "timm")


def report_stage(
    run: Path,
    splits: Splits,
    results: ArmResults,
    settings: TrainSettings,
    command: str,
    others: Sequence[Replicated] = (),
    attributes: Attributes | None = None,
) -> RunRecord:
    """Write run.json and report.html: what was done, measured and concluded, with pictures.

    `others` are the replicates beside this run: accuracies, times and verdict are then those of all. With `attributes`
    it has what the arms do on subgroups of the test images.
    """
    replicates = [replicated(run, splits, results), *others]
    made = _made_from_vectors(run, replicates) if method_of(run) == INVERSION else _made_otherwise(run, splits)
    trained = read_config(run, "train")["settings"]  # with what was chosen
    ledger = Ledger(run)
    problems = (*splits.train.problems, *splits.test.problems)
    near, conflicting = doubts(problems)
    record: RunRecord = {
        "name": splits.train.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "versions": {name: version(name) for name in PACKAGES},
        "data": {
            "name": data_name(splits.train.name, ledger.read_json(DATA_FILE)["source"]["data"]),
            "n_train": len(splits.train),
            "n_test": len(splits.test),
            "how": splits.how,
            "class_names": list(splits.train.class_names),
            "licence": splits.train.licence,
            "near_duplicates": near,
            "conflicting_labels": conflicting,
            "problems": [{"file": p.file, "cause": p.cause, "remedy": p.remedy, "fatal": p.fatal} for p in problems],
        },
        "settings": {
            **made.settings,
            "train": resolved(settings).model_dump(mode="json") | trained,
        },
        "stages": {
            "sample": {
                "seconds": sum(_seconds(SyntheticStore(replicate.folder, ()).manifest) for replicate in replicates),
                "images": made.images,
            },
            "train": {"seconds": sum(_seconds(ClassifierStore(replicate.folder).manifest) for replicate in replicates)},
        },
        "arms": arms_of(replicates),
        "verdict": verdict_of(replicates),
    }
    record["verdict"]["visible"] = visible_gain(splits.test.labels, settings, len(replicates))
    if (few := too_few(splits.test.labels, settings, len(replicates))) is not None:
        record["verdict"]["too_few"] = few
    record["licences"] = [one.line for one in findings(materials(run))]
    if attributes is not None:
        if not set(tested := tested_ids(replicates)) <= attributes.of_test.keys():  # on record of fewer replicates
            attributes = attributes_of(run, splits, attributes.given) or attributes
        add_subgroups(record, replicates, attributes)
        keep_attributes(run, attributes, tested, splits.train.ids)
    if made.called is not None:
        record["images"] = made.called
    if made.found is not None:
        record["found"] = made.found
    if made.generator is not None:
        record["generator"] = made.generator
    if (counts := read_counts(run)) is not None:
        record["balance"] = counts
        record["settings"]["sample"]["balance"] = counts["of"]
    if (audit := read_audit(run, splits)) is not None:
        record["copies"] = audit.shown()
        redrawn = redrawn_record(run, splits.train.class_names, audit.record)
        if redrawn is not None:
            record["copies"]["redrawn"] = redrawn
    if (membership := read_membership(run, splits)) is not None:
        record["membership"] = shown(membership)
    if made.vectors is not None:
        record["inversion_curve"] = made.vectors.curve
        record["stages"]["invert"] = made.vectors.inverted
        if made.vectors.coarseness is not None:
            record["verdict"]["coarseness"] = made.vectors.coarseness.record()
        if made.vectors.likeness is not None:
            record["likeness"] = made.vectors.likeness.record()
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
    fidelity = fidelity_record(run, splits.train.class_names, attributes)
    if fidelity is not None:
        record["fidelity"] = fidelity
    if (noise := strengths_record(run, splits.train.class_names)) is not None:
        record["strengths"] = noise
    if (rows := grown_rows(run, splits.train.class_names)) is not None:
        record["stages"]["sample"]["grown"] = len(rows)
    if (growth := growth_record(run)) is not None:
        record["growth"] = growth
    if choices := choices_of(run):
        record["chosen"] = choices
    if (limited := ledger.read_json(TIME_LIMIT_FILE)) is not None:
        record["time_limit"] = {"seconds": limited["asked"]["limit"], "cut": limited["cut"]}
    before = ledger.read_json(RUN_FILE) if ledger.holds(RUN_FILE) else None
    now = json.loads(json.dumps(record, allow_nan=False))
    if before is not None and before == now | {"created": before.get("created")}:
        record["created"] = before["created"]  # nothing new: a report that a kill cut short goes on
    chosen: dict[str, Any] = {"arms": list(settings.arms), "seeds": list(settings.seeds), "replicates": len(replicates)}
    if OWN_SIZE in record["arms"]:
        chosen["own_size"] = True
    if attributes is not None:
        chosen["attributes"] = attributes.given
    ledger.commit_json(RUN_FILE, record, {"command": command, **chosen}, indent=2, allow_nan=False)
    pictures = (
        images_of_classes(run, splits.train)
        if made.vectors is None
        else images_of_vectors(run, splits.train, made.vectors.embeddings, made.vectors.likeness)
    )
    if made.vectors is not None:
        pictures = replace(pictures, strips=read_strips(run, made.vectors.embeddings))
    if fidelity is not None:
        pictures = replace(pictures, failed=example_images(run, splits.train, fidelity["examples"]))
    if noise is not None:
        pictures = replace(pictures, strengths=strength_images(run, splits.train, noise))
    if audit is not None:
        again = record["copies"].get("redrawn")
        later = None if again is None else redrawn_picture(run, splits.train, again)
        pictures = replace(pictures, copies=audit.picture, redrawn=later)
    ledger.commit(REPORT_FILE, render_report(record, pictures).encode())
    return record


@dataclass(frozen=True)
class _Made:
    """How the images of a run came to be, for its record."""

    images: int
    settings: dict[str, dict[str, Any]]
    generator: GeneratorRecord | None = None
    vectors: _Vectors | None = None
    called: str | None = None
    found: FoundRecord | None = None


@dataclass(frozen=True)
class _Vectors:
    """What a record has of images that were made from vectors."""

    embeddings: Embeddings
    likeness: Likeness | None
    coarseness: Coarseness | None
    inverted: InvertRecord
    curve: CurveRecord


def _made_from_vectors(run: Path, replicates: Sequence[Replicated]) -> _Made:
    embeddings = read_embeddings(run)
    generator = Ledger(run).read_json(GENERATOR_FILE)
    variants = SyntheticStore(run, embeddings.class_names).variants()
    losses = embeddings.losses
    curve: CurveRecord = {
        "steps": list(embeddings.curve_steps),
        "mean": losses.mean(1).tolist(),
        "p10": losses.quantile(0.1, dim=1).tolist(),
        "p90": losses.quantile(0.9, dim=1).tolist(),
    }
    drawn_by: GeneratorRecord = {
        "name": generator["name"],
        "hash": generator["hash"],
        "resolution": embeddings.resolution,
        "prediction_type": generator["prediction_type"],
    }
    inverted: InvertRecord = {
        "seconds": sum(_seconds(EmbeddingStore(replicate.folder).manifest) for replicate in replicates),
        "loss_initial": float(losses[0].mean()),
        "loss_final": float(losses[-1].mean()),
    }
    if (null_loss := embeddings.null_loss) is not None:
        inverted["null_loss"] = null_loss
    if ended := EmbeddingStore(run).ended():
        inverted["ended"] = {str(step): count for step, count in sorted(Counter(ended.values()).items())}
    sampled = read_config(run, "sample")["settings"]
    settings = {"invert": read_config(run, "invert")["settings"], "sample": {"variants": variants, **sampled}}
    coarse = read_coarseness(run, sampled["image_size"])
    vectors = _Vectors(embeddings, read_likeness(run, embeddings), coarse, inverted, curve)
    return _Made(variants * len(embeddings), settings, drawn_by, vectors)


def _made_otherwise(run: Path, splits: Splits) -> _Made:
    config = read_config(run, "sample")
    units = list(SyntheticStore(run, ()).manifest.units().values())
    drawn_by: GeneratorRecord | None = None
    if "generator" in config:
        drawn_by = {
            "name": units[0]["shared"]["generator"],
            "hash": config["generator"]["hash"],
            "resolution": config["settings"].get("resolution", config["settings"]["image_size"]),
            "prediction_type": config["generator"].get("prediction_type", "none"),
        }
    record = Ledger(run).read_json(RETRIEVAL_FILE)
    found: FoundRecord | None = None
    if record is not None:
        found = {
            "pool": record["pool"]["name"],
            "pool_images": record["pool"]["images"],
            "pool_sha256": record["pool"]["sha256"],
            "k": config["settings"]["k"],
            "extractor": config["extractor"]["name"],
            "images": record["images"],
            "asked_for": record["asked_for"],
            "left_out": record["left_out"],
            "classes": record["classes"],
            "licences": record["licences"],
            "similarity": record["similarity"],
        }
    store = images_store(run, splits.train.class_names)
    images = len(store.asked_for(store.table(*NAMED)))
    clip = units[0]["shared"].get("clip")  # which CLIP filtered them is named wherever they are shown
    settings = {**config["settings"], **({"clip": clip, "threshold": config["threshold"]} if clip else {})}
    return _Made(images, {"sample": settings}, drawn_by, called=method_of(run).images, found=found)


def replicated(run: Path, splits: Splits, results: ArmResults) -> Replicated:
    """A run that went through as one replicate among others; arms are called by how their images were made."""
    used, method = read_config(run, "sample")["settings"]["image_size"], method_of(run)
    own = own_side(splits.train, used) if OWN_SIZE in results.accuracies() else None
    sides = Sides(splits.train.native_size, used, own, method.images)
    return Replicated(run, with_arm_names(results, method), splits.train.ids, splits.test.ids, sides)


def _replicate(run: Path, number: int, replicate: Replicated) -> ReplicateRecord:
    source = Ledger(replicate.folder).read_json(DATA_FILE)["source"]
    seeds = {stage: read_config(replicate.folder, stage)["settings"]["seed"] for stage in ("invert", "sample")}
    record: ReplicateRecord = {
        "number": number,
        "folder": replicate.folder.relative_to(run).as_posix(),
        "seeds": {"data": source["seed"], **seeds},
        "classifier_seeds": list(dict.fromkeys(one.seed for one in replicate.results.runs)),
        "n_train": len(replicate.train_ids),
        "n_test": len(replicate.test_ids),
        "arms": {arm: list(accuracies) for arm, accuracies in replicate.results.accuracies().items()},
    }
    if choices := choices_of(replicate.folder):
        record["chosen"] = {one["setting"]: one["chosen"] for one in choices}
    return record


def report_command(run: Path) -> str:
    """The command that writes the report of a run again, with the options that the run was trained with."""
    note = Ledger(run).note(RUN_FILE) or {}
    return str(note.get("command", f"dinv train {run}")).replace(" --restart", "")  # nothing is to be deleted


def read_config(run: Path, stage: str) -> dict[str, Any]:
    """What `freeze_settings` recorded of a stage."""
    config: dict[str, Any] = Ledger(run).read_json(settings_file(stage))
    return config


def _seconds(manifest: Manifest) -> float:
    return float(sum(record["seconds"] for record in manifest.records() if record["event"] == "time"))
