"""The step between stage 2 and training: images that show another class than their label, and what becomes of them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.fidelity import FilterSettings
from ...data.images import LabelledImages
from ...data.soft_labels import SoftLabels
from ...engine.frozen_settings import freeze_settings, settings_file
from ...engine.ledger import Ledger
from ...engine.lock import briefly
from ...engine.progress import track
from ...errors import ConfigMismatchError, UsageError
from ...generator.generator import Generator
from ...invert.embeddings import read_embeddings
from ...sample.sampling import stale_files
from ...sample.synthetic import PARENTS, Row, SyntheticStore, job_name, parents, read_images, soft_labels
from ...train.choosing import Material
from ...train.evaluation import calibration_error
from ...train.fidelity import replaced, rivals
from ...train.store import ClassifierStore
from ..drawn_with import generator_of, sampling_of
from ..layout import FIDELITY_FILE, REDRAWN
from ..methods import method_of
from ..report.image_records import JudgeRecord
from ..strengths import strengths_for
from .judging import Judges
from .redraw import draw_again, redrawn_store

SCHEMA = 1
JUDGED = ("drop", "soft")  # filters after which every image has a confidence


@dataclass(frozen=True)
class Fidelity:
    """What is known of the labels of a run's synthetic images, in the order in which the store reads them."""

    made_from: dict[str, Any]
    judge: JudgeRecord  # how it does on the real images, by the judge of the fold of each
    judged: list[bool]
    failed: list[bool]
    confidence: list[float]  # the judge's, in the label
    rival: list[int]  # the class beside the label that it is most confident of
    rival_confidence: list[float]
    answers: list[list[float]]  # over all classes, of those that failed alone
    seconds: float


def recorded_filter(run: Path) -> FilterSettings:
    """What a run's classifiers were asked to be trained with."""
    frozen = Ledger(run).read_json(settings_file("filter"))
    return FilterSettings() if frozen is None else FilterSettings(**frozen["settings"])


def judges_for(run: Path, real: LabelledImages, settings: FilterSettings, device: torch.device) -> Judges | None:
    """The judges that a filter asks; None where it is off. real: training images at the side of the synthetic ones.

    Raises, before any work, UsageError (images that were not drawn around vectors), DataError (too few to judge by).
    """
    if settings.filter == "off":
        return None
    if method_of(run).again is not None:
        raise UsageError(f"--filter {settings.filter}: {run} has no learned vectors. Use --filter off.")
    return Judges(real, device)


def filtered(
    run: Path,
    material: Callable[[], Material],
    settings: FilterSettings,
    judges: Judges | None,
    generator: Generator | None = None,
) -> Material | None:
    """What is trained on in place of the `material`, as many images of each class; None for all of it.

    drop: an image that failed gives its place to another of its source, or its class (`replaced`). redraw: to its last
    drawing where that passes, else as drop. soft: it stays, and the judge's answer becomes its label. Images that no
    judge can be had for stay as they are. With drop and soft each has the judge's confidence in its label, else 1.
    judges: those of `judges_for`. What is found is kept in RUN/fidelity.json, drawings in RUN/redrawn; what is there
    is not done again. `generator` is loaded as the run recorded it where it is needed and not given. Call it inside
    `run_lock`.

    Raises ConfigMismatchError where classifiers were trained with another filter.
    """
    _freeze(run, settings)
    if judges is None:
        return None
    made = material()
    with briefly(run, "fidelity"):
        found = _judged(run, judges, made)
    failed = torch.tensor(found.failed)
    if settings.filter in JUDGED:
        sure = torch.where(torch.tensor(found.judged), torch.tensor(found.confidence), 1.0)
        made = replace(made, synthetic=replace(made.synthetic, confidence=sure))
    if settings.filter == "soft":
        return replace(made, synthetic=_answered(made.synthetic, failed, torch.tensor(found.answers)))
    if settings.filter == "redraw":
        made, failed = _redrawn(run, judges, made, failed, generator)
    return _taken(made, replaced((~failed).tolist(), made.synthetic.labels.tolist(), _origins(made)))


def _origins(made: Material) -> list[str]:
    """The id of the real image around whose vector each image was drawn: the first of those it was made from."""
    return [next(iter(sources)) for sources in made.sources]


