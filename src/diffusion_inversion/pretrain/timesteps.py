"""Stage `timesteps`: where few denoising steps lie best, learned once on the corpus (after LD3, arXiv 2405.15506).

Few steps end nearest to where many would have led from the same noise. LD3 descends the gradient through the solver;
here whole timesteps, which are what diffusers' samplers take, are moved one at a time.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..config.sampling import SampleSettings, SchedulerName
from ..data.images import to_model_range
from ..engine.progress import track
from ..engine.store import commit_bytes
from ..errors import UsageError
from ..generator.generator import Generator, Latents, Tokens
from ..generator.timesteps import FILE, align_your_steps, descend, resampled
from ..randomness import generator_for
from ..sample.denoising import denoise
from ..sample.perturb import add_gaussian_noise, interpolate
from .corpus import Corpus
from .pieces import Pieces
from .quality import latent_shape

Grid: TypeAlias = tuple[int, ...]  # descending timesteps

SOLVER: SchedulerName = "dpm++"  # what stage 2 draws with by default
COUNTS = (4, 6)
TEACHER_STEPS = 100
VECTORS = 32  # to learn on, and as many of held-out images to measure on
STRIDES = (48, 16, 5)  # by which a timestep is moved, while that helps
GUIDED = 2.0  # guidance scale that the held-out ends are measured at too; they are learned without
# What diffusers has for the same solver: changes of the scheduler's config.
SPACINGS: dict[str, dict[str, Any]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
DEFAULT = "default"  # as many steps as stage 2 takes where it is not told
AYS = "align-your-steps"  # arXiv 2404.14507: timesteps for SD 1.5, in diffusers as numbers


@dataclass(frozen=True)
class Ends:
    """Vectors and start noises, and where the many steps of a teacher lead from them."""

    noise: Latents
    conditional: Tokens
    unconditional: Tokens
    guidance_scale: float
    latents: Latents

    def distances(self, generator: Generator, timesteps: Grid | int) -> Float[Tensor, " batch"]:
        """Of each, how far few steps end from there: root mean square over the latent, whose own is about 1.

        timesteps: where the steps lie, or how many the generator's own config shall space.
        """
        steps, grid = (timesteps, None) if isinstance(timesteps, int) else (len(timesteps), timesteps)
        scales = torch.full((len(self.noise),), self.guidance_scale)
        found = denoise(
            generator, self.noise, self.conditional, self.unconditional, scales, SOLVER, steps, timesteps=grid
        )
        return (found.cpu() - self.latents).square().mean((1, 2, 3)).sqrt()


def learn_timesteps(
    corpus: Corpus, held_out: Corpus, folder: Path, device: torch.device, counts: Sequence[int] = COUNTS
) -> dict[str, Any]:
    """Learn timesteps for so many steps; write `folder`/timesteps.json and copy it to `folder`/mini; return it.

    Each count, and its measurement, is a piece that is kept, so the same call goes on after a kill. Vectors are the
    adapter's guesses for images of the corpus, perturbed as stage 2 does by default. Distances are measured on
    held-out images. Raises UsageError where the model was not exported.
    """
    target = folder / "mini"
    if not target.is_dir():
        raise UsageError(f"{target}: missing. Run the stage export first.")
    teacher = Generator.load(target, device=str(device), dtype="float32")
    student = Generator.load(target, device=str(device))
    pieces = Pieces(folder / FILE, {"generator": student.hash, "timesteps": {SOLVER: {}}})
    made_from = {
        "generator": student.record,
        "teacher": [SOLVER, TEACHER_STEPS],
        "vectors": VECTORS,
        "strides": STRIDES,
        "corpus": len(corpus.labels),
        "held_out": len(held_out.labels),
    }
    ends = Teacher(teacher, corpus, held_out)
    grids: dict[int, Grid] = {}

    def learned(count: int) -> dict[str, Any]:
        def distance(grid: Grid) -> float:
            found = float(ends.of("learn").distances(student, grid).mean())
            print(f"timesteps {','.join(map(str, grid))}: {found:.5f}", file=sys.stderr, flush=True)
            return found if math.isfinite(found) else math.inf

        starts = [grid_of(one, count) for one in rivals(student).values()]
        starts += [align_your_steps(count), *(resampled(fewer, count) for fewer in grids.values())]
        starts = [grid for grid in starts if descend(grid, student.training_timesteps)]
        best, tried = search(distance, starts, student.training_timesteps)
        return {"timesteps": list(best), "tried": tried}

    def measured(best: Grid, on: str) -> dict[str, Any]:
        of = ends.of(on)
        rows = {"learned": of.distances(student, best)}
        for name, one in rivals(student).items():
            if descend(grid_of(one, len(best)), student.training_timesteps):  # the solver cannot take a timestep twice
                rows[name] = of.distances(one, len(best))
        rows[AYS] = of.distances(student, align_your_steps(len(best)))
        return compared(rows | {DEFAULT: of.distances(student, SampleSettings().inference_steps)})

    for count in sorted(counts):
        piece = pieces.keep(f"{SOLVER}/{count}", made_from, partial(learned, count))
        grids[count] = tuple(piece["timesteps"])
        pieces.content["timesteps"][SOLVER][str(count)] = piece["timesteps"]
        pieces.save()
        commit_bytes(target / FILE, (folder / FILE).read_bytes())
    for on in ("held-out", "guided"):
        for count, best in grids.items():
            pieces.keep(f"{SOLVER}/{count}/{on}", made_from | {"timesteps": best}, partial(measured, best, on))
    commit_bytes(target / FILE, (folder / FILE).read_bytes())
    return pieces.content


class Teacher:
    """Where many steps lead, computed once and only where it is asked for: it costs as much as dozens of candidates."""

    def __init__(self, generator: Generator, corpus: Corpus, held_out: Corpus) -> None:
        self.generator, self.corpus, self.held_out = generator, corpus, held_out
        self._found: dict[str, Ends] = {}

    def of(self, name: str) -> Ends:
        """Of `learn`, images of the corpus; `held-out` and `guided`, others, without and with guidance."""
        if name not in self._found:
            images, scale = (self.corpus if name == "learn" else self.held_out), GUIDED if name == "guided" else 1.0
            self._found[name] = ends_of(self.generator, images, name, scale)
        return self._found[name]


def ends_of(teacher: Generator, corpus: Corpus, name: str, guidance_scale: float) -> Ends:
    """`VECTORS` images of the corpus, drawn by `name`, as what stage 2 would start from; and the teacher's end."""
    stream, settings = generator_for("timesteps", "learn" if name == "learn" else "held-out"), SampleSettings()
    rows = torch.randperm(len(corpus.labels), generator=stream)[:VECTORS]
    labels = corpus.labels.tolist()
    partners = []
    for row in rows.tolist():
        peers = [other for other, label in enumerate(labels) if label == labels[row] and other != row] or [row]
        partners.append(peers[int(torch.randint(len(peers), (1,), generator=stream))])
    images = to_model_range(corpus.images[torch.cat([rows, torch.tensor(partners)])])
    own, other = teacher.image_tokens(images).cpu().chunk(2)
    assert isinstance(settings.noise_strength, float)
    vectors = interpolate(own, other, settings.interpolation)
    vectors = torch.stack([add_gaussian_noise(one, settings.noise_strength, stream) for one in vectors])
    noise = torch.randn(len(rows), *latent_shape(teacher), generator=stream)
    unconditional = own.mean(0).expand_as(vectors)
    scales = torch.full((len(rows),), guidance_scale)
    with track(f"{TEACHER_STEPS} steps of {len(rows)} latents, {name}", TEACHER_STEPS) as advance:
        latents = denoise(
            teacher, noise, vectors, unconditional, scales, SOLVER, TEACHER_STEPS, lambda step: advance(1)
        )
    return Ends(noise, vectors, unconditional, guidance_scale, latents.cpu())


