"""What stage 2 of a run was done with, to draw more of the same: its settings and its generator."""

from __future__ import annotations

from pathlib import Path

from ..config.sampling import SampleSettings
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..generator.generator import Generator
from ..sample.synthetic import SyntheticStore
from .layout import GENERATOR_FILE


def recorded_sampling(run: Path) -> SampleSettings | None:
    """The settings that stage 2 was begun with, with the default number of variants; None where it was not begun."""
    recorded = Ledger(run).read_json(settings_file("sample"))
    if recorded is None:
        return None
    return SampleSettings(**recorded["settings"], safety_checker="safety_checker" in recorded)


def sampling_of(run: Path, class_names: tuple[str, ...]) -> SampleSettings:
    """The settings of the images that are there. Raises UsageError where stage 2 is not finished."""
    variants = SyntheticStore(run, class_names).variants()
    recorded = recorded_sampling(run)
    assert recorded is not None  # images are there
    return recorded.model_copy(update={"variants": variants})


def most_drawn(run: Path) -> int:
    """The most variants of a source that stage 2 was last asked for; balanced counts are uneven."""
    last = SyntheticStore(run, ()).manifest.last("complete") or {}
    return max(last.get("counts", {}).values(), default=int(last.get("variants", 0)))


def generator_of(run: Path, device: str) -> Generator:
    """The generator, loaded as the run recorded it."""
    recorded = Ledger(run).read_json(GENERATOR_FILE)
    return Generator.load(recorded["source"], recorded["revision"], device, recorded["dtype"])
