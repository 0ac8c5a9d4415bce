"""The stage: draw many sentences of each class, ask CLIP what the images show, keep a set for each threshold."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config.commands import LecfSettings
from ...config.sampling import PromptSettings
from ...config.settings import DataSettings
from ...data.images import LabelledImages
from ...engine.disk import require_room
from ...engine.frozen_settings import freeze_settings
from ...engine.lock import run_lock
from ...engine.manifest import timed
from ...engine.progress import track
from ...engine.text import shown
from ...engine.units import each_unit
from ...errors import UsageError
from ...generator.generator import Generator
from ...measure.extractors.cache import cached_features
from ...sample.prompting import Prompt, RealGuidance, check, classes_of, draw_prompts, refuse_vectors
from ...sample.synthetic import SCHEMA, Row, SyntheticStore, job_name
from ...train.few_shot.clip import Clip
from ...train.few_shot.clip_filter import answers, kept
from ...train.few_shot.prompts import check_classes
from ...train.few_shot.zero_shot import class_weights, zero_shot_logits
from ..few_shot.features import image_encoder
from ..forget import follow
from ..images import adopt_record, open_splits
from ..methods import LECF
from ..room import SPARE_BYTES, png_bytes
from ..stages import make_way
from .sentences import Language, sentences_of_frames

DRAWN = "drawn"  # the folder of all images, before the filter
UNIT = 100  # images that are looked at, or committed, at once


@dataclass(frozen=True)
class Judged:
    """What was drawn, and what CLIP says of it."""

    rows: Sequence[Row]  # of the drawn store, `label` numbered as in DATA; of each class in random order
    logits: Tensor  # (N, C) float32: CLIP's own, over DATA's classes

    @property
    def confidences(self) -> Tensor:
        """(N,) float32: the probability that CLIP gives the class that an image was drawn for."""
        labels = torch.tensor([row["label"] for row in self.rows])
        return self.logits.softmax(1)[torch.arange(len(labels)), labels]


def folder_of(out: Path, threshold: float) -> Path:
    """The run folder of what is kept at a threshold."""
    return out / f"t{threshold:g}"


def lecf_sets(
    out: Path,
    data: DataSettings,
    settings: LecfSettings,
    drawing: PromptSettings,
    generator: Generator,
    clip: Clip,
    language: Language | None = None,
    *,
    cache: Path | None = None,
    anew: bool = False,
) -> dict[float, dict[str, Any]]:
    """`lecf` on the training images of DATA, into run folders that `dinv train` takes, OUT/drawn one of them."""
    drawn = out / DRAWN
    for threshold in settings.thresholds:  # what one of them must forget, all must
        with run_lock(folder_of(out, threshold)), run_lock(drawn):
            follow(folder_of(out, threshold), drawn)
    train = open_splits(drawn, data).train
    return lecf(out, train, settings, drawing, generator, clip, language, cache=cache, anew=anew)


def lecf(
    out: Path,
    train: LabelledImages,
    settings: LecfSettings,
    drawing: PromptSettings,
    generator: Generator,
    clip: Clip,
    language: Language | None = None,
    *,
    cache: Path | None = None,
    anew: bool = False,
    drawn: Path | None = None,
) -> dict[float, dict[str, Any]]:
    """Fill OUT/t<threshold> for each threshold with images that CLIP keeps; by threshold what there is.

    All are drawn once, in `drawn` (by default OUT/drawn), which sets of other sizes may share: every sentence
    `drawing.variants` times. Each class has as many images in every set, by default as many as `train` has: those of
    at least the threshold, the first in random order; where they are fewer, the most confident. Images are saved at
    the smaller of the side of `train` and the drawn one unless `drawing.image_size` says so. `cache` keeps CLIP's
    features by content. What is there is not done again; `anew` deletes it first.

    Raises, before anything is drawn, UsageError (classes that CLIP cannot read, fewer images than are to be kept, a
    folder of vectors, settings that the generator cannot do); then ConfigMismatchError (a folder was filled
    otherwise), LockedError, DiskError.
    """
    drawn, folders = drawn or out / DRAWN, {one: folder_of(out, one) for one in settings.thresholds}
    check_classes(clip, train.class_names, settings.templates)
    drawing = drawing.model_copy(
        update={"image_size": drawing.image_size or min(train.size, drawing.resolution or generator.resolution)}
    )
    _, side = check(generator, drawing, drawn)
    for folder in folders.values():
        refuse_vectors(folder, "images of LECF")
    named = [train.class_names[label] for label in train.labels.unique().tolist()]
    if language is None:
        prompts = sentences_of_frames(named, settings.sentences, drawing.seed)
    else:
        prompts = language.sentences(named, settings.sentences, drawing.seed)
    wanted = to_keep(train, settings, drawing, Counter(prompt.class_name for prompt in prompts))
    kept = dict.fromkeys(folders.values(), sum(wanted.values()))
    make_way({drawn: len(prompts) * drawing.variants, **kept}, side, anew=anew)
    real = None if settings.real_guidance is None else RealGuidance(train, settings.real_guidance)
    draw_prompts(prompts, generator, drawn, drawing, kind=LECF, real=real)
    judged = judge(drawn, prompts, drawing, train.class_names, clip, settings.templates, cache)
    described = _described(generator, clip, language, settings, drawing, train.class_names)
    return {
        threshold: _fill(folder, drawn, judged, threshold, wanted, settings, drawing, described, clip)
        for threshold, folder in folders.items()
    }


def to_keep(
    train: LabelledImages, settings: LecfSettings, drawing: PromptSettings, sentences: Mapping[str, int]
) -> dict[int, int]:
    """How many images of each class are kept, by label. UsageError where fewer are drawn of so many `sentences`."""
    labels, counts = train.labels.unique(return_counts=True)
    wanted = {label: settings.per_class or n for label, n in zip(labels.tolist(), counts.tolist(), strict=True)}
    for label, count in wanted.items():
        name = train.class_names[label]
        if count > sentences[name] * drawing.variants:
            raise UsageError(
                f"class {shown(repr(name))}: {sentences[name]} sentences x {drawing.variants} variants are drawn, "
                f"{count} images are to be kept. Give more --variants, or fewer --images-per-class."
            )
    return wanted


def judge(
    drawn: Path,
    prompts: Sequence[Prompt],
    drawing: PromptSettings,
    class_names: tuple[str, ...],
    clip: Clip,
    templates: Sequence[str],
    cache: Path | None,
) -> Judged:
    """CLIP's logits of the images of these prompts in the folder `drawn`, over `class_names`."""
    own = classes_of(prompts)
    store, sources = SyntheticStore(drawn, own), {prompt.source_id for prompt in prompts}
    number = {name: label for label, name in enumerate(class_names)}
    there = store.table().to_pylist()
    rows = [row for row in there if row["source_id"] in sources and row["variant"] < drawing.variants]

    def order(row: Row) -> str:
        return hashlib.sha256(f"{drawing.seed} {row['source_id']} {row['variant']}".encode()).hexdigest()

    rows.sort(key=order)
    weights, encoder, found = class_weights(clip, class_names, templates), image_encoder(clip), []
    with track(f"what {clip.name} sees", len(rows)) as advance:
        for start in range(0, len(rows), UNIT):
            images = _read(store, rows[start : start + UNIT])
            features = cached_features(encoder, images, cache, advance=advance)
            found.append(zero_shot_logits(features.to(weights.device), weights, clip.scale).cpu())
    return Judged([row | {"label": number[row["class_name"]]} for row in rows], torch.cat(found))


