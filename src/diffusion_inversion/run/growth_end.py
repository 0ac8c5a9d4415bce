"""When a run has grown enough, and what more images would bring: the end of `dinv grow`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.growing import GrowSettings
from ..engine.progress import duration
from ..engine.state import clear_states
from ..train.choosing import FOLDER as TUNING
from ..train.choosing import Folds, Material
from ..train.folds import Split
from ..train.growing import at_one_rate
from ..train.power_law import expected_gain, sentence
from .growth import Growth
from .growth_record import RoundRecord, as_tensor

PATIENCE = 3  # rounds without a new best, after which a target is given up
FACTOR = 2.0  # how many times as many images the last sentence speaks of
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the real images that are trained on too, to see what more would bring


def why_ended(
    asked: GrowSettings, rounds: Sequence[RoundRecord], accuracy: float, measured: float, closing: float = 0.0
) -> str | None:
    """Why it ends before another round; None where it goes on.

    measured: seconds that the last measurement took, which the one after another round will take as well. closing:
    seconds that the end will take.
    """
    if asked.images is not None and sum(len(one["chosen"]) for one in rounds) >= asked.images:
        return f"{asked.images} images were added"
    every = [*(one["accuracy"] for one in rounds), accuracy]
    if asked.target_gain is not None:
        if 100 * (accuracy - every[0]) >= asked.target_gain and rounds:
            return f"the gain of {asked.target_gain:g} points was reached"
        if len(every) > PATIENCE and max(every[:-PATIENCE]) >= max(every[-PATIENCE:]):
            return f"{PATIENCE} rounds in turn brought no more"
    spent = sum(one["seconds"] for one in rounds)
    longest = max((measured, *(one["seconds"] for one in rounds)))  # with its measurement, which was just made
    if asked.time_limit is not None and spent + longest + measured + closing > asked.time_limit:
        return f"another round would go beyond {duration(asked.time_limit)}"
    return None


def real_sizes(folds: Folds, made: Material) -> list[list[Split]]:
    """What each fold trains on of ever more real images of each class, the last time of all: (sizes, folds).

    Of few images several shares are the same ones, which count once; a share that leaves a fold without synthetic
    images is left out. A variant is there where its partner is too, so a smaller share has fewer variants of each
    source; all are thinned to as many as the smallest has, or the law would be of both numbers.
    """
    found: list[list[Split]] = []
    for share in (*SHARES, 1.0):
        parts = [part for number in folds.numbers if (part := folds.part(made, number, share)) is not None]
        before = [[one.training for one in other] for other in found]
        if len(parts) == len(folds.numbers) and [one.training for one in parts] not in before:
            found.append(parts)
    origins = [folds.real.row_of[next(iter(sources))] for sources in made.sources]
    labels, ids = folds.real.labels.tolist(), made.synthetic.ids
    of_fold = [at_one_rate(parts, labels, origins, ids) for parts in zip(*found, strict=True)]
    return [list(parts) for parts in zip(*of_fold, strict=True)]


def close(growth: Growth, made: Material, correct: Tensor, reason: str) -> dict[str, Any]:
    """What came of the rounds, and what more images would bring; kept, and returned."""
    rounds, real = growth.rounds, growth.real
    first = as_tensor(rounds[0]["correct"]) if rounds else correct
    difference = correct.double() - first.double()
    gain, spread = float(difference.mean()), 1.96 * float(difference.std()) / math.sqrt(len(difference))
    sizes = real_sizes(growth.folds, made)
    whole = [growth.folds.split(made, number) for number in growth.folds.numbers]
    many = [sum(len(part.training) for part in parts) / sum(len(part.training) for part in whole) for parts in sizes]
    counts = [len(real) * share for share in many]
    found = [
        correct if parts == whole else growth.measure(made, f"grow, {share:.3g} of the real images", parts)
        for share, parts in zip(many, sizes, strict=True)
    ]
    of_real = expected_gain(counts, _as_array(found), FACTOR)
    of_synthetic = None
    if rounds:
        totals = [*(one["synthetic"] for one in rounds), len(made.synthetic)]
        seen = [*(as_tensor(one["correct"]) for one in rounds), correct]
        of_synthetic = expected_gain(totals, _as_array(seen), FACTOR)
    ended = {
        "reason": reason,
        "synthetic": len(made.synthetic),
        "added": sum(len(one["chosen"]) for one in rounds),
        "accuracy": float(correct.double().mean()),
        "images": len(correct),
        "gain": [gain, gain - spread, gain + spread],
        "real": counts,
        "real_accuracies": [float(one.double().mean()) for one in found],
        "variants_per_source": sum(len(one.synthetic) for one in sizes[-1]) / sum(len(one.training) for one in whole),
        "sentence": sentence(of_real, of_synthetic, FACTOR),
    }
    growth.keep(ended)
    clear_states(growth.run / TUNING)
    return ended


def _as_array(found: Sequence[Tensor]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return torch.stack(list(found)).numpy()