def _freeze(run: Path, settings: FilterSettings) -> None:
    """Keep the settings as those of other stages are; `off` leaves no trace, so runs of earlier versions have it."""
    ledger, name = Ledger(run), settings_file("filter")
    trained, recorded = bool(ClassifierStore(run).manifest.units()), recorded_filter(run).filter
    if trained and settings.filter != recorded and "off" in (settings.filter, recorded):
        raise ConfigMismatchError(
            f"{run}: train was run here with other settings:\n  filter: was {recorded}, now {settings.filter}\nUse the "
            f"old settings to go on, or begin this stage anew with `dinv train {run} --restart`."
        )
    if settings.filter != "off":
        freeze_settings(run, "filter", {"schema": SCHEMA, "settings": settings.described()}, begun=trained)
    elif recorded != "off":
        for file in (FIDELITY_FILE, name):
            ledger.drop(file)
        shutil.rmtree(run / REDRAWN, ignore_errors=True)


def read_fidelity(run: Path) -> Fidelity | None:
    """What was found; None where nobody asked. Raises DataError where the file was damaged."""
    kept = Ledger(run).read_json(FIDELITY_FILE)
    return None if kept is None else Fidelity(**kept)


def _judged(run: Path, judges: Judges, made: Material) -> Fidelity:
    """What RUN/fidelity.json holds for these images and judges; it is made where that is of others."""
    ledger, images = Ledger(run), made.synthetic
    made_from = {"judge": judges.key, "images": images.digest}
    kept = read_fidelity(run) if ledger.holds(FIDELITY_FILE) else None
    if kept is not None and kept.made_from == made_from:
        return kept
    start = time.monotonic()
    with track("judge labels", len(images)) as advance:
        second = None if images.soft is None else images.soft.second
        found = judges.opinion(images.images, images.labels, _origins(made), second, advance)
    rows, others = torch.arange(len(images)), rivals(found.answers, images.labels)
    content: dict[str, Any] = {
        "made_from": made_from,
        "judge": _on_real(judges),
        "judged": found.judged.tolist(),
        "failed": found.failed.tolist(),
        "confidence": found.answers[rows, images.labels].tolist(),
        "rival": others.tolist(),
        "rival_confidence": found.answers[rows, others].tolist(),
        "answers": found.answers[found.failed].tolist(),
        "seconds": round(time.monotonic() - start, 1),
    }
    ledger.commit(FIDELITY_FILE, (json.dumps(content) + "\n").encode())
    return Fidelity(**content)


def _on_real(judges: Judges) -> JudgeRecord:
    """How the judges do on real images that they never saw."""
    found, labels = judges.of_real(), judges.real.labels
    asked = found.answers.sum(1) > 0
    confidence, predicted = found.answers[asked].max(1)
    correct = predicted == labels[asked]
    return {
        "images": int(asked.sum()),
        "folds": len({*judges.folds}),
        "accuracy": round(float(correct.double().mean()), 6),
        "calibration_error": round(calibration_error(confidence, correct), 6),
        "failed": round(float(found.failed[asked].double().mean()), 6),
    }


def _answered(images: LabelledImages, failed: Tensor, answers: Tensor) -> LabelledImages:
    """The images, those that failed labelled by what the judge answers, (failed, C), in place of their class."""
    if not failed.any():
        return images
    soft = images.soft or SoftLabels.hard(images.labels)
    rest = F.one_hot(soft.second, len(images.class_names)).float() if soft.answers is None else soft.answers.clone()
    rest[failed] = (answers / answers.sum(1, keepdim=True)).float()
    return replace(images, soft=SoftLabels(soft.second, torch.where(failed, 0.0, soft.weight), rest))


