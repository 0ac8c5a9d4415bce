"""The loop of stage 1: AdamW on the vectors of one unit, and what becomes of an image whose numbers run away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor

from ..config.settings import InvertSettings
from ..engine.state import UnitState
from ..generator.generator import EMPTY_PROMPT, Generator, Images, Tokens
from .embeddings import NOT_FINITE
from .objective import EvaluationBank, encode
from .slots import Slots
from .trajectory import RETRIES, BatchResult, Trajectory, UnitInputs

CURVE_POINTS = 4
RETRY_FACTOR = 3.0  # of the learning rate, by which each further attempt is slower


def quarters(settings: InvertSettings) -> tuple[int, ...]:
    """The start, the quarters of the steps and the last step: where it is seen whether an image is to end early."""
    return tuple(sorted({round(settings.steps * k / CURVE_POINTS) for k in range(CURVE_POINTS + 1)}))


def curve_steps(settings: InvertSettings) -> tuple[int, ...]:
    """Steps at which the loss on the evaluation bank is measured: quarters, and every kept step."""
    return tuple(sorted({*quarters(settings), *settings.checkpoints}))


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
    slots: Slots | None = None,
) -> BatchResult:
    """Optimise the vectors of a unit side by side, `at_once` (default: all) in memory at a time.

    They share nothing: AdamW works element by element. An image whose loss, gradient or vector stops being finite (or
    whose vector leaves the norms that are stored) stays where it last was finite and is learned again from its start
    at a third of the rate, twice at most, with the same draws; the others do not notice. With `state` a long unit is
    saved now and then, and goes on from there with the same bits. An image that ends early (`early_stopping`) leaves
    its place to the next of the unit: at every step those that go on are taken `at_once` together. With `slots` the
    draws come from counters, and the steps of a unit of independent images are replayed on a GPU.
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
        tried = _attempt(inputs, rows, attempt, result, count, state, saved, slots)
        result, saved = _filled(result, rows, tried), None
    null_losses = bank.loss(generator, empty, at_once)
    # It is only reported: where it is not finite the vectors are as good as they were.
    return replace(result, null_losses=null_losses.where(null_losses.isfinite(), torch.tensor(NOT_FINITE)))


def _attempt(
    inputs: UnitInputs,
    rows: Int64[Tensor, " rows"],
    attempt: int,
    before: BatchResult,
    advance: Callable[[int], None],
    state: UnitState | None,
    saved: dict[str, Tensor] | None,
    slots: Slots | None,
) -> BatchResult:
    """Learn these rows of the inputs from their start, at the rate of this attempt."""
    settings, count, bank = inputs.settings, len(rows), inputs.bank
    rate = settings.learning_rate / RETRY_FACTOR**attempt
    if attempt:
        bank = bank.rows(rows)
    run = Trajectory(inputs, rows, rate, attempt) if slots is None else slots.begin(inputs, rows, rate, attempt)
    first = 0
    if saved is not None:
        first = run.restore(saved)
        advance(first * len(run.going) + settings.steps * (count - len(run.going)))
    curve, looks = curve_steps(settings), quarters(settings)
    for step in range(first, settings.steps + 1):
        if state is not None and step > first:
            state.offer(partial(run.progress, step, attempt, before))
        if step in curve:
            run.measure(bank, step)
        if settings.early_stopping is not None and step in looks[1:-1]:
            since = run.losses[curve.index(looks[looks.index(step) - 1])]
            advance(run.end(step, since, settings.early_stopping) * (settings.steps - step))
        if step in settings.checkpoints:
            run.keep()
        if step == settings.steps:
            break
        if run.nobody_left(step):
            advance((settings.steps - step) * count)
            return run.result(complete=False)
        if len(run.going):
            run.step(step)
            advance(len(run.going))
    return run.result(complete=True)


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
    return BatchResult(**{field.name: saved[f"before.{field.name}"] for field in fields(BatchResult)})


def _filled(result: BatchResult, rows: Int64[Tensor, " rows"], tried: BatchResult) -> BatchResult:
    """`result` with what an attempt found for its rows."""
    vectors, losses = result.vectors.clone(), result.losses.clone()
    rates, causes, stopped = result.rates.clone(), result.causes.clone(), result.stopped.clone()
    rates[rows], causes[rows], stopped[rows] = tried.rates, tried.causes, tried.stopped
    good = tried.causes == 0
    if bool(good.any()):
        vectors[:, rows[good]], losses[:, rows[good]] = tried.vectors[:, good], tried.losses[:, good]
    return BatchResult(vectors, losses, result.null_losses, rates, causes, stopped)
