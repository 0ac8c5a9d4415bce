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
from ..train.choosing import Material
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


def close(growth: Growth, made: Material, correct: Tensor, reason: str) -> dict[str, Any]:
    """What came of the rounds, and what more images would bring; kept, and returned."""
    rounds, real = growth.rounds, growth.real
    first = as_tensor(rounds[0]["correct"]) if rounds else correct
    difference = correct.double() - first.double()
    gain, spread = float(difference.mean()), 1.96 * float(difference.std()) / math.sqrt(len(difference))
    whole = [len(growth.folds.split(made, number).training) for number in growth.folds.numbers]
    counts, found, sizes_before = [], [], [whole]
    for share in SHARES:  # of each class, rounded up: of few images several shares are the same ones
        parts = growth.parts(made, share)
        sizes = [len(part.training) for part in parts or ()]
        if parts is not None and sizes not in sizes_before:
            sizes_before.append(sizes)
            counts.append(len(real) * sum(sizes) / sum(whole))
            found.append(growth.measure(made, f"grow, {share:g} of the real images", parts))
    of_real = expected_gain([*counts, len(real)], _as_array([*found, correct]), FACTOR)
    of_synthetic = None
    if rounds:
        sizes = [*(one["synthetic"] for one in rounds), len(made.synthetic)]
        seen = [*(as_tensor(one["correct"]) for one in rounds), correct]
        of_synthetic = expected_gain(sizes, _as_array(seen), FACTOR)
    ended = {
        "reason": reason,
        "synthetic": len(made.synthetic),
        "added": sum(len(one["chosen"]) for one in rounds),
        "accuracy": float(correct.double().mean()),
        "images": len(correct),
        "gain": [gain, gain - spread, gain + spread],
        "real": [*counts, len(real)],
        "real_accuracies": [float(one.double().mean()) for one in (*found, correct)],
        "sentence": sentence(of_real, of_synthetic, FACTOR),
    }
    growth.keep(ended)
    clear_states(growth.run / TUNING)
    return ended


def _as_array(found: Sequence[Tensor]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return torch.stack(list(found)).numpy()