def _redrawn(
    run: Path, judges: Judges, made: Material, failed: Tensor, generator: Generator | None
) -> tuple[Material, Tensor]:
    """The material with those that failed drawn again where that passes, and which (N,) bool still fail."""
    embeddings, names = read_embeddings(run), made.synthetic.class_names
    store, original = redrawn_store(run, names), SyntheticStore(run, names)
    jobs = _jobs(original, made.synthetic.ids, failed)
    with briefly(run, REDRAWN):
        rows = store.table("file_name", "judge").to_pylist() if store.manifest.units() else []
        stale = {row["file_name"] for row in rows if row["judge"] != judges.key}
        stale |= set(stale_files(embeddings, store) if rows else ())
        if stale:
            store.remove(stale)
    done = {job for record in store.manifest.units().values() for job in record["ids"]}
    if not done.issuperset(jobs):
        loaded, settings = generator or generator_of(run, str(judges.device)), sampling_of(run, names)

        def examine(images: Tensor, rows: Sequence[Row]) -> Tensor:
            labels = torch.tensor([row["label"] for row in rows])
            # Partners of other classes that share no label, as those of "context", are not what an image may show.
            second = torch.tensor([row["partner_label" if row["label_weight"] < 1 else "label"] for row in rows])
            return judges.opinion(images, labels, [row["source_id"] for row in rows], second).failed

        strengths = strengths_for(run, embeddings, loaded, settings, judges.real)
        draw_again(run, jobs, embeddings, loaded, settings, examine, {"judge": judges.key}, strengths)
    return _in_place(made, jobs, failed, store)


def _jobs(store: SyntheticStore, ids: Sequence[str], failed: Tensor) -> list[str]:
    """The jobs of the images that failed, in the order of `ids`, the images' file names."""
    table = store.table("file_name", "source_id", "variant")
    job_of = {name: job_name(*job) for name, *job in zip(*(one.to_pylist() for one in table.columns), strict=True)}
    return [job_of[name] for name, bad in zip(ids, failed.tolist(), strict=True) if bad]


def _in_place(made: Material, jobs: Sequence[str], failed: Tensor, store: SyntheticStore) -> tuple[Material, Tensor]:
    """The material with drawings of `jobs`, one for each that failed, that passed in place of the first ones."""
    if not jobs:
        return made, failed
    table = store.table(
        "file_name", "sha256", "label", "partner_label", "label_weight", "answers", *PARENTS, "variant", "failed",
    )  # fmt: skip
    where = dict(zip(jobs, failed.nonzero()[:, 0].tolist(), strict=True))
    each = zip(*(table[key].to_pylist() for key in ("source_id", "variant", "failed")), strict=True)
    drawn = [(row, where.get(job_name(source, variant)), bad) for row, (source, variant, bad) in enumerate(each)]
    passed = {row: place for row, place, bad in drawn if place is not None and not bad}
    if not passed:
        return made, failed
    table, places = table.take(list(passed)), list(passed.values())
    again = read_images(store.folder, store.class_names, *(column.to_pylist() for column in table.columns[:3]))
    first, new = made.synthetic, soft_labels(table)
    soft = first.soft
    if soft is not None or new is not None:
        rows = torch.arange(len(first))
        rows[places] = len(first) + torch.arange(len(again))
        both = [soft or SoftLabels.hard(first.labels), new or SoftLabels.hard(again.labels)]
        soft = SoftLabels.cat(both).rows(rows)
    names, hashes, sources, images = list(first.ids), list(first.hashes), list(made.sources), first.images.clone()
    images[places] = again.images
    made_of = parents(*(table[key].to_pylist() for key in PARENTS))
    for place, name, digest, of in zip(places, again.ids, again.hashes, made_of, strict=True):
        names[place], hashes[place], sources[place] = f"{REDRAWN}/{name}", digest, of
    left = failed.clone()
    left[places] = False
    taken = replace(first, ids=tuple(names), hashes=tuple(hashes), images=images, soft=soft)
    return Material(taken, sources), left


def _taken(made: Material, rows: Sequence[int]) -> Material:
    """The images of these rows, of which some come more than once and then have names of their own."""
    images, index = made.synthetic, torch.tensor(rows)
    times: dict[int, int] = {}
    names = []
    for row in rows:
        times[row] = times.get(row, 0) + 1
        names.append(images.ids[row] if times[row] == 1 else f"{images.ids[row]} ({times[row]})")
    taken = replace(
        images,
        ids=tuple(names),
        hashes=tuple(images.hashes[row] for row in rows),
        labels=images.labels[index],
        images=images.images[index],
        soft=None if images.soft is None else images.soft.rows(index),
        source_ids=tuple(images.source_ids[row] for row in rows),
        confidence=None if images.confidence is None else images.confidence[index],
    )
    return Material(taken, [made.sources[row] for row in rows])
