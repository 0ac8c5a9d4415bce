"""`dinv grow`: add synthetic images where they are needed, round by round, until they are enough.

A round trains a classifier on each fold of the training images, measures it on what the fold holds out, and gives each
class images in proportion to its error. Three times as many candidates are drawn at few steps; of those whose source a
classifier never saw, it takes the third that it is least sure of among those that keep their label, and these are
drawn in full, from the same random numbers. RUN/growth.json has the rounds, RUN/growth what the candidates showed,
RUN/grown the images. Test images play no part.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

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
from .growth_record import RoundRecord, as_text
from .growth_settings import require_growable, require_trainable, warn_of_others
from .layout import GROWTH_FILE
from .room import SPARE_BYTES, png_bytes
from .stages import require_whole


def grow(
    run: Path, splits: Splits, asked: GrowSettings, settings: TrainSettings, generator: Generator | None, device: str
) -> dict[str, Any]:
    """Grow a run whose stage 2 is finished; return what growth.json has of its end. Call it inside `run_lock`.

    The same call goes on where a killed one stopped, with the same bits where no time limit decides; one with another
    end goes on from where the last one ended. Raises UsageError, DataError (too few images), ConfigMismatchError
    (other settings or training images than those of the rounds before), DiskError.
    """
    require_growable(run)
    require_trainable(settings)
    require_whole(run, splits)
    loaded = generator or generator_of(run, device)
    side = sampling_of(run, splits.train.class_names).image_size or splits.train.size
    folds = Folds(run, splits.train.resized(side), str(loaded.device))
    kept = Ledger(run).read_json(GROWTH_FILE)
    rounds: list[RoundRecord] = [] if kept is None else kept["rounds"]
    # Rounds are compared image by image, so all of them hold out the same.
    described = {**recipe(settings, folds.device), "seed": settings.seeds[0], "images": fingerprint(folds.real)[:16]}
    freeze_settings(run, "grow", described, begun=bool(rounds))
    warn_of_others(run, described)
    growth = Growth(run, folds, splits, settings, loaded, rounds)
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
    count = len(real.class_names)
    errors = errors_of(correct, real.labels[growth.held], count)
    wanted = shares([error if growth.members[k] else 0.0 for k, error in enumerate(errors)], size)
    require_room(growth.run, size * png_bytes(growth.side) + SPARE_BYTES, f"{size} images of {growth.side} px")
    candidates, before = growth.candidates(wanted), growth.drawn()
    jobs = [
        job_name(source, growth.first + before[source] + place)
        for source, many in sorted(candidates.items())
        for place in range(many)
    ]
    kept, doubt = growth.score(made, jobs)
    labels = [growth.label_of[parse_job(job)[0]] for job in jobs]
    rows = best(kept, doubt, labels, wanted)
    rounds.append(
        {
            "synthetic": len(made.synthetic),
            "accuracy": float(correct.double().mean()),
            "correct": as_text(correct),
            "wanted": wanted,
            "candidates": dict(sorted(candidates.items())),
            "chosen": [jobs[row] for row in rows],
            "kept": sum(kept[row] for row in rows),
            "seconds": round(time.monotonic() - start, 1),
        }
    )
    growth.keep()
