"""The step between stage 2 and training: what becomes of images that show another class or copy a training image."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.fidelity import FilterSettings
from ...data.datasets import Splits
from ...data.images import LabelledImages
from ...data.soft_labels import SoftLabels
from ...engine.frozen_settings import freeze_settings, settings_file
from ...engine.ledger import Ledger
from ...engine.lock import briefly
from ...engine.progress import track
from ...errors import ConfigMismatchError, DataError, UsageError
from ...generator.device import resolve_device
from ...generator.generator import Generator
from ...invert.embeddings import read_embeddings
from ...sample.columns import PARENTS, parents
from ...sample.sampling import stale_files
from ...sample.synthetic import Row, SyntheticStore, job_name, soft_labels
from ...train.choosing import Material
from ...train.evaluation import calibration_error
from ...train.fidelity import in_label, replaced, rivals
from ...train.folds import NEVER
from ...train.store import ClassifierStore
from ..drawn_with import generator_of, sampling_of
from ..gathered import job_of
from ..layout import FIDELITY_FILE, REDRAWN
from ..methods import images_made, method_of, sources_of_images
from ..report.image_records import JudgeRecord
from ..strengths import strengths_for
from .copies import CopyGate, copy_gate, recorded_copies
from .judging import Judges, Opinion
from .redraw import Faults, draw_again, redrawn_store

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


def trained_on(
    run: Path,
    class_names: tuple[str, ...],
    splits: Callable[[], Splits],
    device: str = "auto",
    generator: Generator | None = None,
) -> Material:
    """The synthetic images that a run trains on: what was drawn and grown, with what it recorded to put in the place
    of some (`filtered`).

    What is lacking of that is judged, looked for and drawn now. `splits` loads the run's images, where they are needed.
    Call it inside `run_lock`. Raises as `filtered` and `copy_gate`, UsageError where stage 2 is not finished.
    """
    made = Material(images_made(run, class_names), sources_of_images(run, class_names))
    settings, copies = recorded_filter(run), recorded_copies(run)
    if settings.filter == "off" and copies is None:
        return made
    images, side, where = splits(), made.synthetic.size, resolve_device(device)
    if copies is not None:
        copies = copies.model_copy(update={"device": str(where)})
    judges = judges_for(run, images.train.resized(side), settings, where)
    gate = copy_gate(run, copies, images, side)
    return filtered(run, lambda: made, settings, judges, generator, gate) or made


def filtered(
    run: Path,
    material: Callable[[], Material],
    settings: FilterSettings,
    judges: Judges | None,
    generator: Generator | None = None,
    gate: CopyGate | None = None,
) -> Material | None:
    """What is trained on in place of the `material`, as many images of each class; None for all of it.

    drop: an image that failed gives its place to another of its source, or its class (`replaced`). redraw: to its last
    drawing where that passes, else as drop. soft: it stays, and the judge's answer becomes its label. Images that no
    judge can be had for stay as they are. With drop and soft each has the judge's confidence in its label, else 1.
    judges: those of `judges_for`. What is found is kept in RUN/fidelity.json, drawings in RUN/redrawn; what is there
    is not done again. `generator` is loaded as the run recorded it where it is needed and not given. Call it inside
    `run_lock`.

    With a `gate` what it flags is drawn again too, and what is drawn again must pass it. Nothing that copies is ever
    trained on: where its class has no other image, the class is left without that one.

    Raises ConfigMismatchError where classifiers were trained with another filter, DataError where nothing is left.
    """
    _freeze(run, settings)
    if judges is None and gate is None:
        return None
    made = material()
    count, found = len(made.synthetic), None
    failed, copied = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    if judges is not None:
        with briefly(run, "fidelity"):
            found = _judged(run, judges, made)
        failed = torch.tensor(found.failed)
    if gate is not None:
        copied = gate.flagged(made.synthetic.ids)
        if judges is None and not copied.any():
            return None
    again = failed | copied if settings.filter == "redraw" else copied
    new = torch.zeros_like(again)
    if again.any():
        strict = None if settings.filter == "soft" else judges  # which makes a label of what an image shows
        made, new = _redrawn(run, strict, gate, made, again, generator)
    copied &= ~new
    if found is not None and judges is not None and settings.filter in JUDGED:
        sure = torch.where(torch.tensor(found.judged), torch.tensor(found.confidence), 1.0)
        answers = torch.zeros(count, len(made.synthetic.class_names), dtype=torch.float64)
        answers[failed] = torch.tensor(found.answers, dtype=torch.float64).reshape(-1, answers.shape[1])
        if new.any():
            opinion = _opinion(judges, made, new)
            own = in_label(opinion.answers, made.synthetic.labels[new], _second(made.synthetic, new))
            sure[new] = torch.where(opinion.judged, own, 1.0).to(sure.dtype)
            failed[new], answers[new] = opinion.failed, opinion.answers
        if settings.filter == "soft":  # whose answer is the label then, and is believed as it stands
            sure[failed] = 1.0
        made = replace(made, synthetic=replace(made.synthetic, confidence=sure))
        if settings.filter == "soft":
            made = replace(made, synthetic=_answered(made.synthetic, failed, answers[failed]))
    failed = torch.zeros_like(failed) if settings.filter == "soft" else failed & ~new
    if settings.filter == "soft" and not copied.any():
        return made
    rows = replaced((~failed & ~copied).tolist(), made.synthetic.labels.tolist(), _origins(made))
    return _taken(made, _without_copies(run, rows, copied, made.synthetic))


def _without_copies(run: Path, rows: Sequence[int], copied: Tensor, images: LabelledImages) -> list[int]:
    """The rows to train on without those of images that copy: what nothing of their class could replace."""
    kept = [row for row in rows if not copied[row]]
    if not kept:
        raise DataError(
            f"{run}: every synthetic image copies a training image, and so does what was drawn again: nothing is left "
            "to train on. Draw farther from the vectors (--noise-strength, --interpolation), or accept copies "
            "(--copies report)"
        )
    if len(kept) < len(rows):
        named = {int(label) for label in images.labels} - {int(images.labels[row]) for row in kept}
        lacking = ", ".join(images.class_names[label] for label in sorted(named))
        none = f"; no image is left of {lacking}" if named else ""
        print(
            f"warning: {len(rows) - len(kept)} synthetic images that copy training images are left out, with nothing "
            f"of their class in their place{none}",
            file=sys.stderr,
            flush=True,
        )
    return kept


def _opinion(judges: Judges, made: Material, rows: Tensor) -> Opinion:
    """What judges say of some images (N,) bool."""
    images = made.synthetic
    origins = [origin for origin, asked in zip(_origins(made), rows.tolist(), strict=True) if asked]
    return judges.opinion(images.images[rows], images.labels[rows], origins, _second(images, rows))


def _second(images: LabelledImages, rows: Tensor) -> Tensor | None:
    """The other class of some images (N,) bool that were blended from two; None where none was."""
    return None if images.soft is None else images.soft.second[rows]


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
    if images.soft is not None:
        made_from["confidence"] = "in both classes"  # of a blend; of one alone in records of earlier versions
    kept = read_fidelity(run) if ledger.holds(FIDELITY_FILE) else None
    if kept is not None and kept.made_from == made_from:
        return kept
    start = time.monotonic()
    with track("judge labels", len(images)) as advance:
        second = _second(images, torch.ones(len(images), dtype=torch.bool))
        found = judges.opinion(images.images, images.labels, _origins(made), second, advance)
    rows, others = torch.arange(len(images)), rivals(found.answers, images.labels)
    content: dict[str, Any] = {
        "made_from": made_from,
        "judge": _on_real(judges),
        "judged": found.judged.tolist(),
        "failed": found.failed.tolist(),
        "confidence": in_label(found.answers, images.labels, second).tolist(),
        "rival": others.tolist(),
        "rival_confidence": found.answers[rows, others].tolist(),
        "answers": found.answers[found.failed].tolist(),
        "seconds": round(time.monotonic() - start, 1),
    }
    ledger.commit_json(FIDELITY_FILE, content)
    return Fidelity(**content)


def _on_real(judges: Judges) -> JudgeRecord:
    """How the judges do on real images that they never saw."""
    found, labels = judges.of_real(), judges.real.labels
    asked = found.answers.sum(1) > 0
    confidence, predicted = found.answers[asked].max(1)
    correct = predicted == labels[asked]
    return {
        "images": int(asked.sum()),
        "folds": len({*judges.folds} - {NEVER}),
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
    run: Path,
    judges: Judges | None,
    gate: CopyGate | None,
    made: Material,
    bad: Tensor,
    generator: Generator | None,
) -> tuple[Material, Tensor]:
    """The material with images (N,) bool that are bad drawn again where that passes, and which (N,) bool did."""
    embeddings, names = read_embeddings(run), made.synthetic.class_names
    store, original = redrawn_store(run, names), SyntheticStore(run, names)
    known = job_of(original)
    bad = bad & torch.tensor([name in known for name in made.synthetic.ids])  # what was grown is left out instead
    jobs = [known[name] for name, again in zip(made.synthetic.ids, bad.tolist(), strict=True) if again]
    made_by = {"judge": "" if judges is None else judges.key, "audit": "" if gate is None else gate.key}
    with briefly(run, REDRAWN):
        rows = store.table("file_name", *made_by).to_pylist() if store.manifest.units() else []
        stale = {row["file_name"] for row in rows if any(row[key] != value for key, value in made_by.items())}
        stale |= set(stale_files(embeddings, store) if rows else ())
        if stale:
            store.remove(stale)
    if not store.manifest.jobs().issuperset(jobs):
        if judges is not None:
            real, device = judges.real, str(judges.device)
        else:
            assert gate is not None  # one of the two found what is bad
            real, device = gate.real, gate.settings.device
        loaded, settings = generator or generator_of(run, device), sampling_of(run, names)

        def examine(images: Tensor, rows: Sequence[Row]) -> Faults:
            none = torch.zeros(len(images), dtype=torch.bool)
            copied = none if gate is None else gate.copied(images)
            if judges is None:
                return Faults(none, copied)
            labels = torch.tensor([row["label"] for row in rows])
            # Partners of other classes that share no label, as those of "context", are not what an image may show.
            second = torch.tensor([row["partner_label" if row["label_weight"] < 1 else "label"] for row in rows])
            return Faults(judges.opinion(images, labels, [row["source_id"] for row in rows], second).failed, copied)

        levels = {} if gate is None else gate.levels(original)
        strengths = strengths_for(run, embeddings, loaded, settings, real)
        draw_again(run, jobs, embeddings, loaded, settings, examine, made_by, levels, strengths)
    return _in_place(made, jobs, bad, store)


def _in_place(made: Material, jobs: Sequence[str], bad: Tensor, store: SyntheticStore) -> tuple[Material, Tensor]:
    """The material with drawings of `jobs`, one for each that was bad, that passed in place of the first ones."""
    new = torch.zeros_like(bad)
    table = store.table(
        "file_name", "sha256", "label", "partner_label", "label_weight", "answers", *PARENTS, "variant", "failed",
        "copied",
    )  # fmt: skip
    where = dict(zip(jobs, bad.nonzero()[:, 0].tolist(), strict=True))
    each = zip(*(table[key].to_pylist() for key in ("source_id", "variant", "failed", "copied")), strict=True)
    drawn = [(row, where.get(job_name(*job)), failed or copied) for row, (*job, failed, copied) in enumerate(each)]
    passed = {row: place for row, place, still in drawn if place is not None and not still}
    if not passed:
        return made, new
    table, places = table.take(list(passed)), list(passed.values())
    again = store.images(*(column.to_pylist() for column in table.columns[:3]))
    first, answers = made.synthetic, soft_labels(table)
    soft = first.soft
    if soft is not None or answers is not None:
        rows = torch.arange(len(first))
        rows[places] = len(first) + torch.arange(len(again))
        both = [soft or SoftLabels.hard(first.labels), answers or SoftLabels.hard(again.labels)]
        soft = SoftLabels.cat(both).rows(rows)
    names, hashes, sources, images = list(first.ids), list(first.hashes), list(made.sources), first.images.clone()
    images[places] = again.images
    made_of = parents(*(table[key].to_pylist() for key in PARENTS))
    for place, name, digest, of in zip(places, again.ids, again.hashes, made_of, strict=True):
        names[place], hashes[place], sources[place] = f"{REDRAWN}/{name}", digest, of
    new[places] = True
    taken = replace(first, ids=tuple(names), hashes=tuple(hashes), images=images, soft=soft)
    return Material(taken, sources), new


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
