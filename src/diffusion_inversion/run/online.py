"""`--online`: variants that are drawn while classifiers train, ahead of them, and deleted when all have passed them.

Generation g is variant g of every source. What stage 2 drew is taken from there; the others are drawn into RUN/online,
by the settings of stage 2, with the same bits that it would have given them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from ..config.commands import AuditSettings
from ..config.fidelity import FilterSettings
from ..config.training import TrainSettings
from ..config.tuning import Tuning
from ..data.images import LabelledImages
from ..engine.disk import require_room
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..engine.lock import is_shared
from ..errors import UsageError
from ..generator.generator import Generator
from ..invert.embeddings import read_embeddings
from ..sample.sampling import check, draw_jobs_of, stale_files
from ..sample.synthetic import SyntheticStore, job_name
from ..train.ahead import Ahead
from .drawn_with import generator_of, sampling_of
from .gathered import is_grown, joined, read_rows
from .layout import ONLINE
from .methods import method_of
from .room import SPARE_BYTES, png_bytes
from .strengths import strengths_for

SCHEMA = 1
HELD = 2  # generations at a time, beside one that is drawn


def refuse_online(
    run: Path,
    train: TrainSettings,
    filtering: FilterSettings,
    tuning: Tuning,
    copies: AuditSettings | None = None,
    balance: str | None = None,
) -> None:
    """Raise UsageError, before any work, where what is asked for beside `online` needs images that are there."""
    if not train.online:
        return
    if balance is None:
        balance = (SyntheticStore(run, ()).manifest.last("complete") or {}).get("balance", "none")
    if filtering.filter != "off":
        raise UsageError(f"--online --filter {filtering.filter}: images are judged when all are there. Leave out one.")
    if copies is not None and copies.copies == "redraw":
        raise UsageError(
            "--online --copies redraw: what is drawn during training is not compared with the training images. Give "
            "--copies report, refuse or off, or leave out --online."
        )
    if tuning.of("train"):
        names = ", ".join(axis.key for axis in tuning.of("train"))
        raise UsageError(f"--online --tune {names}: chosen on images that are there. Choose first, without --online.")
    if is_shared(run):
        raise UsageError("--online --join: one process draws for all classifiers. Leave out --join.")
    if balance != "none":
        raise UsageError(f"--online --balance {balance}: a queue has as many variants of each source. Leave out one.")
    if is_grown(run):
        raise UsageError(f"--online: images were grown in {run}, which no queue holds. Train on them without --online.")
    if method_of(run).again is not None:
        raise UsageError(f"--online: {run} has no learned vectors to draw around. Leave it out.")


def ahead_of(
    run: Path, real: LabelledImages, settings: TrainSettings, device: torch.device, generator: Generator | None
) -> Ahead | None:
    """The queue of a run; None where nothing is drawn online. Call it inside `run_lock`.

    real: the training images. Raises as `sample` does, and DiskError.
    """
    if not settings.online:
        return None
    embeddings, recorded = read_embeddings(run), Ledger(run).read_json(settings_file("sample"))
    sampling = sampling_of(run, embeddings.class_names)
    loaded: Callable[[], Generator] = lru_cache(1)(lambda: generator or generator_of(run, str(device)))
    strengths = strengths_for(run, embeddings, loaded(), sampling, real) if sampling.noise_strength == "auto" else None
    store, drawn = (SyntheticStore(run, embeddings.class_names, *folder) for folder in ((ONLINE,), ()))
    if stale := stale_files(embeddings, store):
        store.remove(stale)
    found = sorted((strengths or {}).items())
    made_from = [SCHEMA, settings.online, recorded, embeddings.digest, *found]

    def ready(number: int) -> SyntheticStore:
        if number < sampling.variants:
            return drawn
        jobs = [job_name(source, number) for source in embeddings.ids]
        draw_jobs_of(store, embeddings, loaded(), sampling, jobs, strengths)
        return store

    @lru_cache(1)
    def images(generations: tuple[int, ...]) -> LabelledImages:
        return joined([read_rows(ready(number), number) for number in generations]).with_classes_after(real.class_names)

    def release(number: int) -> None:
        if not settings.online_keep:
            table = store.table("file_name", "variant").to_pylist()
            if gone := [row["file_name"] for row in table if row["variant"] < number]:
                store.remove(gone)

    most = settings.online - sampling.variants
    count = len(embeddings) * max(most if settings.online_keep else min(most, HELD + 1), 0)
    side = check(embeddings, loaded(), sampling) if count else 0
    require_room(run, count * png_bytes(side) + SPARE_BYTES, f"{count} images drawn online")
    version = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    return Ahead(len(embeddings), settings.online, version, images, release)
