"""Vectors on their way through stage 1: a step of AdamW, and the images that have stopped, with the reason."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from ..config.settings import InvertSettings
from ..generator.generator import Generator, LatentDistribution, Tokens
from ..randomness import generator_for
from .objective import EvaluationBank, draw, gradients, loss_scale, rows_of
from .packing import LARGEST_NORM

RETRIES = 2  # of an image whose numbers run away, each from its start at a third of the rate before
# Why an image is given up, by the number that the loop notes.
CAUSES = (
    "",
    "its loss is not finite",
    "its gradient is not finite",
    f"its vector is not finite or longer than {LARGEST_NORM:g}",
)
ENDED, LOSS, GRADIENT, VECTOR = 0, 1, 2, 3  # the first is none: the image ended early and has a result
LOOK_EVERY = {"cuda": 25}  # steps between two looks at whether any image is left: elsewhere each, since nothing waits


@dataclass(frozen=True)
class BatchResult:
    """vectors (S, B, tokens, width), losses (P, B), null_losses (B,), all float32 on the CPU; a null loss may be
    NOT_FINITE.

    rates (B,): the learning rate that each image was learned at. causes (B,): 0, or why the image has no result (an
    index into CAUSES); stopped (B,): the step at which that was seen, or at which an image with a result ended early,
    0 for the others. Rows without a result hold zeros.
    """

    vectors: Float32[Tensor, "steps batch tokens features"]
    losses: Float32[Tensor, "points batch"]
    null_losses: Float32[Tensor, " batch"]
    rates: Float64[Tensor, " batch"]
    causes: Int64[Tensor, " batch"]
    stopped: Int64[Tensor, " batch"]

    def notes(self, ids: tuple[str, ...], learning_rate: float) -> dict[str, Any]:
        """For the record of the unit: the rates of images that were retried, the reasons of those without a result,
        the steps at which images ended early.
        """
        causes, stopped, rates = self.causes.tolist(), self.stopped.tolist(), self.rates.tolist()
        found: dict[str, dict[str, Any]] = {"rates": {}, "reasons": {}, "ended": {}}
        for image_id, cause, step, rate in zip(ids, causes, stopped, rates, strict=True):
            if cause:
                found["reasons"][image_id] = (
                    f"{CAUSES[cause]} at step {step} of the last of {RETRIES + 1} attempts, rate {rate:.3g}"
                )
                continue
            if rate != learning_rate:
                found["rates"][image_id] = rate
            if step:
                found["ended"][image_id] = step
        return {name: entries for name, entries in found.items() if entries}


@dataclass(frozen=True)
class UnitInputs:
    """What is the same at every step and attempt: the images of a unit, by row, and how they are computed."""

    generator: Generator
    settings: InvertSettings
    ids: tuple[str, ...]
    latents: LatentDistribution
    bank: EvaluationBank
    initial: Tokens
    at_once: int


def mini_batch(settings: InvertSettings, step: int, count: int) -> range:
    """Rows of a unit of `count` images whose loss is computed at `step`.

    All of them where images are independent. In a joint group the mini-batches follow each other in their order, again
    and again: the reference code's DataLoader does not shuffle.
    """
    if settings.grouping == "independent":
        return range(count)
    size = settings.joint_batch_size
    start = step % -(-count // size) * size
    return range(start, min(start + size, count))


class Trajectory:
    """The vectors (n, tokens, width) of some rows of a unit, each image with a stream that its draws come from.

    `causes` and `stopped` (n,) lie on the device and say which have stopped, why and where: without a cause those that
    ended early. `going` has the places of those that did not, on the CPU. `kept` and `losses` are what was measured so
    far, on the CPU. `scale` multiplies the losses before the backward pass.
    """

    def __init__(self, inputs: UnitInputs, rows: Int64[Tensor, " rows"], rate: float, attempt: int) -> None:
        self.renew(inputs, rows, rate, attempt)

    def renew(self, inputs: UnitInputs, rows: Int64[Tensor, " rows"], rate: float, attempt: int) -> None:
        """Go to the start of these rows, at the rate of this attempt."""
        self.inputs, self.rate, self.attempt, self.device = inputs, rate, attempt, inputs.generator.device
        self.rows = rows.to(self.device)
        self.ids = tuple(inputs.ids[row] for row in rows.tolist())
        self.latents = inputs.latents if len(rows) == len(inputs.ids) else rows_of(inputs.latents, rows)
        self.scale = loss_scale(inputs.generator, inputs.latents.mean, attempt)
        self.kept: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.begin(inputs.initial[self.rows])
        self.going = torch.arange(len(rows))
        self.stop(~usable(self.vectors.detach()), VECTOR, 0)

    def begin(self, initial: Tokens) -> None:
        """Make vectors, optimizer, streams, causes and stopped."""
        settings = self.inputs.settings
        self._place = {row: index for index, row in enumerate(self.rows.tolist())}
        self.vectors = initial.clone().requires_grad_(True)
        self.optimizer = torch.optim.AdamW([self.vectors], lr=self.rate, weight_decay=settings.weight_decay)
        self.moments = self.empty_moments(torch.device("cpu"))
        self.streams = [generator_for(settings.seed, "invert", image_id) for image_id in self.ids]
        self.causes = torch.zeros(len(self.ids), dtype=torch.int64, device=self.device)
        self.stopped = torch.zeros_like(self.causes)

    def empty_moments(self, counted_on: torch.device) -> dict[str, Tensor]:
        """The optimizer's state before its first step, in its own hands too."""
        zeros = torch.zeros_like(self.vectors, requires_grad=False)
        moments = {"step": torch.zeros((), device=counted_on), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        self.optimizer.state[self.vectors] = moments
        return moments

    def stop(self, which: Bool[Tensor, " n"], cause: int, step: int | Int64[Tensor, ""]) -> None:
        """Note the images of a mask (n,) as stopped, unless they are."""
        new = which & self._live()
        self.causes.masked_fill_(new, cause)
        self.stopped.add_(new * step)  # 0 until then

    def nobody_left(self, step: int) -> bool:
        """Whether all have stopped, where it is time to look."""
        return step % LOOK_EVERY.get(self.device.type, 1) == 0 and bool((self.causes > 0).all())

    def measure(self, bank: EvaluationBank, step: int) -> None:
        """Append the losses on the bank; an image that ended early has the one that it ended with."""
        generator, vectors, at_once = self.inputs.generator, self.vectors.detach(), self.inputs.at_once
        if len(self.going) == len(vectors):
            losses = bank.loss(generator, vectors, at_once)
        else:
            losses = self.losses[-1].clone()
            if len(self.going):
                losses[self.going] = bank.rows(self.going).loss(generator, vectors[self.going], at_once)
        self.stop(~losses.isfinite().to(self.device), LOSS, step)
        self.losses.append(losses)

    def end(self, step: int, since: Float32[Tensor, " n"], share: float) -> int:
        """End the images whose loss on the bank fell by less than `share` of what it was (n,); return their number.

        Theirs is the vector that was just measured. The others are computed without them from here on.
        """
        flat = self.losses[-1] > since * (1 - share)
        self.stop(flat.to(self.device), ENDED, step)
        before = len(self.going)
        self._look_who_goes_on()
        return before - len(self.going)

    def _look_who_goes_on(self) -> None:
        # Those whose numbers ran away are computed on as they were: so the bits of the others stay the same.
        self.going = ((self.causes != 0) | (self.stopped == 0)).nonzero().flatten().cpu()

    def keep(self) -> None:
        """Append the vectors as they are."""
        self.kept.append(self.vectors.detach().cpu().clone())

    def step(self, step: int) -> None:
        """One AdamW step on all vectors; those that are not in the mini-batch see momentum and decay alone.

        A joint group's loss is the mean over its mini-batch, as in the reference code; independent images are summed,
        so that a gradient does not depend on the size of the batch.
        """
        generator, settings = self.inputs.generator, self.inputs.settings
        scheduled = mini_batch(settings, step, len(self.inputs.ids))
        going = {*self.going.tolist()}
        batch = torch.tensor([p for row in scheduled if (p := self._place.get(row)) in going], dtype=torch.int64)
        whole = len(batch) == len(self.vectors)
        gradient, loss_is_bad = torch.zeros_like(self.vectors), torch.zeros_like(self.causes, dtype=torch.bool)
        if len(batch):
            on_device = batch.to(self.device)
            drawn_from = self.latents if whole else rows_of(self.latents, batch)
            latents, noise, timesteps = draw(generator, drawn_from, [self.streams[row] for row in batch.tolist()])
            vectors = self.vectors.detach() if whole else self.vectors.detach()[on_device]
            loss, found = gradients(generator, latents, noise, timesteps, vectors, self.inputs.at_once, self.scale)
            gradient[on_device] = found if settings.grouping == "independent" else found / len(scheduled)
            loss_is_bad[on_device] = ~loss.isfinite()
        self.update(loss_is_bad, gradient, step)

    @torch.no_grad()
    def update(self, loss_is_bad: Bool[Tensor, " n"], gradient: Tokens, step: int | Int64[Tensor, ""]) -> None:
        """Move the vectors by AdamW, but those that have stopped: they stay where they last were finite."""
        self.stop(loss_is_bad, LOSS, step)
        self.stop(~gradient.flatten(1).isfinite().all(1), GRADIENT, step)
        before = self.vectors.detach().clone()
        self.vectors.grad = gradient.where(self._live()[:, None, None], torch.zeros_like(gradient))
        self.optimizer.step()
        self.stop(~usable(self.vectors.detach()), VECTOR, step + 1)
        self.vectors.copy_(self.vectors.where(self._live()[:, None, None], before))

    def _live(self) -> Bool[Tensor, " n"]:
        return (self.causes == 0) & (self.stopped == 0)

    def result(self, *, complete: bool) -> BatchResult:
        """What was found, on the CPU; without vectors and losses where it is not complete."""
        count = len(self.ids)
        kept = torch.stack(self.kept) if complete else torch.zeros(0, *self.vectors.shape)
        losses = torch.stack(self.losses) if complete else torch.zeros(0, count)
        rates = torch.full((count,), self.rate, dtype=torch.float64)
        causes, stopped = self.causes.cpu().clone(), self.stopped.cpu().clone()
        return BatchResult(kept, losses, torch.zeros(count), rates, causes, stopped)

    def progress(self, step: int, attempt: int, before: BatchResult) -> dict[str, Tensor]:
        """All that a unit needs to go on after `step` steps of this attempt; `before` is what earlier ones found."""
        return {
            "attempt": torch.tensor(attempt),
            "step": torch.tensor(step),
            "vectors": self.vectors,
            "exp_avg": self.moments["exp_avg"],
            "exp_avg_sq": self.moments["exp_avg_sq"],
            **self.positions(),
            "causes": self.causes,
            "stopped": self.stopped,
            **{f"kept.{place:03d}": tensor for place, tensor in enumerate(self.kept)},
            **{f"loss.{place:03d}": tensor for place, tensor in enumerate(self.losses)},
            **{f"before.{field.name}": getattr(before, field.name) for field in fields(BatchResult)},
        }

    def restore(self, saved: dict[str, Tensor]) -> int:
        """Put back what `progress` took; return the steps that are done."""
        with torch.no_grad():
            self.vectors.copy_(saved["vectors"])
        for name, tensor in self.moments.items():
            tensor.copy_(saved[name])
        self.go_to(saved)
        self.kept += _in_order(saved, "kept.")
        self.losses += _in_order(saved, "loss.")
        self.causes.copy_(saved["causes"])
        self.stopped.copy_(saved["stopped"])
        self._look_who_goes_on()
        return int(saved["step"])

    def positions(self) -> dict[str, Tensor]:
        """How far the draws have come."""
        return {"streams": torch.stack([stream.get_state() for stream in self.streams])}

    def go_to(self, saved: dict[str, Tensor]) -> None:
        """Take the draws to where `positions` took them from."""
        for stream, position in zip(self.streams, saved["streams"], strict=True):
            stream.set_state(position.clone())  # set_state ignores the offset of a view


def _in_order(saved: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """What `progress` numbered under this prefix; as text, 1000 would come before 101."""
    numbers = sorted(int(name.removeprefix(prefix)) for name in saved if name.startswith(prefix))
    return [saved[f"{prefix}{number:03d}"] for number in numbers]


def usable(vectors: Tokens) -> Tensor:
    """Which vectors (n,) are finite, and short enough to be read again."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return (norms <= LARGEST_NORM).all(-1)  # false for NaN
