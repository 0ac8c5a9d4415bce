"""The loop of stage 1: AdamW on the vectors of one unit, and what becomes of an image whose numbers run away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from ..config.settings import InvertSettings
from ..engine.state import UnitState
from ..generator.generator import EMPTY_PROMPT, Generator, Images, LatentDistribution, Tokens
from ..randomness import generator_for
from .objective import EvaluationBank, draw, encode, gradients, loss_scale, rows_of
from .packing import LARGEST_NORM

CURVE_POINTS = 4
RETRIES = 2  # of an image whose numbers run away, each from its start at a third of the rate before
RETRY_FACTOR = 3.0
# Why an image is given up, by the number that the loop notes.
CAUSES = (
    "",
    "its loss is not finite",
    "its gradient is not finite",
    f"its vector is not finite or longer than {LARGEST_NORM:g}",
)
_LOSS, _GRADIENT, _VECTOR = 1, 2, 3


@dataclass(frozen=True)
class BatchResult:
    """vectors (S, B, tokens, width), losses (P, B), null_losses (B,), all float32 on the CPU.

    rates (B,): the learning rate that each image was learned at. causes (B,): 0, or why the image has no result (an
    index into CAUSES); stopped (B,): the step at which that was seen. Rows without a result hold zeros.
    """

    vectors: Float32[Tensor, "steps batch tokens features"]
    losses: Float32[Tensor, "points batch"]
    null_losses: Float32[Tensor, " batch"]
    rates: Float64[Tensor, " batch"]
    causes: Int64[Tensor, " batch"]
    stopped: Int64[Tensor, " batch"]

    def notes(self, ids: tuple[str, ...], learning_rate: float) -> dict[str, Any]:
        """For the record of the unit: the rates of images that were retried, the reasons of those without a result."""
        causes, stopped, rates = self.causes.tolist(), self.stopped.tolist(), self.rates.tolist()
        found: dict[str, dict[str, Any]] = {"rates": {}, "reasons": {}}
        for image_id, cause, step, rate in zip(ids, causes, stopped, rates, strict=True):
            if cause:
                found["reasons"][image_id] = (
                    f"{CAUSES[cause]} at step {step} of the last of {RETRIES + 1} attempts, rate {rate:.3g}"
                )
            elif rate != learning_rate:
                found["rates"][image_id] = rate
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


def curve_steps(settings: InvertSettings) -> tuple[int, ...]:
    """Steps at which the loss on the evaluation bank is measured: the start, quarters, and every kept step."""
    quarters = {round(settings.steps * k / CURVE_POINTS) for k in range(CURVE_POINTS + 1)}
    return tuple(sorted(quarters | set(settings.checkpoints)))


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


@contextmanager
def gradient_checkpointing(generator: Generator, enabled: bool) -> Iterator[None]:
    """Inside, the UNet keeps fewer activations and computes them again in the backward pass: the same gradients."""
    if enabled:
        generator.unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if enabled:
            generator.unet.disable_gradient_checkpointing()


def invert_batch(
    generator: Generator,
    pixels: Images,
    initial: Tokens,
    ids: tuple[str, ...],
    settings: InvertSettings,
    advance: Callable[[int], None] = lambda n: None,
    state: UnitState | None = None,
    at_once: int | None = None,
) -> BatchResult:
    """Optimise the vectors of a unit side by side, `at_once` (default: all) in memory at a time.

    They share nothing: AdamW works element by element. An image whose loss, gradient or vector stops being finite (or
    whose vector leaves the norms that are stored) stays where it last was finite and is learned again from its start
    at a third of the rate, twice at most, with the same draws; the others do not notice. With `state` a long unit is
    saved now and then, and goes on from there with the same bits.
    """
    at_once = at_once or len(ids)
    latents = encode(generator, pixels, at_once)  # once; a fresh sample at every step
    bank = EvaluationBank.draw(generator, latents, ids, settings)
    inputs = UnitInputs(generator, settings, ids, latents, bank, initial.to(generator.device), at_once)
    empty = generator.text_tokens([EMPTY_PROMPT]).expand(len(ids), -1, -1)
    saved = state.load() if state is not None else None
    result = _nothing_yet(inputs) if saved is None else _unpack(saved)
    first = 0 if saved is None else int(saved["attempt"])
    if first:
        advance(settings.steps * len(ids))
    for attempt in range(first, RETRIES + 1):
        rows = torch.arange(len(ids)) if attempt == 0 else result.causes.nonzero().flatten()
        if len(rows) == 0:
            break
        count = advance if attempt == 0 else lambda n: None
        tried = _attempt(inputs, rows, attempt, result, count, state, saved)
        result, saved = _filled(result, rows, tried), None
    null_losses = bank.loss(generator, empty, at_once)
    lost = (result.causes == 0) & ~null_losses.isfinite()
    return replace(
        result,
        null_losses=null_losses.where(null_losses.isfinite(), torch.zeros(())),
        causes=result.causes.where(~lost, torch.tensor(_LOSS)),
    )


def _attempt(
    inputs: UnitInputs,
    rows: Int64[Tensor, " rows"],
    attempt: int,
    before: BatchResult,
    advance: Callable[[int], None],
    state: UnitState | None,
    saved: dict[str, Tensor] | None,
) -> BatchResult:
    """Learn these rows of the inputs from their start, at the rate of this attempt."""
    generator, settings, ids = inputs.generator, inputs.settings, [inputs.ids[row] for row in rows.tolist()]
    rate = settings.learning_rate / RETRY_FACTOR**attempt
    latent_dist, bank = inputs.latents, inputs.bank
    if attempt:
        on_device = rows.to(generator.device)
        latent_dist = rows_of(latent_dist, rows)
        bank = EvaluationBank(bank.latents[:, on_device], bank.noise[:, on_device], bank.timesteps[:, on_device])
    run = _Trajectory.begin(inputs, rows, rate)
    first = 0
    if saved is not None:
        first = run.restore(saved)
        advance(first * len(ids))
    place = {row: index for index, row in enumerate(rows.tolist())}
    for step in range(first, settings.steps + 1):
        if state is not None and step > first:
            state.offer(partial(run.progress, step, attempt, before))
        if step in curve_steps(settings):
            losses = bank.loss(generator, run.vectors.detach(), inputs.at_once)
            run.stop(~losses.isfinite(), _LOSS, step)
            run.losses.append(losses)
        if step in settings.checkpoints:
            run.kept.append(run.vectors.detach().cpu().clone())
        if step == settings.steps:
            break
        if bool((run.causes > 0).all()):
            advance((settings.steps - step) * len(ids))
            return run.result(rate, complete=False)
        scheduled = mini_batch(settings, step, len(inputs.ids))
        batch = torch.tensor([place[row] for row in scheduled if row in place], dtype=torch.int64)
        run.step(inputs, latent_dist, batch, loss_scale(generator, latent_dist.mean, attempt), len(scheduled), step)
        advance(len(ids))
    return run.result(rate, complete=True)


@dataclass
class _Trajectory:
    """Vectors on their way: `causes` and `stopped` (n,) on the CPU say which have stopped, why and where."""

    vectors: Tensor
    optimizer: torch.optim.AdamW
    streams: list[torch.Generator]
    kept: list[Tensor]
    losses: list[Tensor]
    causes: Tensor
    stopped: Tensor

    @classmethod
    def begin(cls, inputs: UnitInputs, rows: Int64[Tensor, " rows"], rate: float) -> _Trajectory:
        settings = inputs.settings
        vectors = inputs.initial[rows.to(inputs.initial.device)].clone().requires_grad_(True)
        optimizer = torch.optim.AdamW([vectors], lr=rate, weight_decay=settings.weight_decay)
        streams = [generator_for(settings.seed, "invert", inputs.ids[row]) for row in rows.tolist()]
        none = torch.zeros(len(rows), dtype=torch.int64)
        run = cls(vectors, optimizer, streams, [], [], none, none.clone())
        run.stop(~_usable(vectors.detach()), _VECTOR, 0)
        return run

    def stop(self, which: Tensor, cause: int, step: int) -> None:
        """Note the images of a mask (n,) as stopped, unless they are."""
        new = which.cpu() & (self.causes == 0)
        self.causes[new], self.stopped[new] = cause, step

    def step(
        self, inputs: UnitInputs, latent_dist: LatentDistribution, batch: Tensor, scale: float, share: int, step: int
    ) -> None:
        """One AdamW step on all vectors; `batch` holds the rows with a loss, the others see momentum and decay alone.

        A joint group's loss is the mean over its mini-batch of `share` images, as in the reference code; independent
        images are summed, so that a gradient does not depend on the size of the batch.
        """
        generator, whole = inputs.generator, len(batch) == len(self.vectors)
        gradient = torch.zeros_like(self.vectors)
        if len(batch):
            on_device = batch.to(generator.device)
            drawn_from = latent_dist if whole else rows_of(latent_dist, batch)
            latents, noise, timesteps = draw(generator, drawn_from, [self.streams[row] for row in batch.tolist()])
            vectors = self.vectors.detach() if whole else self.vectors.detach()[on_device]
            loss, found = gradients(generator, latents, noise, timesteps, vectors, inputs.at_once, scale)
            gradient[on_device] = found if inputs.settings.grouping == "independent" else found / share
            bad_loss = torch.zeros(len(self.causes), dtype=torch.bool)
            bad_loss[batch] = ~loss.isfinite().cpu()
            self.stop(bad_loss, _LOSS, step)
            self.stop(~gradient.flatten(1).isfinite().all(1), _GRADIENT, step)
        live = (self.causes == 0).to(generator.device)[:, None, None]
        before = self.vectors.detach().clone()
        self.vectors.grad = gradient.where(live, torch.zeros_like(gradient))
        self.optimizer.step()
        self.stop(~_usable(self.vectors.detach()), _VECTOR, step + 1)
        live = (self.causes == 0).to(generator.device)[:, None, None]
        with torch.no_grad():
            self.vectors.copy_(self.vectors.where(live, before))

    def result(self, rate: float, *, complete: bool) -> BatchResult:
        count = len(self.causes)
        kept = torch.stack(self.kept) if complete else torch.zeros(0, *self.vectors.shape)
        losses = torch.stack(self.losses) if complete else torch.zeros(0, count)
        rates = torch.full((count,), rate, dtype=torch.float64)
        return BatchResult(kept, losses, torch.zeros(count), rates, self.causes, self.stopped)

    def progress(self, step: int, attempt: int, before: BatchResult) -> dict[str, Tensor]:
        """All that a unit needs to go on after `step` steps of this attempt; `before` is what earlier ones found."""
        moments = self.optimizer.state[self.vectors]
        return {
            "attempt": torch.tensor(attempt),
            "step": torch.tensor(step),
            "vectors": self.vectors,
            "exp_avg": moments["exp_avg"],
            "exp_avg_sq": moments["exp_avg_sq"],
            "streams": torch.stack([stream.get_state() for stream in self.streams]),
            "causes": self.causes,
            "stopped": self.stopped,
            **{f"kept.{place:03d}": tensor for place, tensor in enumerate(self.kept)},
            **{f"loss.{place:03d}": tensor for place, tensor in enumerate(self.losses)},
            **{f"before.{name}": getattr(before, name) for name in _FIELDS},
        }

    def restore(self, saved: dict[str, Tensor]) -> int:
        """Put back what `progress` took; return the steps that are done."""
        device = self.vectors.device
        with torch.no_grad():
            self.vectors.copy_(saved["vectors"])
        self.optimizer.state[self.vectors] = {
            "step": saved["step"].float(),
            "exp_avg": saved["exp_avg"].to(device),
            "exp_avg_sq": saved["exp_avg_sq"].to(device),
        }
        for stream, position in zip(self.streams, saved["streams"], strict=True):
            stream.set_state(position.clone())  # set_state ignores the offset of a view
        self.kept += [saved[name] for name in sorted(saved) if name.startswith("kept.")]
        self.losses += [saved[name] for name in sorted(saved) if name.startswith("loss.")]
        self.causes, self.stopped = saved["causes"], saved["stopped"]
        return int(saved["step"])


_FIELDS = ("vectors", "losses", "null_losses", "rates", "causes", "stopped")


def _usable(vectors: Tokens) -> Tensor:
    """Which vectors (n,) are finite, and short enough to be read again."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return (norms <= LARGEST_NORM).all(-1)  # false for NaN


