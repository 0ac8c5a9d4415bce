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

from safetensors.torch import load_file, save_file

from .config import DataSettings, InvertSettings, SampleSettings, TrainSettings
from .datasets import Splits, data_record, load_splits
from .embeddings import Embeddings, EmbeddingStore, read_embeddings
from .engine.progress import track
from .engine.store import commit_bytes, commit_file
from .errors import ConfigMismatchError, UsageError
from .evaluation import Verdict
from .generator import Generator
from .images import resize
from .inversion import invert
from .report import ReportImages, RunRecord, write_report
from .report.record import ArmRecord, CurveRecord, VerdictRecord
from .sampling import reconstruct, sample
from .synthetic import SyntheticStore, read_rows, read_synthetic
from .training import ArmResults, train_arms

DATA_FILE, RUN_FILE, REPORT_FILE = "data.json", "run.json", "report.html"
GENERATOR_FILE, RECONSTRUCTIONS_FILE = "generator.json", "reconstructions.safetensors"
REPORT_ROWS, REPORT_VARIANTS = 8, 6
PACKAGES = ("diffusion-inversion", "torch", "torchvision", "diffusers", "transformers", "datasets", "timm")


def open_splits(run: Path, settings: DataSettings | None = None) -> Splits:
    """Load the images of a run: by `settings` the first time, by what data.json recorded afterwards.

    Raises UsageError where neither is there, ConfigMismatchError where the images are not those recorded.
    """
    path = run / DATA_FILE
    begun = bool(EmbeddingStore(run).done())
    recorded = json.loads(path.read_text()) if path.is_file() and (begun or settings is None) else None
    if settings is None:
        if recorded is None:
            raise UsageError(
                f"{run}: not a run folder ({DATA_FILE} is missing). Start with `dinv invert DATA --out {run}`."
            )
        settings = DataSettings(**recorded["source"])
    splits = load_splits(
        settings.data,
        test=settings.test,
        size=settings.size,
        limit=settings.limit,
        test_limit=settings.test_limit,
        holdout=settings.holdout,
        seed=settings.seed,
        root=settings.root,
        drop_duplicates=settings.drop_test_duplicates,
    )
    record = {"source": settings.model_dump(mode="json"), **data_record(splits)}
    if recorded is None:
        commit_bytes(path, (json.dumps(record, indent=1) + "\n").encode())
    else:
        for part in ("train", "test"):
            same = all(recorded[part][key] == record[part][key] for key in ("ids", "hashes", "labels"))
            if not same or recorded["class_names"] != record["class_names"] or recorded["size"] != record["size"]:
                before, now = len(recorded[part]["ids"]), len(record[part]["ids"])
                raise ConfigMismatchError(
                    f"{path}: the {part} images are not those this run began with (recorded {before}, now {now}, or "
                    "other contents, labels or selection). Restore data and options, or choose another run folder."
                )
    return splits


def invert_stage(run: Path, splits: Splits, generator: Generator, settings: InvertSettings) -> Embeddings:
    """Stage 1 over the training images; adds up its time in invert.seconds and notes the generator to load again."""
    with _timed(run, "invert"):
        found = invert(splits.train, generator, run, settings)
    source = {"name": generator.name, "source": generator.source, "revision": generator.revision, **generator.record}
    commit_bytes(run / GENERATOR_FILE, (json.dumps(source, indent=2) + "\n").encode())
    return found


def sample_stage(run: Path, generator: Generator, settings: SampleSettings) -> int:
    """Stage 2 over the stored vectors; adds up its time in sample.seconds and returns how many images there are."""
    embeddings = read_embeddings(run)
    with _timed(run, "sample"):
        images = sample(embeddings, generator, run, settings)
        if not (run / RECONSTRUCTIONS_FILE).is_file():
            rows = spread_over_classes(embeddings.labels.tolist(), REPORT_ROWS)
            shown = {"images": reconstruct(embeddings, generator, settings, rows).contiguous()}
            commit_file(run / RECONSTRUCTIONS_FILE, lambda path: save_file(shown, path))
    return len(images)


def inverted_with(run: Path) -> tuple[str, str | None]:
    """Path or hub id, and revision, of the generator a run was inverted with; UsageError where it was not inverted."""
    path = run / GENERATOR_FILE
    if not path.is_file():
        raise UsageError(f"{run}: not inverted yet. Start with `dinv invert DATA --out {run}`.")
    found = json.loads(path.read_text())
    return found["source"], found["revision"]


def restart(run: Path, stage: str) -> None:
    """Delete what `stage` ("sample" or "train") made, and what was made from it, so that it can be done otherwise."""
    stages = {"sample": ("sample", "train"), "train": ("train",)}[stage]
    outputs = {
        "sample": ("synthetic", RECONSTRUCTIONS_FILE, "sample.config.json", "sample.seconds"),
        "train": ("classifiers", "train.jsonl", "train.config.json", "train.seconds", RUN_FILE, REPORT_FILE),
    }
    for name in (name for part in stages for name in outputs[part]):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def train_stage(run: Path, splits: Splits, settings: TrainSettings, device: str = "auto") -> ArmResults:
    """Train and test every arm and seed; adds up its time in train.seconds."""
    synthetic = read_synthetic(run, splits.train.class_names)
    side = synthetic.size
    total = settings.steps * len(settings.arms) * len(settings.seeds)
    with _timed(run, "train"), track("train", total, "steps") as advance:

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


def report_stage(run: Path, splits: Splits, results: ArmResults, settings: TrainSettings, command: str) -> RunRecord:
    """Write run.json and report.html: what was done, measured and concluded, with pictures."""
    embeddings = read_embeddings(run)
    inverted, sampled = _config(run, "invert"), _config(run, "sample")
    generator = json.loads((run / GENERATOR_FILE).read_text())
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
            "train": settings.model_dump(mode="json"),
        },
        "stages": {
            "invert": {
                "seconds": _seconds(run, "invert"),
                "loss_initial": float(losses[0].mean()),
                "loss_final": float(losses[-1].mean()),
                "null_loss": float(embeddings.null_losses.mean()),
            },
            "sample": {
                "seconds": _seconds(run, "sample"),
                "images": variants * len(embeddings),
            },
            "train": {"seconds": _seconds(run, "train")},
        },
        "inversion_curve": curve,
        "arms": {arm: _arm(accuracies) for arm, accuracies in results.accuracies().items()},
        "verdict": _verdict(results.verdict()),
    }
    commit_bytes(run / RUN_FILE, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    write_report(record, _report_images(run, splits, embeddings), run / REPORT_FILE)
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
        reconstruction=resize(load_file(run / RECONSTRUCTIONS_FILE)["images"], drawn.size),
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
    config: dict[str, Any] = json.loads((run / f"{stage}.config.json").read_text())
    return config


@contextmanager
def _timed(run: Path, stage: str) -> Iterator[None]:
    """Add the time of the block to RUN/<stage>.seconds, also when it is interrupted."""
    start = time.monotonic()
    try:
        yield
    finally:
        total = _seconds(run, stage) + time.monotonic() - start
        commit_bytes(run / f"{stage}.seconds", f"{total:.1f}\n".encode())


def _seconds(run: Path, stage: str) -> float:
    path = run / f"{stage}.seconds"
    return float(path.read_text()) if path.is_file() else 0.0
