"""`dinv grow`: add synthetic images where they are needed, round by round, until they are enough.

A round trains a classifier on each fold of the training images, measures it on what the fold holds out, and gives each
class, or each subgroup of it (growth_parts.py), images in proportion to its error. Three times as many candidates are
drawn at few steps; of those whose source a classifier never saw, it takes the third that it is least sure of among
those that keep their label, and these are drawn in full, from the same random numbers. RUN/growth.json has the rounds,
RUN/growth what the candidates showed, RUN/grown the images. Test images play no part.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.growing import GrowSettings
from ..config.training import TrainSettings
from ..data.datasets import Splits
from ..engine.disk import require_room
from ..engine.frozen_settings import freeze_settings
from ..engine.ledger import Ledger
from ..generator.generator import Generator
from ..sample.synthetic import job_name, parse_job
from ..train.choosing import Folds, Material
from ..train.growing import best, errors_of, shares
from ..train.training import fingerprint, recipe
from .drawn_with import generator_of, sampling_of
from .growth import Growth
from .growth_end import SHARES, close, why_ended
from .growth_parts import Parts, parts_by
from .growth_record import RoundRecord, as_text
from .growth_settings import require_growable, require_trainable, warn_of_others
from .layout import GROWTH_FILE
from .report.image_records import GrownPart
from .room import SPARE_BYTES, png_bytes
from .stages import require_whole


def grow(
    run: Path, splits: Splits, asked: GrowSettings, settings: TrainSettings, generator: Generator | None, device: str
) -> dict[str, Any]:
    """Grow a run whose stage 2 is finished; return what growth.json has of its end. Call it inside `run_lock`.

    The same call goes on where a killed one stopped, with the same bits where no time limit decides; one with another
    end goes on from where the last one ended. Raises UsageError, DataError (too few images, or some without a value),
    ConfigMismatchError (other settings or training images than those of the rounds before), DiskError.
    """
    require_growable(run)
    require_trainable(settings)
    require_whole(run, splits)
    parts = parts_by(run, splits, asked.balance)
    loaded = generator or generator_of(run, device)
    side = sampling_of(run, splits.train.class_names).image_size or splits.train.size
    folds = Folds(run, splits.train.resized(side), str(loaded.device))
    kept = Ledger(run).read_json(GROWTH_FILE)
    rounds: list[RoundRecord] = [] if kept is None else kept["rounds"]
    # Rounds are compared image by image, so all of them hold out the same.
    described = {
        **recipe(settings, folds.device), "seed": settings.seeds[0], "images": fingerprint(folds.real)[:16],
        **parts.described,
    }  # fmt: skip
    freeze_settings(run, "grow", described, begun=bool(rounds))
    warn_of_others(run, described)
    growth = Growth(run, folds, splits, settings, loaded, rounds, parts)
    growth.finish()
    while True:
        start, number = time.monotonic(), len(rounds)
        made = growth.material()
        correct = growth.measure(made, f"grow, round {number}")
        took = max(time.monotonic() - start, growth.a_measurement)
        closing = (len(SHARES) + 1) * growth.a_measurement
        reason = why_ended(asked, rounds, float(correct.double().mean()), took, closing)
        if reason is not None:
            return close(growth, made, correct, reason)
        _add_round(growth, made, correct, asked, start)
        growth.finish()


def _add_round(growth: Growth, made: Material, correct: Tensor, asked: GrowSettings, start: float) -> None:
    """Choose the images of a round and keep that."""
    real, rounds = growth.real, growth.rounds
    added = sum(len(one["chosen"]) for one in rounds)
    size = asked.round_images or len(growth.embeddings)
    if asked.images is not None:
        size = min(size, asked.images - added)
    parts = growth.parts
    part_of_held = torch.tensor([parts.of[real.ids[row]] for row in growth.held])
    errors = errors_of(correct, part_of_held, len(parts.classes))
    wanted = shares([error if growth.members[part] else 0.0 for part, error in enumerate(errors)], size)
    require_room(growth.run, size * png_bytes(growth.side) + SPARE_BYTES, f"{size} images of {growth.side} px")
    candidates, before = growth.candidates(wanted), growth.drawn()
    jobs = [
        job_name(source, growth.first + before[source] + place)
        for source, many in sorted(candidates.items())
        for place in range(many)
    ]
    kept, doubt = growth.score(made, jobs)
    rows = best(kept, doubt, [parts.of[parse_job(job)[0]] for job in jobs], wanted)
    by_class = [0] * len(real.class_names)
    for label, many in zip(parts.classes, wanted, strict=True):
        by_class[label] += many
    record: RoundRecord = {
        "synthetic": len(made.synthetic),
        "accuracy": float(correct.double().mean()),
        "correct": as_text(correct),
        "wanted": by_class,
        "candidates": dict(sorted(candidates.items())),
        "chosen": [jobs[row] for row in rows],
        "kept": sum(kept[row] for row in rows),
        "seconds": round(time.monotonic() - start, 1),
    }
    if parts.attribute is not None:
        record |= {"attribute": parts.name, "subgroups": _subgroups(parts, real.class_names, errors, wanted)}
    rounds.append(record)
    growth.keep()


def _subgroups(
    parts: Parts, class_names: Sequence[str], errors: Sequence[float], wanted: Sequence[int]
) -> list[GrownPart]:
    """What a round found of each part, and gave it."""
    return [
        {"class_name": class_names[label], "value": value, "error": round(error, 6), "added": many}
        for label, value, error, many in zip(parts.classes, parts.values, errors, wanted, strict=True)
    ]
