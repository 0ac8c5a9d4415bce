"""The trainings that a call asks for: which shots each sees, and which images are added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.few_shot import FewShotSettings, Method
from ...data.datasets import Splits
from ...data.images import LabelledImages
from ...data.listed import Source
from ...data.selection import first_of_classes
from ...engine.untrusted import shown
from ...errors import UsageError
from .additions import NONE, Addition, Extra, open_extra


@dataclass(frozen=True)
class Job:
    """One training: a learner on the shots of a seed, with some rows of an extra."""

    method: Method
    shots: int  # 0: zero-shot
    seed: int
    addition: Addition
    source: str | None
    extra_rows: tuple[int, ...]
    digest: str  # of the extra rows

    @property
    def name(self) -> str:
        """What identifies it in the manifest; it holds all that differs between trainings of one folder."""
        if self.method == "zero-shot":
            return self.method
        extra = "" if self.source is None else f" with {self.addition.name} {self.digest[:16]}"
        return f"{self.method} {self.shots} shots seed {self.seed}{extra}"


def shots_of(train: LabelledImages, shots: int, seed: int) -> list[int]:
    """Rows of the shots of a seed: those that `--per-class SHOTS --data-seed SEED` takes. More shots hold fewer."""
    listed = Source(train.name, train.ids, tuple(train.labels.tolist()), train.class_names, _not_opened)
    return list(first_of_classes(listed, shots, seed, range(len(train))))


def _not_opened(row: int) -> Any:
    raise AssertionError(f"row {row}: shots are chosen without reading images")


def check_shots(train: LabelledImages, settings: FewShotSettings) -> None:
    """Raise UsageError for more shots than the smallest class has images."""
    counts = train.labels.bincount(minlength=len(train.class_names))
    least = int(counts.min())
    if settings.methods != ("zero-shot",) and max(settings.shots) > least:
        smallest = train.class_names[int(counts.argmin())]
        raise UsageError(
            f"shots={max(settings.shots)}: class {shown(repr(smallest))} of {train.name} has {least} training images, "
            f"the fewest; give at most {least}."
        )


def plan_jobs(
    splits: Splits,
    settings: FewShotSettings,
    additions: Sequence[Addition],
    extras: dict[str, Extra],
    root: str | Path | None,
) -> list[Job]:
    """Every training, seeds outside, so that what a killed call has finished can be compared. Fills `extras`."""
    train = splits.train
    jobs = [Job("zero-shot", 0, 0, Addition(NONE, None), None, (), "")] if "zero-shot" in settings.methods else []
    learners = [method for method in settings.methods if method != "zero-shot"]
    for seed in settings.seeds if learners else ():
        for shots in settings.shots:
            chosen = {train.hashes[row] for row in shots_of(train, shots, seed)}
            for addition in additions:
                source = addition.at(shots, seed)
                rows: tuple[int, ...] = ()
                digest = ""
                if source is not None:
                    if source not in extras:
                        extras[source] = open_extra(source, train.class_names, root)
                    extra = extras[source]
                    rows = extra.rows(chosen)
                    if not rows:
                        raise UsageError(
                            f"--with {shown(source)}: none of its {len(extra.identities):,} images was made from the "
                            f"{shots} shot(s) of seed {seed} alone; make them from these (`--per-class {shots} "
                            f"--data-seed {seed}`), in one run each: --with NAME=run-{{shots}}-{{seed}}."
                        )
                    digest = extra.digest(rows)
                jobs += [Job(method, shots, seed, addition, source, rows, digest) for method in learners]
    return jobs