def _fill(
    folder: Path,
    drawn: Path,
    judged: Judged,
    threshold: float,
    wanted: Mapping[int, int],
    settings: LecfSettings,
    drawing: PromptSettings,
    described: dict[str, Any],
    clip: Clip,
) -> dict[str, Any]:
    """Commit what is kept at a threshold; what is there and not kept any more goes."""
    names = tuple(described["class_names"])
    labels = torch.tensor([row["label"] for row in judged.rows])
    rows: list[int] = []
    confidences, passing = judged.confidences, 0
    for label, count in wanted.items():
        members = (labels == label).nonzero()[:, 0]
        passing += int((confidences[members] >= threshold).sum())
        rows += members[kept(confidences[members], threshold, count)].tolist()
    soft = answers(judged.logits, settings.soft_temperature)
    jobs = {job_name(judged.rows[row]["source_id"], judged.rows[row]["variant"]): row for row in rows}
    with run_lock(folder):
        adopt_record(drawn, folder)
        follow(drawn, folder)
        store, source = SyntheticStore(folder, names), SyntheticStore(drawn, names)
        with timed(store.manifest):
            freeze_settings(folder, "sample", described | {"threshold": threshold}, begun=bool(store.manifest.units()))
            columns = store.table("file_name", "source_id", "variant", "sha256").columns
            there = list(zip(*(column.to_pylist() for column in columns), strict=True))
            pixels = {job: judged.rows[row]["sha256"] for job, row in jobs.items()}
            stale = {name for name, *job, sha256 in there if pixels.get(job_name(*job)) != sha256}
            if stale:
                store.remove(stale)
            missing = len(jobs) - len(there) + len(stale)
            side = described["settings"]["image_size"]
            if missing:
                require_room(folder, missing * png_bytes(side) + SPARE_BYTES, f"{missing} images of {side} px")
            with track(f"keep {folder.name}", missing) as advance:

                def copy(unit: tuple[str, ...]) -> None:
                    of_unit = [jobs[job] for job in unit]
                    own = [judged.rows[row] for row in of_unit]
                    about = zip(own, confidences[of_unit].tolist(), soft[of_unit].tolist(), strict=True)
                    store.commit(_read(source, own), [_row(*one, settings, clip) for one in about])
                    advance(len(unit))

                each_unit(folder, list(jobs), store.manifest, UNIT, copy)
            store.finish(variants=drawing.variants)
    return {
        "run": str(folder),
        "images": len(rows),
        "drawn": len(judged.rows),
        "passing": passing,
        "confidence": {"least": float(confidences[rows].min()), "mean": float(confidences[rows].mean())},
    }


