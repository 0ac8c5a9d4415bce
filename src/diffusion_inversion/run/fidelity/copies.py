"""Synthetic images that copy training images (`--copies redraw`): which do, and what may stand in their place."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config.commands import AuditSettings
from ...data.datasets import Splits
from ...data.images import LabelledImages
from ...engine.frozen_settings import freeze_settings, settings_file
from ...engine.ledger import Ledger
from ...errors import ConfigMismatchError, UsageError
from ...measure.copies.nearest import Known
from ...measure.copies.said import sentence
from ...sample.synthetic import SyntheticStore
from ...train.store import ClassifierStore
from ..copies import guard, views_of
from ..gathered import job_of
from ..layout import REDRAWN
from ..methods import method_of

SCHEMA = 1
NEAR = 0.75  # of the threshold: what is nearer is drawn a level farther from its vector at once


@dataclass(frozen=True)
class CopyGate:
    """Which synthetic images of a run copy training images, by its audit, and whether others would.

    real: training images at the side that the audit compared at. record: the audit's, all images of the run in it.
    """

    real: LabelledImages
    settings: AuditSettings
    record: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """sha256 hex of all that `copied` depends on."""
        made_from = [SCHEMA, self.real.digest, self.real.size, self.record["settings"], self._thresholds, self._many]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()

    @property
    def _thresholds(self) -> dict[str, float]:
        return {name: view["threshold"] for name, view in self.record["views"].items()}

    @property
    def _many(self) -> bool:
        """Whether more images copy than chance explains: then another seed alone seldom helps."""
        return bool(self.record["exceeds_chance"])

    @cached_property
    def _known(self) -> list[tuple[Known, float]]:
        """What each view knows of the training images, and its threshold."""
        return [
            (Known(view, self.real.images, self.settings.neighbours), self._thresholds[view.name])
            for view in views_of(self.settings)
        ]

    def flagged(self, ids: Sequence[str]) -> Tensor:
        """Which of the run's images, by file name, the audit flags: (N,) bool."""
        named = {pair["file"] for pair in self.record["pairs"]}
        return torch.tensor([image_id in named for image_id in ids], dtype=torch.bool)

    def copied(self, images: Tensor) -> Tensor:
        """Which of images (B, 3, S, S) uint8 that the audit did not see it would flag: (B,) bool."""
        return torch.stack([known.search(images).scores < limit for known, limit in self._known]).any(0)

    def levels(self, store: SyntheticStore) -> dict[str, int]:
        """How far from its vector each flagged image is drawn again at first (`redraw.stronger`), by job."""
        jobs, limits = job_of(store), self._thresholds
        return {  # what `dinv grow` added is not in the store, and never drawn again
            jobs[pair["file"]]: self._many + (pair["score"] < NEAR * limits[pair["view"]])
            for pair in self.record["pairs"]
            if pair["file"] in jobs
        }


def recorded_copies(run: Path) -> AuditSettings | None:
    """With what a run's classifiers were trained in place of copies; None where nothing was put in their place."""
    frozen = Ledger(run).read_json(settings_file("copies"))
    return None if frozen is None else AuditSettings(copies="redraw", **frozen["settings"])


def copy_gate(run: Path, settings: AuditSettings | None, splits: Splits, side: int) -> CopyGate | None:
    """Audit the run as `settings` say (`guard`); with "redraw" what may be trained on, side: px of synthetic images.

    None where nothing is drawn again: settings of another kind, or images that cannot be audited, which is said.
    Raises UsageError for images that were not drawn around vectors; else as `guard`.
    """
    if settings is None:
        return None
    if settings.copies == "redraw" and method_of(run).again is not None:
        raise UsageError(f"--copies redraw: {run} has no learned vectors. Use --copies report, refuse or off.")
    record = guard(run, settings, splits)
    if settings.copies != "redraw" or record is None:
        return None
    if record["exceeds_chance"]:
        print(
            f"note: {sentence(record)}. They are drawn again, farther from their vectors; to draw all so at first "
            "(--noise-strength, --interpolation) takes less time",
            file=sys.stderr,
            flush=True,
        )
    return CopyGate(splits.train.resized(min(splits.train.size, side)), settings, record)


def keep_copies_setting(run: Path, settings: AuditSettings | None) -> None:
    """Keep that copies are drawn again as settings of stages are kept; else that leaves no trace.

    Call it before anything is drawn again. Raises ConfigMismatchError where classifiers were trained otherwise.
    """
    how = "off" if settings is None else settings.copies
    before = "redraw" if recorded_copies(run) is not None else "report, refuse or off"
    trained = bool(ClassifierStore(run).manifest.units())
    if trained and (how == "redraw") != (before == "redraw"):
        raise ConfigMismatchError(
            f"{run}: train was run here with other settings:\n  copies: was {before}, now {how}\nUse the old settings "
            f"to go on, or begin this stage anew with `dinv train {run} --restart --copies {how}`."
        )
    if settings is not None and how == "redraw":
        asked = settings.described(("copies", "device"))
        freeze_settings(run, "copies", {"schema": SCHEMA, "settings": asked}, begun=trained)
    elif before == "redraw":
        Ledger(run).drop(settings_file("copies"))
        shutil.rmtree(run / REDRAWN, ignore_errors=True)
