"""What stage 2 of a run was done with, to draw more of the same: its settings and its generator."""

from __future__ import annotations

from pathlib import Path

from ..config.sampling import SampleSettings
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..generator.generator import Generator
from ..sample.synthetic import SyntheticStore
from .layout import GENERATOR_FILE


def sampling_of(run: Path, class_names: tuple[str, ...]) -> SampleSettings:
    """The settings of the images that are there. Raises UsageError where stage 2 is not finished."""
    variants = SyntheticStore(run, class_names).variants()
    recorded = Ledger(run).read_json(settings_file("sample"))
    return SampleSettings(**recorded["settings"], variants=variants, safety_checker="safety_checker" in recorded)


def most_drawn(run: Path) -> int:
    """The most variants of a source that stage 2 was last asked for; balanced counts are uneven."""
    last = SyntheticStore(run, ()).manifest.last("complete") or {}
    return max(last.get("counts", {}).values(), default=int(last.get("variants", 0)))


def generator_of(run: Path, device: str) -> Generator:
    """The generator, loaded as the run recorded it."""
    recorded = Ledger(run).read_json(GENERATOR_FILE)
    return Generator.load(recorded["source"], recorded["revision"], device, recorded["dtype"])
