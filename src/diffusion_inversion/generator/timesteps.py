"""`timesteps.json` of a generator's folder: where few denoising steps should lie, learned once for its weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
from pydantic import BaseModel

from ..config.sampling import SchedulerName
from ..engine.untrusted import check_record, read_json, shown
from ..errors import UsageError
from .checkpoints import as_usage

FILE = "timesteps.json"
Learned: TypeAlias = Mapping[SchedulerName, Mapping[int, Sequence[int]]]  # solver => number of steps => timesteps


class _Record(BaseModel):
    generator: str  # hash of the weights that they were learned for
    timesteps: dict[SchedulerName, dict[int, list[int]]]


def read_timesteps(folder: Path, weights_hash: str, training_timesteps: int) -> Learned:
    """What was learned for the weights in `folder`; empty where nothing was.

    Numbers that were learned for other weights are left out, and a warning says so. Raises UsageError for a file that
    is no such record, or whose timesteps do not descend within the schedule.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    with as_usage():
        record = check_record(read_json(path), _Record, path)
    if record.generator != weights_hash:
        print(
            f"warning: {path}: learned for other weights ({shown(record.generator[:12])}, these are "
            f"{weights_hash[:12]}), so it is not used. `dinv pretrain --stage timesteps` learns them for these.",
            file=sys.stderr,
            flush=True,
        )
        return {}
    for counts in record.timesteps.values():
        for count, timesteps in counts.items():
            if len(timesteps) != count or not descend(timesteps, training_timesteps):
                raise UsageError(
                    f"{path}: timesteps of {count} steps are not {count} that descend within "
                    f"0..{training_timesteps - 1}. Restore it from a copy, or remove it."
                )
    return record.timesteps


def descend(timesteps: Sequence[int], training_timesteps: int) -> bool:
    """Whether they could be those of a sampler: within 0..T-1, each below the one before."""
    within = bool(timesteps) and timesteps[0] < training_timesteps and timesteps[-1] >= 0
    return within and all(later < earlier for earlier, later in pairwise(timesteps))


def align_your_steps(count: int) -> tuple[int, ...]:
    """The ten timesteps of arXiv 2404.14507 for SD 1.5, which diffusers has as numbers, or as many that lie as they."""
    from diffusers.schedulers import AysSchedules

    return resampled(AysSchedules["StableDiffusionTimesteps"], count)


def resampled(timesteps: Sequence[int], count: int) -> tuple[int, ...]:
    """So many timesteps that lie as these, whose ends they keep."""
    places = np.linspace(0, 1, count), np.linspace(0, 1, len(timesteps))
    return tuple(np.interp(*places, timesteps).round().astype(int).tolist())
