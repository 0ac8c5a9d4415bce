"""`--noise-strength auto`: how much noise the vector of each image bears before its variants lose their class.

For each image a ladder of strengths is bisected by probes: variants of random numbers of their own, drawn at few steps
and shown to the judge of the fold that its source is in. RUN/strengths lists what was found; an image is searched once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..config.commands import AuditSettings
from ..config.sampling import SampleSettings
from ..data.images import LabelledImages, resize, to_uint8
from ..engine.frozen_settings import freeze_settings
from ..engine.lock import run_lock
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Unit
from ..engine.memory import within_memory
from ..engine.progress import track
from ..engine.units import each_unit, unit_name
from ..errors import UsageError
from ..generator.generator import Generator
from ..generator.safety import load_safety_checker
from ..invert.embeddings import Embeddings
from ..measure.copies.views import part_view, pixel_view
from ..measure.copies.watch import Watch
from ..sample.drawing import in_parts
from ..sample.sampling import check, made_from
from ..sample.strengths import LADDER, Strengths, bisect, strength_at
from ..sample.synthetic import SyntheticStore
from ..sample.variants import VariantPlan, draw_images, plan_variant
from .fidelity.judging import Judges
from .layout import STRENGTHS

PROBES = 4
PROBE_STEPS = 4  # of denoising, or as many as the run has where these are fewer
MOST_MISSED = 1  # probes of an image that may fail: the judge fails one of twenty that show their class
ROUNDS = (len(LADDER) - 1).bit_length()
_FIRST = 1_000_000  # number of the first probe among the variants, which have the numbers below


class StrengthUnit(Unit):
    """A commit record; one value for each image in each list."""

    sources: list[str]
    labels: list[int]
    strengths: list[float]
    levels: list[int | None]  # place on the ladder; None where no judge can be had
    kept: list[int | None]  # probes there that show their class
    copies: list[int | None]  # probes there that copy a training image


class Found(NamedTuple):
    """What was found for one image; as in `StrengthUnit`."""

    source: str
    label: int
    strength: float
    level: int | None
    kept: int | None
    copies: int | None


def is_auto(settings: SampleSettings) -> bool:
    """Whether strengths are to be found."""
    return settings.noise_strength == "auto"


def strengths_of(run: Path, embeddings: Embeddings | None = None) -> list[Found]:
    """What was found for the images of a run; of the vectors that are there now, where these are given."""
    current = None if embeddings is None else {*_jobs(embeddings)}
    found = []
    for record in _manifest(run).units().values():
        names = ("sources", "labels", "strengths", "levels", "kept", "copies")
        for job, *row in zip(record["ids"], *(record[name] for name in names), strict=True):
            if current is None or job in current:
                found.append(Found(*row))
    return found


def left_to_search(run: Path, settings: SampleSettings, images: int) -> int:
    """How many of so many images have no strength yet; 0 where none is asked for."""
    return max(images - len({found.source for found in strengths_of(run)}), 0) if is_auto(settings) else 0


def strengths_for(
    run: Path,
    embeddings: Embeddings,
    generator: Generator,
    settings: SampleSettings,
    sources: LabelledImages | None,
) -> Strengths | None:
    """The noise strength of every vector, found where it is not on record; None where the settings have a number.

    sources: the images that were inverted. A killed call goes on, unit by unit, to the same bits. Raises UsageError
    (no sources), DataError (too few images to judge by), ConfigMismatchError (found with other settings).
    """
    if not is_auto(settings):
        return None
    with run_lock(run):
        manifest, jobs = _manifest(run), _jobs(embeddings)
        done = manifest.jobs()
        begun = bool(done) or SyntheticStore(run, ()).count > 0
        checker = load_safety_checker(generator) if settings.safety_checker else None
        freeze_settings(run, "sample", made_from(embeddings, generator, settings, checker), begun=begun)
        if not done.issuperset(jobs):
            if sources is None:
                raise UsageError(
                    f"noise_strength=auto: the training images of {run} cannot be read, and what variants of them show "
                    "is judged by them. Give a number, or bring the images back."
                )
            side = check(embeddings, generator, settings)
            search = _Search(embeddings, generator, settings, sources.resized(side))
            with track("strengths", len({*jobs} - done)) as advance:

                def find(unit: tuple[str, ...]) -> None:
                    manifest.append(search.record(unit))
                    advance(len(unit))

                each_unit(run, jobs, manifest, max(settings.batch_size // PROBES, 1), find)
    return {found.source: found.strength for found in strengths_of(run, embeddings)}


def _manifest(run: Path) -> Manifest:
    return Manifest(run / STRENGTHS / MANIFEST, {"commit": StrengthUnit})


def _jobs(embeddings: Embeddings) -> list[str]:
    """A job for each vector: one that was learned anew is searched anew."""
    return [f"{name}#{version}" for name, version in zip(embeddings.ids, embeddings.versions, strict=True)]


class _Search:
    """Searches units of images. real: the images that were inverted, at the side of the synthetic ones."""

    def __init__(
        self, embeddings: Embeddings, generator: Generator, settings: SampleSettings, real: LabelledImages
    ) -> None:
        self.embeddings, self.generator, self.real = embeddings, generator, real
        self.judges = Judges(real, generator.device)
        steps = min(PROBE_STEPS, settings.inference_steps)
        self.settings = settings.model_copy(update={"inference_steps": steps, "timestep_spacing": "checkpoint"})
        self.row_of = {job: row for row, job in enumerate(_jobs(embeddings))}

    @cached_property
    def watch(self) -> Watch:
        usual = AuditSettings()
        views = [pixel_view(self.generator.device), part_view(self.generator.device)]
        return Watch(
            self.real, views, false_positives=usual.false_positives, neighbours=usual.neighbours, seed=usual.seed
        )

    def record(self, unit: Sequence[str]) -> dict[str, object]:
        """What is committed of the images of a unit."""
        rows = [self.row_of[job] for job in unit]
        seen: dict[int, tuple[Tensor, int]] = {}  # of each place the probes that passed last, and how many kept
        judged = [True] * len(rows)

        def passes(levels: Sequence[int], places: Sequence[int] = range(len(rows))) -> list[bool]:
            images, failed, known = self._probes([rows[place] for place in places], levels)
            good = []
            for place, drawn, lost, asked in zip(places, images, failed, known, strict=True):
                judged[place] = asked
                good.append(lost <= MOST_MISSED)
                if good[-1] or levels[len(good) - 1] == 0:
                    seen[place] = drawn, PROBES - lost
            return good

        levels = bisect(len(rows), len(LADDER), passes)
        if bare := [place for place, level in enumerate(levels) if level == 0]:
            passes([0] * len(bare), bare)
        shown = torch.cat([seen[place][0] for place in range(len(rows))])
        copies = self.watch.copies(shown).reshape(-1, PROBES).sum(1).tolist()
        default = SampleSettings.model_fields["noise_strength"].default
        vectors = self.embeddings.at((self.settings.kept_steps or self.embeddings.steps)[-1])
        return {
            "event": "commit",
            "unit": unit_name(unit),
            "ids": list(unit),
            "count": len(unit),
            "files": {},
            "sources": [self.embeddings.ids[row] for row in rows],
            "labels": self.embeddings.labels[rows].tolist(),
            "strengths": [
                strength_at(level, vectors[row]) if asked else default
                for row, level, asked in zip(rows, levels, judged, strict=True)
            ],
            "levels": [level if asked else None for level, asked in zip(levels, judged, strict=True)],
            "kept": [seen[place][1] if asked else None for place, asked in enumerate(judged)],
            "copies": [count if asked else None for count, asked in zip(copies, judged, strict=True)],
        }

    def _probes(self, rows: Sequence[int], levels: Sequence[int]) -> tuple[Sequence[Tensor], list[int], list[bool]]:
        """Of each row at its level: probes uint8 (4, 3, S, S), how many of them fail, and whether they were judged."""
        at = list(zip(rows, levels, strict=True))
        plans = [self._plan(row, level, probe) for row, level in at for probe in range(PROBES)]
        draw = partial(draw_images, self.embeddings, self.generator, settings=self.settings)
        drawn = within_memory(partial(in_parts, draw, plans), len(plans))[0]
        images = resize(to_uint8(drawn), self.real.size)
        labels = self.embeddings.labels[[plan.source for plan in plans]]
        # As the judge of variants does it: of partners of other classes, those that share the label count.
        shared = self.settings.partner == "other-class" and self.settings.interpolation > 0
        second = self.embeddings.labels[[plan.partner for plan in plans]] if shared else labels
        opinion = self.judges.opinion(images, labels, [self.embeddings.ids[plan.source] for plan in plans], second)
        failed = opinion.failed.reshape(-1, PROBES).sum(1).tolist()
        return images.split(PROBES), failed, opinion.judged.reshape(-1, PROBES).all(1).tolist()

    def _plan(self, row: int, level: int, probe: int) -> VariantPlan:
        """A probe: the same random numbers at every level, so what changes is the strength alone."""
        step = (self.settings.kept_steps or self.embeddings.steps)[-1]
        strength = strength_at(level, self.embeddings.at(step)[row])
        settings = self.settings.model_copy(update={"noise_strength": strength})
        return plan_variant(self.embeddings, self.generator, settings, row, _FIRST + probe)
