"""`dinv grow`: add synthetic images where they are needed, round by round, until they are enough.

A round trains a classifier on each fold of the training images, measures it on what the fold holds out, and gives each
class images in proportion to its error. Three times as many candidates are drawn at few steps; of those whose source a
classifier never saw, it takes the third that it is least sure of among those that keep their label, and these are
drawn in full, from the same random numbers. RUN/growth.json has the rounds, RUN/growth what the candidates showed,
RUN/grown the images. Test images play no part.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import NotRequired

from ..config.growing import GrowSettings
from ..config.sampling import SampleSettings
from ..config.training import TrainSettings
from ..data.datasets import Splits
from ..data.images import resize, to_uint8
from ..engine.disk import require_room
from ..engine.frozen_settings import freeze_settings
from ..engine.ledger import Ledger
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Unit
from ..engine.memory import within_memory
from ..engine.progress import duration, track
from ..engine.state import clear_states
from ..engine.units import each_unit, unit_name
from ..errors import UsageError
from ..generator.generator import Generator
from ..invert.embeddings import Embeddings, read_embeddings
from ..sample.drawing import in_parts
from ..sample.sampling import check, draw_jobs_of, stale_files
from ..sample.strengths import Strengths, of_source
from ..sample.synthetic import SyntheticStore, job_name, parse_job
from ..sample.variants import draw_images, plan_variant
from ..train.choosing import FOLDER as TUNING
from ..train.choosing import Candidate, Folds, Material
from ..train.classifiers import Classifier
from ..train.folds import NEVER, Split, in_order
from ..train.growing import best, entropy, errors_of, shares
from ..train.halving import Cell
from ..train.power_law import expected_gain, sentence
from ..train.training import fingerprint, recipe
from .drawn_with import generator_of, most_drawn, sampling_of
from .fidelity.stage import recorded_filter, trained_on
from .growth_record import RoundRecord
from .layout import GROWN, GROWTH, GROWTH_FILE
from .methods import method_of
from .room import SPARE_BYTES, png_bytes
from .stages import require_whole
from .strengths import strengths_for

SCHEMA = 1
CANDIDATES = 3  # of each image that is added
CANDIDATE_STEPS = 4  # of denoising, or as many as the run has where these are fewer
PATIENCE = 3  # rounds without a new best, after which a target is given up
FACTOR = 2.0  # how many times as many images the last sentence speaks of
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the real images that are trained on too, to see what more would bring
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
    classifiers: dict[int, Classifier] = field(default_factory=dict)  # of this round, by fold

    def __post_init__(self) -> None:
        self.embeddings = read_embeddings(self.run)
        self.real = self.folds.real
        self.sampling = sampling_of(self.run, self.embeddings.class_names)
        self.first = most_drawn(self.run)  # variant of what is grown
        self.side = check(self.embeddings, self.generator, self.sampling)
        self.strengths = strengths_for(self.run, self.embeddings, self.generator, self.sampling, self.real)
        self.scored = Manifest(self.run / GROWTH / MANIFEST, {"commit": ScoredUnit})
        self.row_of = {image_id: row for row, image_id in enumerate(self.embeddings.ids)}
        fold = dict(zip(self.real.ids, self.folds.folds, strict=True))
        # What every fold trains on no classifier can judge unseen; the first does.
        numbers = self.folds.numbers
        self.fold_of = {one: numbers[0] if fold[one] == NEVER else fold[one] for one in self.embeddings.ids}
        names = self.real.class_names
        self.label_of = dict(zip(self.real.ids, self.real.labels.tolist(), strict=True))
        self.members = [[one for one in self.embeddings.ids if self.label_of[one] == k] for k in range(len(names))]

    def material(self) -> Material:
        """The synthetic images that the run trains on, of which the first are those of stage 2."""
        device = str(self.folds.device)
        return trained_on(self.run, self.real.class_names, lambda: self.splits, device, self.generator)

    def parts(self, made: Material, share: float) -> list[Split] | None:
        """What each fold trains on of a share of the real images; None where it leaves one without synthetic images."""
        found = [part for number in self.folds.numbers if (part := self.folds.part(made, number, share)) is not None]
        return found if len(found) == len(self.folds.numbers) else None

    def measure(self, made: Material, purpose: str, parts: Sequence[Split | None] = ()) -> Tensor:
        """Which held-out images (n,) bool are recognised, by classifiers of this material or a part of it."""
        candidate = Candidate(self.settings, lambda: made.key, lambda: made)
        found = torch.zeros(len(self.real), dtype=torch.bool)
        cells = self.folds.cells(self.settings.seeds[:1])
        self.classifiers = {}
        with track(purpose, len(cells), "trainings") as advance:
            for cell, part in zip(cells, parts or [None] * len(cells), strict=True):
                keep = partial(self.classifiers.__setitem__, cell.fold)
                trial = self.folds.trial(candidate, cell, purpose, part=part, on_trained=keep)
                found[list(trial.rows)] = trial.correct
                advance(1)
        return found[self.held]

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
        """How many of each source: three for each image that is wanted of a class, first to those that had fewest."""
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
                plans.append(plan_variant(self.embeddings, self.generator, own, self.row_of[source], variant))
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
            self.scored.append(
                {
                    "event": "commit", "unit": unit_name(unit), "ids": list(unit), "count": len(unit), "files": {},
                    "kept": (answers.argmax(1) == labels).tolist(), "doubt": doubt.tolist(), "by": by,
                }
            )  # fmt: skip
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
        """Draw what the rounds chose and is not there."""
        draw_chosen(self.run, self.rounds, self.embeddings, self.generator, self.sampling, self.strengths)

    def keep(self, ended: dict[str, Any] | None = None) -> None:
        """Write the rounds, and what came of them where they ended."""
        text = json.dumps({"schema": SCHEMA, "rounds": self.rounds, "ended": ended}, allow_nan=False) + "\n"
        Ledger(self.run).commit(GROWTH_FILE, text.encode(), note={"copy": text})


def draw_chosen(
    run: Path,
    rounds: Sequence[RoundRecord],
    embeddings: Embeddings,
    generator: Generator,
    sampling: SampleSettings,
    strengths: Strengths | None,
) -> None:
    """Draw what rounds chose and is not there, or was drawn from vectors that are gone. Call it inside `run_lock`."""
    store = SyntheticStore(run, embeddings.class_names, GROWN)
    if stale := stale_files(embeddings, store):
        store.remove(stale)
    there = {job for unit in store.manifest.units().values() for job in unit["ids"]}
    for one in rounds:
        if not there.issuperset(one["chosen"]):
            draw_jobs_of(store, embeddings, generator, sampling, one["chosen"], strengths)


def grown_again(run: Path, splits: Splits, embeddings: Embeddings, generator: Generator) -> None:
    """Draw again what was lost of the images that were grown (`dinv repair`)."""
    kept = Ledger(run).read_json(GROWTH_FILE)
    if kept is not None:
        sampling = sampling_of(run, embeddings.class_names)
        strengths = strengths_for(run, embeddings, generator, sampling, splits.train)
        draw_chosen(run, kept["rounds"], embeddings, generator, sampling, strengths)


def grow(
    run: Path, splits: Splits, asked: GrowSettings, settings: TrainSettings, generator: Generator | None, device: str
) -> dict[str, Any]:
    """Grow a run whose stage 2 is finished; return what growth.json has of its end. Call it inside `run_lock`.

    The same call goes on where a killed one stopped, with the same bits where no time limit decides; one with another
    end goes on from where the last one ended. Raises UsageError, DataError (too few images), ConfigMismatchError
    (other settings or training images than those of the rounds before), DiskError.
    """
    if method_of(run).again is not None:
        raise UsageError(f"{run}: has no learned vectors to draw around. Grow a run of `dinv sample`.")
    if settings.online or settings.real_fraction == "auto" or settings.mixing == "confidence":
        raise UsageError("dinv grow: not with online, real_fraction=auto or mixing=confidence; give other settings.")
    if (how := recorded_filter(run).filter) != "off":
        raise UsageError(
            f"{run}: was trained with --filter {how}, which images that are grown go without. Begin training anew "
            f"without it (`dinv train {run} --restart`), then grow."
        )
    require_whole(run, splits)
    loaded = generator or generator_of(run, device)
    side = sampling_of(run, splits.train.class_names).image_size or splits.train.size
    folds = Folds(run, splits.train.resized(side), str(loaded.device))
    kept = Ledger(run).read_json(GROWTH_FILE)
    rounds: list[RoundRecord] = [] if kept is None else kept["rounds"]
    # Rounds are compared image by image, so all of them hold out the same.
    described = {**recipe(settings, folds.device), "seed": settings.seeds[0], "images": fingerprint(folds.real)[:16]}
    freeze_settings(run, "grow", described, begun=bool(rounds))
    growth = Growth(run, folds, splits, settings, loaded, rounds)
    growth.finish()
    while True:
        start, number = time.monotonic(), len(rounds)
        made = growth.material()
        correct = growth.measure(made, f"grow, round {number}")
        reason = _ended(asked, rounds, float(correct.double().mean()), time.monotonic() - start)
        if reason is not None:
            return _close(growth, made, correct, reason)
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
            "correct": _as_text(correct),
            "wanted": wanted,
            "candidates": dict(sorted(candidates.items())),
            "chosen": [jobs[row] for row in rows],
            "kept": sum(kept[row] for row in rows),
            "seconds": round(time.monotonic() - start, 1),
        }
    )
    growth.keep()


def _ended(asked: GrowSettings, rounds: Sequence[RoundRecord], accuracy: float, measured: float) -> str | None:
    """Why it ends before another round; None where it goes on. measured: seconds that the last measurement took."""
    if asked.images is not None and sum(len(one["chosen"]) for one in rounds) >= asked.images:
        return f"{asked.images} images were added"
    every = [*(one["accuracy"] for one in rounds), accuracy]
    if asked.target_gain is not None:
        if 100 * (accuracy - every[0]) >= asked.target_gain and rounds:
            return f"the gain of {asked.target_gain:g} points was reached"
        if len(every) > PATIENCE and max(every[:-PATIENCE]) >= max(every[-PATIENCE:]):
            return f"{PATIENCE} rounds in turn brought no more"
    spent = sum(one["seconds"] for one in rounds)
    longest = max((one["seconds"] for one in rounds), default=0.0)
    if asked.time_limit is not None and spent + measured + longest > asked.time_limit:
        return f"another round would go beyond {duration(asked.time_limit)}"
    return None


def _close(growth: Growth, made: Material, correct: Tensor, reason: str) -> dict[str, Any]:
    """What came of the rounds, and what more images would bring; kept, and returned."""
    rounds, real = growth.rounds, growth.real
    first = _as_tensor(rounds[0]["correct"]) if rounds else correct
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
        seen = [*(_as_tensor(one["correct"]) for one in rounds), correct]
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


@torch.inference_mode()
def _answers(classifier: Classifier, images: Tensor) -> Tensor:
    """Probabilities (N, C) float64 of uint8 images (N, 3, S, S)."""
    device = next(classifier.parameters()).device
    answers: Tensor = classifier.eval()(images.to(device)).cpu().double().softmax(1)
    return answers.round(decimals=_DECIMALS)


def _as_text(correct: Tensor) -> str:
    return "".join(map(str, correct.int().tolist()))


def _as_tensor(text: str) -> Tensor:
    return torch.tensor([one == "1" for one in text])


def _as_array(found: Sequence[Tensor]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return torch.stack(list(found)).numpy()
