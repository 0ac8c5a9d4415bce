"""Stage 1's step on a GPU: draws from counters, and tensors that stay where they are, so that a graph replays it."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Int64
from torch import Tensor

from ..config.settings import InvertSettings
from ..engine.graphs import Step
from ..engine.memory import holds_memory
from ..generator.generator import Generator, LatentDistribution, Latents, Timesteps, Tokens
from ..randomness import words_for
from .objective import gradients
from .philox import integers, normals, philox, round_keys
from .trajectory import Trajectory, UnitInputs


class CounterDraws:
    """What `objective.draw` draws, for every step at once: numbers by (run seed, image id, step), not by a stream.

    Philox is keyed by 64 bits of the hash of (run seed, image id); its counter is (block, step, 64 bits more of it).
    The blocks 0, 1, ... of a step hold four normal numbers each: those of the latents, then the noise; the block after
    them gives the timestep, by its first word. So a draw depends on nothing else, such as the images beside it.
    """

    def __init__(self, generator: Generator, seed: int, ids: tuple[str, ...], latents: LatentDistribution) -> None:
        words = words_for([(seed, "invert", image_id) for image_id in ids]).to(generator.device)[..., None]
        self._keys, self._further = round_keys(words[:2]), words[2:]
        self._mean, self._deviation = latents.mean.clone(), (0.5 * latents.logvar).exp()
        self._below, cells = generator.training_timesteps, latents.mean[0].numel()
        self._blocks = torch.arange(-(-2 * cells // 4) + 1, device=generator.device)
        self.tensors = (self._keys, self._further, self._mean, self._deviation)

    def at(self, step: Int64[Tensor, ""]) -> tuple[Latents, Latents, Timesteps]:
        """Latents sampled from the encoder's distribution, noise and uniform timesteps of a step (a device scalar)."""
        words = philox((self._blocks, step, self._further[0], self._further[1]), self._keys)
        numbers = normals([word[:, :-1] for word in words])
        count = self._mean[0].numel()
        latents, noise = (numbers[:, start : start + count].view_as(self._mean) for start in (0, count))
        return self._mean + self._deviation * latents, noise, integers(words[0][:, -1], self._below)


class SlotTrajectory(Trajectory):
    """A trajectory of independent images whose step neither synchronises nor moves a tensor.

    `done` is the number of steps that are done, a scalar on the device.
    """

    draws: CounterDraws
    done: Int64[Tensor, ""]
    _rate: Tensor
    _step: Step | None = None

    def begin(self, initial: Tokens) -> None:
        """Make all tensors and the step over them, or go back to the start of other images in the same tensors."""
        generator, settings = self.inputs.generator, self.inputs.settings
        draws = CounterDraws(generator, settings.seed, self.ids, self.latents)
        if self._step is not None:
            with torch.no_grad():
                self.vectors.copy_(initial)
            for mine, theirs in zip(self.draws.tensors, draws.tensors, strict=True):
                mine.copy_(theirs)
            for counted in (*self.moments.values(), self.causes, self.stopped, self.done):
                counted.zero_()
            self._rate.fill_(self.rate)
            return
        on_card = self.device.type == "cuda"
        self.draws = draws
        self.vectors = initial.clone().requires_grad_(True)
        self._rate = torch.tensor(self.rate, device=self.device)
        self.optimizer = torch.optim.AdamW(
            [self.vectors], lr=self._rate, weight_decay=settings.weight_decay, fused=on_card, capturable=on_card
        )
        self.moments = self.empty_moments(self.device)
        self.causes = torch.zeros(len(self.ids), dtype=torch.int64, device=self.device)
        self.stopped, self.done = torch.zeros_like(self.causes), torch.zeros_like(self.causes[0])
        changed = (self.vectors, *self.moments.values(), self.causes, self.stopped, self.done)
        # Gradient checkpointing asks for the state of a random generator, which a recording forbids; the few images
        # that are tried again are not worth one.
        recorded = self.attempt == 0 and not settings.gradient_checkpointing
        self._step = Step(self._work, changed, "stage 1", recorded=recorded)

    def fits(self, inputs: UnitInputs, rows: Int64[Tensor, " rows"]) -> bool:
        """Whether these rows can take the place of those that are here."""
        mine, theirs = (
            (
                one.generator, one.at_once, one.latents.mean.shape[1:], one.initial.shape[1:],
                one.settings.weight_decay, one.settings.gradient_checkpointing,
            )
            for one in (self.inputs, inputs)
        )  # fmt: skip
        return mine == theirs and len(rows) == len(self.ids)

    def step(self, step: int) -> None:
        """One AdamW step on all vectors."""
        assert self._step is not None
        self._step()

    def release(self) -> None:
        """Give back the memory of the recorded step."""
        if self._step is not None:
            self._step.release()

    def _work(self) -> None:
        """The step, on tensors that stay where they are; what it makes of anew is gone at its end."""
        latents, noise, timesteps = self.draws.at(self.done)
        loss, gradient = gradients(
            self.inputs.generator, latents, noise, timesteps, self.vectors.detach(), self.inputs.at_once, self.scale
        )
        with warnings.catch_warnings():  # of AdamW at the steps before the recording
            warnings.filterwarnings("ignore", message=".*capturable=True")
            self.update(~loss.isfinite(), gradient, self.done)
        self.done.add_(1)

    def positions(self) -> dict[str, Tensor]:
        """Nothing but the step says how far the draws have come."""
        return {}

    def go_to(self, saved: dict[str, Tensor]) -> None:
        """Take the draws to where they were."""
        self.done.copy_(saved["step"])


class Slots:
    """What a step of one unit of independent images needs, kept for the units of the same size that follow."""

    def __init__(self) -> None:
        self._run: SlotTrajectory | None = None
        holds_memory(self)

    def begin(self, inputs: UnitInputs, rows: Int64[Tensor, " rows"], rate: float, attempt: int) -> SlotTrajectory:
        """These rows at their start. What was begun before is over."""
        if attempt:  # of few images: what the others use stays
            return SlotTrajectory(inputs, rows, rate, attempt)
        if self._run is not None and self._run.fits(inputs, rows):
            self._run.renew(inputs, rows, rate, attempt)
        else:
            self.release()  # before another takes memory
            self._run = SlotTrajectory(inputs, rows, rate, attempt)
        return self._run

    def release(self) -> None:
        """Forget what is kept."""
        if self._run is not None:
            self._run.release()
        self._run = None


def slots_for(generator: Generator, settings: InvertSettings) -> Slots | None:
    """Slots where they make stage 1 quicker: independent images on CUDA, none of which ends early."""
    fixed = settings.grouping == "independent" and settings.early_stopping is None
    return Slots() if fixed and generator.device.type == "cuda" else None