def search(distance: Callable[[Grid], float], starts: Sequence[Grid], training_timesteps: int) -> tuple[Grid, int]:
    """From the best of `starts` to where no single timestep can be moved by the last of `STRIDES` to less distance.

    Coordinate search by falling strides; also returns how many grids were tried. None is tried twice.
    """
    known = {start: distance(start) for start in starts}
    best = min(known, key=known.__getitem__)

    def better(grid: Grid) -> bool:
        if not descend(grid, training_timesteps):
            return False
        if grid not in known:
            known[grid] = distance(grid)
        return known[grid] < known[best]

    for stride in STRIDES:
        moved = True
        while moved:
            moved = False
            for place in range(len(best)):
                for by in (stride, -stride):
                    grid = (*best[:place], best[place] + by, *best[place + 1 :])
                    while better(grid):  # on in the direction that helps
                        best, moved = grid, True
                        grid = (*best[:place], best[place] + by, *best[place + 1 :])
    return best, len(known)


def rivals(generator: Generator) -> dict[str, Generator]:
    """The same generator under each of diffusers' spacings."""
    found = {}
    for name, changes in SPACINGS.items():
        found[name] = copy.copy(generator)
        found[name].scheduler_config = generator.scheduler_config | changes
    return found


def grid_of(generator: Generator, count: int) -> Grid:
    """The timesteps of a generator's own spacing, whole."""
    return tuple(generator.scheduler(SOLVER, count).timesteps.round().long().tolist())


def compared(rows: dict[str, Float[Tensor, " batch"]]) -> dict[str, dict[str, float]]:
    """Mean distance of each with its standard error and, paired, what it has more than the first, with its error.

    What does not end at a finite latent is left out.
    """
    first = next(iter(rows.values()))
    found = {}
    for name, row in rows.items():
        if bool(row.isfinite().all()):
            more = row - first
            values = {"mean": row.mean(), "error": row.std() / len(row) ** 0.5}
            values |= {"more": more.mean(), "more_error": more.std() / len(row) ** 0.5}
            found[name] = {key: round(float(value), 5) for key, value in values.items()}
    return found