def _nothing_yet(inputs: UnitInputs) -> BatchResult:
    count, settings = len(inputs.ids), inputs.settings
    return BatchResult(
        vectors=torch.zeros(len(settings.checkpoints), *inputs.initial.shape),
        losses=torch.zeros(len(curve_steps(settings)), count),
        null_losses=torch.zeros(count),
        rates=torch.full((count,), settings.learning_rate, dtype=torch.float64),
        causes=torch.zeros(count, dtype=torch.int64),
        stopped=torch.zeros(count, dtype=torch.int64),
    )


def _unpack(saved: dict[str, Tensor]) -> BatchResult:
    return BatchResult(**{name: saved[f"before.{name}"] for name in _FIELDS})


def _filled(result: BatchResult, rows: Int64[Tensor, " rows"], tried: BatchResult) -> BatchResult:
    """`result` with what an attempt found for its rows."""
    vectors, losses = result.vectors.clone(), result.losses.clone()
    rates, causes, stopped = result.rates.clone(), result.causes.clone(), result.stopped.clone()
    rates[rows], causes[rows], stopped[rows] = tried.rates, tried.causes, tried.stopped
    good = tried.causes == 0
    if bool(good.any()):
        vectors[:, rows[good]], losses[:, rows[good]] = tried.vectors[:, good], tried.losses[:, good]
    return BatchResult(vectors, losses, result.null_losses, rates, causes, stopped)
