"""A run that grows: what its folds measure, which candidates of what is next they are least sure of, what was drawn."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from typing_extensions import NotRequired

from ..config.sampling import SampleSettings
from ..config.training import TrainSettings
from ..data.datasets import Splits
from ..data.images import resize, to_uint8
from ..engine.ledger import Ledger
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Unit
from ..engine.memory import within_memory
from ..engine.progress import track
from ..engine.units import each_unit, unit_name
from ..generator.generator import Generator
from ..invert.embeddings import Embeddings, read_embeddings
from ..sample.drawing import in_parts
from ..sample.sampling import check, draw_jobs_of, stale_files
from ..sample.strengths import Strengths, of_source
from ..sample.synthetic import SyntheticStore, parse_job
from ..sample.variants import draw_images, plan_variant
from ..train.choosing import Candidate, Folds, Material
from ..train.classifiers import Classifier
from ..train.folds import NEVER, Split, in_order
from ..train.growing import entropy
from ..train.halving import Cell
from ..train.training import fingerprint, recipe
from .drawn_with import most_drawn, sampling_of
from .fidelity.stage import trained_on
from .growth_parts import Parts
from .growth_record import RoundRecord
from .layout import GROWN, GROWTH, GROWTH_FILE
from .strengths import strengths_for

SCHEMA = 1
CANDIDATES = 3  # of each image that is added
CANDIDATE_STEPS = 4  # of denoising, or as many as the run has where these are fewer
_DECIMALS = 6  # of what a classifier says of a candidate


class ScoredUnit(Unit):
    """A commit record of candidates."""

    kept: list[bool]  # which show their label
    doubt: list[float]  # entropy in nats
    by: NotRequired[str]  # digest of what its classifiers were made from; earlier versions did not say


@dataclass
class Growth:
    """A run that grows; its training images at the side of the synthetic ones."""

    run: Path
    folds: Folds
    splits: Splits
    settings: TrainSettings
    generator: Generator
    rounds: list[RoundRecord]
    parts: Parts
    classifiers: dict[int, Classifier] = field(default_factory=dict)  # of this round, by fold
    trainings: list[float] = field(default_factory=list)  # seconds of those of this call

    def __post_init__(self) -> None:
        self.embeddings = read_embeddings(self.run)
        self.real = self.folds.real
        self.sampling = sampling_of(self.run, self.embeddings.class_names)
        self.first = most_drawn(self.run)  # variant of what is grown
        self.side = check(self.embeddings, self.generator, self.sampling)
        self.strengths = strengths_for(self.run, self.embeddings, self.generator, self.sampling, self.real)
        self.scored = Manifest(self.run / GROWTH / MANIFEST, {"commit": ScoredUnit})
        fold = dict(zip(self.real.ids, self.folds.folds, strict=True))
        # What every fold trains on no classifier can judge unseen; the first does.
        numbers = self.folds.numbers
        self.fold_of = {one: numbers[0] if fold[one] == NEVER else fold[one] for one in self.embeddings.ids}
        self.label_of = dict(zip(self.real.ids, self.real.labels.tolist(), strict=True))
        self.members: list[list[str]] = [[] for _ in self.parts.classes]
        for one in self.embeddings.ids:
            self.members[self.parts.of[one]].append(one)

    def material(self) -> Material:
        """The synthetic images that the run trains on, of which the first are those of stage 2."""
        device = str(self.folds.device)
        return trained_on(self.run, self.real.class_names, lambda: self.splits, device, self.generator)

    def measure(self, made: Material, purpose: str, parts: Sequence[Split | None] = ()) -> Tensor:
        """Which held-out images (n,) bool are recognised, by classifiers of this material or a part of it."""
        candidate = Candidate(self.settings, lambda: made.key, lambda: made)
        found = torch.zeros(len(self.real), dtype=torch.bool)
        cells = self.folds.cells(self.settings.seeds[:1])
        self.classifiers = {}
        with track(purpose, len(cells), "trainings") as advance:
            for cell, part in zip(cells, parts or [None] * len(cells), strict=True):
                start = time.monotonic()
                keep = partial(self.classifiers.__setitem__, cell.fold)
                trial = self.folds.trial(candidate, cell, purpose, part=part, on_trained=keep)
                found[list(trial.rows)] = trial.correct
                if cell.fold in self.classifiers:  # not read of an earlier call
                    self.trainings.append(time.monotonic() - start)
                advance(1)
        return found[self.held]

    @property
    def a_measurement(self) -> float:
        """Seconds that a training of each fold takes, by those of this call; by what is on record where it had none.

        Of whichever part of the images: steps are as many, and they take nearly all of the time.
        """
        one = fmean(self.trainings) if self.trainings else self.folds.longest("")[0]
        return one * len(self.folds.numbers)

    @property
    def held(self) -> list[int]:
        """Rows of the training images that a fold holds out."""
        return [row for row, fold in enumerate(self.folds.folds) if fold != NEVER]

    def classifier(self, made: Material, fold: int) -> Classifier:
        """That of a fold; trained again, to the same bits, where a killed call measured it."""
        if fold not in self.classifiers:
            candidate = Candidate(self.settings, lambda: made.key, lambda: made)
            self.classifiers[fold] = self.folds.learn(candidate, Cell(self.settings.seeds[0], fold))
        return self.classifiers[fold]

    def judged_by(self, made: Material) -> str:
        """A digest of all that the classifiers of this material depend on."""
        described = recipe(self.settings, self.folds.device)
        made_from = [made.key, fingerprint(self.real), self.folds.folds, described, self.settings.seeds[0]]
        return unit_name([json.dumps(made_from, sort_keys=True)])

    def candidates(self, wanted: Sequence[int]) -> Counter[str]:
        """How many of each source: three for each image that is wanted of a part, first to those that had fewest."""
        before = self.drawn()
        found: Counter[str] = Counter()
        for count, members in zip(wanted, self.members, strict=True):
            ordered = sorted(members, key=lambda one: (before[one], in_order(one)))
            for place in range(CANDIDATES * count):
                found[ordered[place % len(ordered)]] += 1
        return found

    def drawn(self) -> Counter[str]:
        """Candidates of each source in the rounds before."""
        total: Counter[str] = Counter()
        for one in self.rounds:
            total.update(one["candidates"])
        return total

    def score(self, made: Material, jobs: Sequence[str]) -> tuple[list[bool], list[float]]:
        """Of each candidate whether it keeps its label, and its classifier's entropy; kept unit by unit."""
        steps = min(CANDIDATE_STEPS, self.sampling.inference_steps)
        few = self.sampling.model_copy(update={"inference_steps": steps, "timestep_spacing": "checkpoint"})

        def look(unit: tuple[str, ...]) -> None:
            plans = []
            for job in unit:
                source, variant = parse_job(job)
                own = of_source(few, self.strengths, source)
                plans.append(
                    plan_variant(self.embeddings, self.generator, own, self.embeddings.row_of[source], variant)
                )
            draw = partial(draw_images, self.embeddings, self.generator, settings=few)
            drawn = within_memory(partial(in_parts, draw, plans), len(plans))[0]
            images = resize(to_uint8(drawn), self.side)
            sources = [parse_job(job)[0] for job in unit]
            labels = torch.tensor([self.label_of[source] for source in sources])
            answers = torch.zeros(len(unit), len(self.real.class_names), dtype=torch.float64)
            for fold in sorted({self.fold_of[source] for source in sources}):
                rows = [row for row, source in enumerate(sources) if self.fold_of[source] == fold]
                answers[rows] = _answers(self.classifier(made, fold), images[rows])
            doubt = entropy(answers).round(decimals=_DECIMALS)
            kept = (answers.argmax(1) == labels).tolist()
            self.scored.commit(unit_name(unit), unit, kept=kept, doubt=doubt.tolist(), by=by)
            advance(len(unit))

        by = self.judged_by(made)
        for name, unit in self.scored.units().items():  # of a killed call with other settings or images
            if unit.get("by") != by and not {*jobs}.isdisjoint(unit["ids"]):
                self.scored.append({"event": "drop", "unit": name})
        known = {job for unit in self.scored.units().values() for job in unit["ids"]}
        with track("candidates", len({*jobs} - known)) as advance:
            each_unit(self.run, jobs, self.scored, self.sampling.batch_size, look)
        found: dict[str, tuple[bool, float]] = {}
        for unit in self.scored.units().values():
            found |= dict(zip(unit["ids"], zip(unit["kept"], unit["doubt"], strict=True), strict=True))
        return [found[job][0] for job in jobs], [found[job][1] for job in jobs]

    def finish(self) -> None:
        """Draw what the rounds chose and is not there, and count it in the seconds of the last round, once.

        What a killed call drew of it counts at the pace of this one.
        """
        start = time.monotonic()
        drawn = draw_chosen(self.run, self.rounds, self.embeddings, self.generator, self.sampling, self.strengths)
        if drawn and "drawing" not in (last := self.rounds[-1]):
            last["drawing"] = round((time.monotonic() - start) / drawn * len(last["chosen"]), 3)
            last["seconds"] = round(last["seconds"] + last["drawing"], 1)
            self.keep()

    def keep(self, ended: dict[str, Any] | None = None) -> None:
        """Write the rounds, and what came of them where they ended."""
        content = {"schema": SCHEMA, "rounds": self.rounds, "ended": ended}
        Ledger(self.run).commit_json(GROWTH_FILE, content, copied=True, allow_nan=False)


