"""The stages over a run folder, one after the other: what the commands call, each on its own or all by `run`."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from .arms import ArmResults, train_arms
from .classifier_store import FOLDER as CLASSIFIERS
from .classifier_store import ClassifierStore
from .classifiers import choose_architecture
from .config import DataSettings, InvertSettings, SampleSettings, TrainSettings
from .datasets import Splits
from .device import resolve_device
from .embeddings import Embeddings, EmbeddingStore, read_embeddings
from .engine.disk import require_room
from .engine.ledger import Ledger
from .engine.manifest import NAME as MANIFEST
from .engine.manifest import Manifest
from .engine.progress import track
from .errors import ConfigMismatchError, LockedError, UsageError
from .evaluation import Verdict
from .generator import Generator
from .images import resize
from .inversion import invert
from .recipes import resolved
from .report import ReportImages, RunRecord, render_report
from .report.record import ArmRecord, CurveRecord, VerdictRecord
from .run_images import open_splits
from .sampling import check, draw_variants, is_stale, reconstruct
from .synthetic import FOLDER as SYNTHETIC
from .synthetic import METADATA, SyntheticStore, read_rows, read_synthetic

RUN_FILE, REPORT_FILE = "run.json", "report.html"
GENERATOR_FILE, RECONSTRUCTIONS_FILE = "generator.json", "reconstructions.safetensors"
REPORT_ROWS, REPORT_VARIANTS = 8, 6
MOST_CONFUSION_CLASSES = 200  # above it the matrices would swell run.json
FLOAT_BYTES, BLOCK_BYTES = 4, 4096  # of a float32; that a file system hands out at once
SPARE_BYTES = 32 << 20  # manifests, report and temporary files of one stage
CLASSIFIER_BYTES = {"resnet20": 2 << 20, "resnet56": 4 << 20, "vgg16": 540 << 20}  # of one file, with its saved state
OTHER_CLASSIFIER_BYTES = 100 << 20
PACKAGES = ("diffusion-inversion", "torch", "torchvision", "diffusers", "transformers", "datasets", "timm")


def invert_stage(run: Path, splits: Splits, generator: Generator, settings: InvertSettings) -> Embeddings:
    """Stage 1 over the training images; notes its time and the generator to load again."""
    missing = len(set(splits.train.ids) - set(EmbeddingStore(run).images()))
    size = len(settings.checkpoints) * settings.tokens * generator.text_width * FLOAT_BYTES
    _require_room(run, missing, size, "vectors")
    with _timed(EmbeddingStore(run).manifest):
        found = invert(splits.train, generator, run, settings)
    source = {"name": generator.name, "source": generator.source, "revision": generator.revision, **generator.record}
    text = json.dumps(source, indent=2) + "\n"
    Ledger(run).commit(GENERATOR_FILE, text.encode(), note={"copy": text})
    return found


def sample_stage(run: Path, generator: Generator, settings: SampleSettings, *, anew: bool = False) -> int:
    """Stage 2 over the stored vectors; notes its time and returns how many images there are.

    `anew` deletes what this stage and later ones made, once the settings are known to be usable.
    """
    embeddings = read_embeddings(run)
    side = check(embeddings, generator, settings)
    if anew:
        restart(run, "sample")
    store = SyntheticStore(run, embeddings.class_names)
    drawn = sum(len(record["files"]) for record in store.manifest.units().values())
    missing = max(len(embeddings) * settings.variants - drawn, 0)
    _require_room(run, missing, png_bytes(side), f"images of {side} px")
    with _timed(store.manifest):
        draw_variants(embeddings, generator, run, settings)
        _reconstruct(run, embeddings, generator, settings)
    return len(embeddings) * settings.variants


def _require_room(run: Path, missing: int, size: int, what: str) -> None:
    if missing:
        require_room(run, missing * size + SPARE_BYTES, f"{missing} {what}")


def _reconstruct(run: Path, embeddings: Embeddings, generator: Generator, settings: SampleSettings) -> None:
    """Draw the reconstructions that the report shows, unless those of the same vectors are there."""
    rows = spread_over_classes(embeddings.labels.tolist(), REPORT_ROWS)
    note = {"versions": [embeddings.versions[row] for row in rows], "variants": settings.variants}
    ledger = Ledger(run)
    if ledger.holds(RECONSTRUCTIONS_FILE) and ledger.note(RECONSTRUCTIONS_FILE) == note:
        return
    images = reconstruct(embeddings, generator, settings, rows).contiguous()
    ledger.commit(RECONSTRUCTIONS_FILE, save({"images": images}), note)


def png_bytes(side: int) -> int:
    """Disk that one image of this side takes, in bytes: an RGB PNG is never much larger than its pixels."""
    return round(1.01 * 3 * side * side) + 1024 + BLOCK_BYTES // 2


def inverted_with(run: Path) -> tuple[str, str | None]:
    """Path or hub id, and revision, of the generator a run was inverted with; UsageError where it was not inverted."""
    found = Ledger(run).read_json(GENERATOR_FILE)
    if found is None:
        raise UsageError(f"{run}: not inverted yet. Start with `dinv invert DATA --out {run}`.")
    return found["source"], found["revision"]


def restart(run: Path, stage: str) -> None:
    """Delete what `stage` ("sample" or "train") made, and what was made from it, so that it can be done otherwise."""
    stages = {"sample": ("sample", "train"), "train": ("train",)}[stage]
    folders = {"sample": SYNTHETIC, "train": CLASSIFIERS}
    files = {
        "sample": (f"{SYNTHETIC}/{METADATA}", RECONSTRUCTIONS_FILE, "sample.config.json"),
        "train": (RUN_FILE, REPORT_FILE, "train.config.json"),
    }
    ledger = Ledger(run)
    for part in stages:
        # The manifest first and the settings last: a kill between leaves nothing that other settings could take over.
        (run / folders[part] / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(run / folders[part], ignore_errors=True)
        for name in files[part]:
            ledger.drop(name)


def resume(run: Path, device: str = "auto") -> list[str]:
    """Do again what is missing in every stage that had been finished; return the stages that had not been.

    Settings, data and generator are those that the run recorded.
    """
    ledger = Ledger(run)
    made_with = ledger.read_json(GENERATOR_FILE)  # written when stage 1 had ended
    if made_with is None:
        return ["invert"]
    generator = Generator.load(*inverted_with(run), device, made_with["dtype"])
    splits = open_splits(run)
    vectors = invert_stage(run, splits, generator, InvertSettings(**_config(run, "invert")["settings"]))
    # That a stage had ended is on record in its own manifest and in the ledger: one of them may be the damaged one.
    store = SyntheticStore(run, splits.train.class_names)
    drawn = store.manifest
    sampled = drawn.last("complete") or ledger.note(RECONSTRUCTIONS_FILE)
    version = dict(zip(vectors.ids, vectors.versions, strict=True))
    if any(is_stale(row, version) for row in store.rows()):  # vectors that were not learned again to the same bits
        store.remove(lambda row: is_stale(row, version))
    if sampled is None:
        return ["sample"] if drawn.units() or drawn.dropped() else []
    recorded = _config(run, "sample")
    settings = {**recorded["settings"], "variants": sampled["variants"]}
    sample_stage(run, generator, SampleSettings(**settings, safety_checker="safety_checker" in recorded))
    classifiers = ClassifierStore(run).manifest
    reported = ledger.note(RUN_FILE)
    trained = classifiers.last("complete") or reported
    if trained is None:
        return ["train"] if classifiers.units() or classifiers.dropped() else []
    recorded = _config(run, "train")
    training = TrainSettings(
        **recorded["settings"], architecture=recorded["architecture"], arms=trained["arms"], seeds=trained["seeds"]
    )
    results = train_stage(run, splits, training, recorded["device"])
    report_stage(run, splits, results, training, reported["command"] if reported else f"dinv repair {run}")
    return []


def train_stage(
    run: Path, splits: Splits, settings: TrainSettings, device: str = "auto", *, anew: bool = False
) -> ArmResults:
    """Train and test every arm and seed; notes its time. `anew` deletes what this stage made before, once it can begin.

    Raises UsageError where images or vectors were added since the stage before this one ran.
    """
    where = resolve_device(device)
    require_whole(run, splits)
    synthetic = read_synthetic(run, splits.train.class_names)
    if anew:
        restart(run, "train")
    side = synthetic.size
    total = settings.steps * len(settings.arms) * len(settings.seeds)
    trained = len(ClassifierStore(run).manifest.units())
    size = CLASSIFIER_BYTES.get(choose_architecture(settings.architecture, where), OTHER_CLASSIFIER_BYTES)
    _require_room(run, max(len(settings.arms) * len(settings.seeds) - trained, 0), size, "classifiers")
    with _timed(ClassifierStore(run).manifest), track("train", total, "steps") as advance:

        def on_step(arm: str, seed: int, step: int, loss: float) -> None:
            advance(1)

        results = train_arms(
            splits.train.resized(side),
            synthetic,
            splits.test.resized(side),
            settings=settings,
            device=device,
            folder=run,
            on_step=on_step,
            on_run=lambda found: advance(settings.steps) if found.resumed else None,
        )
    return results


def require_whole(run: Path, splits: Splits) -> None:
    """Raise UsageError unless every training image has its vector and every vector its variants: arms must be equal."""
    store = EmbeddingStore(run)
    if set(store.images()) != set(splits.train.ids):
        raise UsageError(f"{run}: images were added since stage 1. Run the same `dinv invert` command again first.")
    embeddings = read_embeddings(run)
    synthetic = SyntheticStore(run, embeddings.class_names)
    variants = synthetic.variants()
    drawn = {(row["source_id"], row["variant"]) for row in synthetic.rows() if row["variant"] < variants}
    if len(drawn) != len(embeddings) * variants:
        raise UsageError(f"{run}: vectors were added since stage 2. Run the same `dinv sample` command again first.")


def report_stage(run: Path, splits: Splits, results: ArmResults, settings: TrainSettings, command: str) -> RunRecord:
    """Write run.json and report.html: what was done, measured and concluded, with pictures."""
    embeddings = read_embeddings(run)
    inverted, sampled = _config(run, "invert"), _config(run, "sample")
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
            "train": resolved(settings).model_dump(mode="json"),
        },
        "stages": {
            "invert": {
                "seconds": _seconds(EmbeddingStore(run).manifest),
                "loss_initial": float(losses[0].mean()),
                "loss_final": float(losses[-1].mean()),
                "null_loss": float(embeddings.null_losses.mean()),
            },
            "sample": {
                "seconds": _seconds(SyntheticStore(run, embeddings.class_names).manifest),
                "images": variants * len(embeddings),
            },
            "train": {"seconds": _seconds(ClassifierStore(run).manifest)},
        },
        "inversion_curve": curve,
        "arms": {arm: _arm(accuracies) for arm, accuracies in results.accuracies().items()},
        "verdict": _verdict(results.verdict()),
    }
    if len(splits.train.class_names) <= MOST_CONFUSION_CLASSES:
        runs = {arm: [run.evaluation.confusion for run in results.runs if run.arm == arm] for arm in record["arms"]}
        record["confusion"] = {arm: torch.stack(found).sum(0).tolist() for arm, found in runs.items()}
    ledger = Ledger(run)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    chosen = {"arms": list(settings.arms), "seeds": list(settings.seeds)}
    ledger.commit(RUN_FILE, text.encode(), note={"command": command, **chosen})
    ledger.commit(REPORT_FILE, render_report(record, _report_images(run, splits, embeddings)).encode())
    return record


def run_all(
    run: Path,
    data: DataSettings,
    generator: Generator,
    *,
    invert: InvertSettings,
    sample: SampleSettings,
    train: TrainSettings,
    command: str,
) -> RunRecord:
    """Every stage in order; what is already in `run` is not done again."""
    splits = open_splits(run, data)
    invert_stage(run, splits, generator, invert)
    sample_stage(run, generator, sample)
    results = train_stage(run, splits, train, str(generator.device))
    return report_stage(run, splits, results, train, command)


def _report_images(run: Path, splits: Splits, embeddings: Embeddings) -> ReportImages:
    """A few real images, spread over the classes, beside their reconstructions and variants."""
    store = SyntheticStore(run, embeddings.class_names)
    shown = min(REPORT_VARIANTS, store.variants())
    rows = spread_over_classes(embeddings.labels.tolist(), REPORT_ROWS)
    variants: dict[str, list[dict[str, Any]]] = {embeddings.ids[row]: [] for row in rows}
    for entry in sorted(store.rows(), key=lambda entry: int(entry["variant"])):
        if entry["source_id"] in variants and entry["variant"] < shown:
            variants[entry["source_id"]].append(entry)
    drawn = read_rows(store.folder, [entry for found in variants.values() for entry in found], embeddings.class_names)
    row_of = {image_id: row for row, image_id in enumerate(splits.train.ids)}
    real = splits.train.subset([row_of[embeddings.ids[row]] for row in rows]).resized(drawn.size)
    return ReportImages(
        real=real.images,
        reconstruction=resize(load(Ledger(run).read(RECONSTRUCTIONS_FILE) or b"")["images"], drawn.size),
        variants=drawn.images.unflatten(0, (len(rows), shown)),
        labels=embeddings.labels[rows],
    )


def spread_over_classes(labels: list[int], count: int) -> list[int]:
    """At most `count` rows, the first of every class before the second of any, in the order of their classes."""
    seen: dict[int, int] = {}
    ranked = []
    for row, label in enumerate(labels):
        ranked.append((seen.get(label, 0), label, row))
        seen[label] = seen.get(label, 0) + 1
    return [row for _, _, row in sorted(sorted(ranked)[:count], key=lambda entry: entry[1:])]


def _arm(accuracies: tuple[float, ...]) -> ArmRecord:
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return {"accuracies": list(accuracies), "mean": statistics.fmean(accuracies), "std": spread, "n": len(accuracies)}


def _verdict(found: Verdict) -> VerdictRecord:
    return {
        "outcome": found.outcome,
        "sentence": found.reason,
        "comparisons": [
            {
                "arm": c.arm,
                "difference": c.difference,
                "low": c.interval[0] if c.interval else None,
                "high": c.interval[1] if c.interval else None,
                "confidence": c.simultaneous_confidence,
            }
            for c in found.comparisons
        ],
    }


def _config(run: Path, stage: str) -> dict[str, Any]:
    """What `claim_run` recorded of a stage."""
    config: dict[str, Any] = Ledger(run).read_json(f"{stage}.config.json")
    return config


@contextmanager
def _timed(manifest: Manifest) -> Iterator[None]:
    """Record the time of the block, also when it is interrupted, but not where it was refused: then nothing changes."""
    start, refused = time.monotonic(), False
    try:
        yield
    except (UsageError, ConfigMismatchError, LockedError):
        refused = True
        raise
    finally:
        if not refused:
            manifest.append({"event": "time", "seconds": round(time.monotonic() - start, 1)})


def _seconds(manifest: Manifest) -> float:
    return float(sum(record["seconds"] for record in manifest.records() if record["event"] == "time"))