def _row(row: Row, confidence: float, answer: Sequence[float], settings: LecfSettings, clip: Clip) -> Row:
    """How one image came to be kept: as it was drawn, with what CLIP says; see `columns.COLUMNS`."""
    drawn = {key: value for key, value in row.items() if key not in ("file_name", "class_name", "sha256")}
    asked = settings.soft_weight > 0
    return drawn | {
        "partner_label": row["label"],
        "label_weight": 1 - settings.soft_weight,
        "clip": clip.name,
        "clip_hash": clip.hash,
        "confidence": float(f"{confidence:.6g}"),
        "answers": [float(f"{value:.6g}") for value in answer] if asked else None,
    }


def _read(store: SyntheticStore, rows: Sequence[Row]) -> Tensor:
    """The images (B, 3, S, S) uint8 of rows of a store's table."""
    files = ([row[key] for row in rows] for key in ("file_name", "sha256", "label"))
    return store.images(*files).images


def _described(
    generator: Generator,
    clip: Clip,
    language: Language | None,
    settings: LecfSettings,
    drawing: PromptSettings,
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    """Everything that the images of all thresholds depend on but their sentences, which their rows name."""
    leave_out = {"clip", "clip_revision", "thresholds", "language"}
    sides = {"resolution": drawing.resolution or generator.resolution}
    return {
        "schema": SCHEMA,
        "kind": LECF,
        "settings": settings.described(leave_out) | drawing.described({"variants", "safety_checker"}) | sides,
        "class_names": list(class_names),
        "generator": generator.record,
        "clip": clip.hash,
        "language": "frames" if language is None else language.hash,
    }