def draw_chosen(
    run: Path,
    rounds: Sequence[RoundRecord],
    embeddings: Embeddings,
    generator: Generator,
    sampling: SampleSettings,
    strengths: Strengths | None,
) -> int:
    """Draw what rounds chose and is not there, or was drawn from vectors that are gone; return how many images.

    Call it inside `run_lock`.
    """
    store = SyntheticStore(run, embeddings.class_names, GROWN)
    if stale := stale_files(embeddings, store):
        store.remove(stale)
    there = {job for unit in store.manifest.units().values() for job in unit["ids"]}
    for one in rounds:
        if not there.issuperset(one["chosen"]):
            draw_jobs_of(store, embeddings, generator, sampling, one["chosen"], strengths)
    return len({job for one in rounds for job in one["chosen"]} - there)


def grown_again(run: Path, splits: Splits, embeddings: Embeddings, generator: Generator) -> None:
    """Draw again what was lost of the images that were grown (`dinv repair`)."""
    kept = Ledger(run).read_json(GROWTH_FILE)
    if kept is not None:
        sampling = sampling_of(run, embeddings.class_names)
        strengths = strengths_for(run, embeddings, generator, sampling, splits.train)
        draw_chosen(run, kept["rounds"], embeddings, generator, sampling, strengths)


@torch.inference_mode()
def _answers(classifier: Classifier, images: Tensor) -> Tensor:
    """Probabilities (N, C) float64 of uint8 images (N, 3, S, S)."""
    device = next(classifier.parameters()).device
    answers: Tensor = classifier.eval()(images.to(device)).cpu().double().softmax(1)
    return answers.round(decimals=_DECIMALS)
