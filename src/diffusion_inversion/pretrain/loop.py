"""The training loop of every network: a budget, one step (on CUDA a graph), a log, and a state to go on from."""

from __future__ import annotations

import gc
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..engine.graphs import WARM_CALLS, record
from ..engine.memory import is_out_of_memory
from ..engine.signals import finishing
from ..errors import DinvError, UsageError
from ..generator.device import describe
from . import checkpoint
from .checkpoint import Progress
from .log import TrainingLog
from .optim import MixedPrecision, trapezoid

LOG_EVERY, VALIDATE_EVERY = 100, 500  # steps
SAVE_SECONDS = 120.0
GRAPH_CHUNK = 25  # replays of a CUDA graph between two looks at the clock; it divides LOG_EVERY


class PartEnded(DinvError):
    """The time of this call is over and the state is saved."""

    exit_code = 3


@dataclass(frozen=True)
class Budget:
    """How long to train: until `samples` images were seen, or for `minutes`, summed over every resumption."""

    samples: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("minutes", self.minutes)):
            if value is not None and not value > 0:
                raise UsageError(f"{name}: {value:g}, but training needs some. Give a number above 0.")
        if (self.samples is None) == (self.minutes is None):
            raise UsageError("training: give either a number of images or minutes.")

    def share(self, progress: Progress, batch_size: int) -> float:
        """The share of the budget that is spent, 0 to 1."""
        if (images := self._images(batch_size)) is not None:
            return min(1.0, progress.samples / images)
        assert self.minutes is not None
        return min(1.0, progress.seconds / (60 * self.minutes))

    def steps_left(self, progress: Progress, batch_size: int) -> int | None:
        """How many steps of such batches are left; None where the clock decides."""
        images = self._images(batch_size)
        return None if images is None else max(0, -(-(images - progress.samples) // batch_size))

    def _images(self, batch_size: int) -> int | None:
        """Those of whole batches: earlier ones may have been of another size, where memory was short."""
        return None if self.samples is None else max(1, self.samples // batch_size) * batch_size


class Task(ABC):
    """What is trained: its weights, the loss of a batch, and how well it does on held-out images."""

    name: str  # of the state and the log
    columns: tuple[str, ...]  # what `losses` reports
    validated: tuple[str, ...]  # what `validate` reports
    decay_share: float  # of the budget, at the end, in which the learning rate falls to zero
    weights: MixedPrecision
    batch_size: int
    least_batch = 1  # below which its loss is not defined

    @abstractmethod
    def losses(self) -> tuple[Tensor, Tensor]:
        """The loss of a batch drawn from the device's own generator, and `columns` as a vector; no synchronisation."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """`validated`, with the averaged weights, the same images and draws on every device."""


def fit(
    task: Task,
    folder: Path,
    budget: Budget,
    *,
    seed: int = 0,
    part_ends: float | None = None,
    on_save: Callable[[], None] | None = None,
    vae: str | None = None,
) -> Progress:
    """Train until the budget is spent; the same call goes on where a killed one saved, on a CPU with the same bits.

    A batch that does not fit in memory is halved, and the learning rates fall with its square root (`step_that_fits`).
    `on_save` is called after every save. `vae` is the hash of the autoencoder whose latents are learned, if any are.
    Raises PartEnded when `part_ends` (time.monotonic()) has come, KeyboardInterrupt after a signal, both with the state
    saved; DataError where the state is of another network; UsageError where it learned the latents of another
    autoencoder; DinvError where numbers are no longer finite, and as `step_that_fits`.
    """
    device = task.weights.lr.device
    state = folder / f"{task.name}.state.safetensors"
    modules: dict[str, nn.Module] = {
        "model": task.weights.model,
        "ema": task.weights.ema,
        checkpoint.MOMENTS: task.weights.muon,
    }
    with _device_random(device) as random:
        random.seed(seed)
        progress = checkpoint.restore(state, modules, {"adamw": task.weights.adamw}, random, vae)
        task.weights.restored()
        if budget.share(progress, task.batch_size) >= 1:
            print(f"{task.name}: its budget is spent, after {progress.samples:,} images", file=sys.stderr, flush=True)
            if on_save is not None:  # a kill may have come between the state and what follows from it
                on_save()
            return progress
        columns = ("lr", *task.columns, *task.validated)
        log = TrainingLog(folder / f"{task.name}.log.tsv", columns, progress.step, describe(device))
        started, saved_at = time.monotonic() - progress.seconds, time.monotonic()

        def lost(what: str) -> DinvError:
            return DinvError(
                f"{task.name}: {what} no longer finite at step {progress.step}. The state saved before is kept: go on "
                "with the same command, or begin anew with a lower learning rate."
            )

        def save() -> None:
            if not all(bool(weight.isfinite().all()) for weight in task.weights.model.parameters()):
                raise lost("the weights are")  # between two looks at the loss
            checkpoint.save(state, modules, {"adamw": task.weights.adamw}, progress, random, vae)
            if on_save is not None:
                on_save()

        sums = torch.zeros(len(task.columns) + 1, device=device)
        run, chunk = _make_step(task, budget, sums, progress)
        validated = dict.fromkeys(task.validated, float("nan"))
        try:
            while (done := budget.share(progress, task.batch_size)) < 1:
                with finishing():
                    factor = trapezoid(progress.step - progress.begun, done, task.decay_share)
                    count = chunk - progress.step % chunk  # so that every log and validation is met
                    if (left := budget.steps_left(progress, task.batch_size)) is not None:
                        count = min(count, left)
                    for _ in range(count):
                        task.weights.set_rates(factor, progress.step)
                        run()
                        progress.step += 1
                        progress.samples += task.batch_size
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    progress.seconds = time.monotonic() - started
                last = budget.share(progress, task.batch_size) >= 1
                if last or progress.step % VALIDATE_EVERY == 0:
                    validated = task.validate()
                if last or progress.step % LOG_EVERY == 0:
                    *means, steps = sums.tolist()
                    values = {name: mean / steps for name, mean in zip(task.columns, means, strict=True)}
                    if not all(map(math.isfinite, values.values())):
                        raise lost("the loss is")
                    rate = float(task.weights.lr)
                    log.write(progress.step, progress.samples, progress.seconds, lr=rate, **values, **validated)
                    sums.zero_()
                if part_ends is not None and time.monotonic() >= part_ends and not last:
                    raise PartEnded(
                        f"{task.name}: this part's time is over after {progress.samples:,} images; "
                        "the state is saved, the same command goes on."
                    )
                if time.monotonic() - saved_at >= SAVE_SECONDS and not last:
                    save()
                    saved_at = time.monotonic()
        except (PartEnded, KeyboardInterrupt):
            save()
            raise
        save()
    return progress


def _make_step(task: Task, budget: Budget, sums: Tensor, progress: Progress) -> tuple[Callable[[], None], int]:
    """The whole optimizer step as a function, and how often to call it between two looks at the clock."""

    def step() -> None:
        task.weights.zero_grad()
        loss, figures = task.losses()
        loss.backward()
        task.weights.step()
        with torch.no_grad():
            sums.add_(torch.cat([figures.detach().float(), figures.new_ones(1).float()]))

    fitting = partial(step_that_fits, task, step)
    if sums.device.type != "cuda":
        return fitting, 1
    # The first steps run without a graph (libraries choose their kernels in them), and are steps like the others.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_CALLS):
            share = budget.share(progress, task.batch_size)
            factor = trapezoid(progress.step - progress.begun, share, task.decay_share)
            task.weights.set_rates(factor, progress.step)
            fitting()
            progress.step += 1
            progress.samples += task.batch_size
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = record(step, sums.device, task.name)
    sums.zero_()
    return fitting if graph is None else graph.replay, GRAPH_CHUNK


def step_that_fits(task: Task, step: Callable[[], None]) -> None:
    """Call `step`; as often as memory does not suffice, halve the task's batch and call it again.

    Learning rates follow the square root of the batch, those of this step too, and stderr says so. Raises DinvError
    where half a batch would be less than the task's least.
    """
    while True:
        try:
            return step()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if task.batch_size // 2 < task.least_batch:
                raise DinvError(
                    f"{task.name}: out of memory with a batch of {task.batch_size}, the smallest that it can be halved "
                    f"to ({str(error).partition(chr(10))[0]}). Free memory of the device, or use one with more."
                ) from error
        # Here, where the traceback and the tensors that it held are gone.
        gc.collect()
        torch.cuda.empty_cache()
        before, task.batch_size = task.batch_size, task.batch_size // 2
        task.weights.scale_rates((task.batch_size / before) ** 0.5)
        print(f"{task.name}: out of memory, batches of {task.batch_size} from now on", file=sys.stderr, flush=True)


class _Random:
    """The generator that `losses` draws from: the device's own, since a CUDA graph can hold no other."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def seed(self, seed: int) -> None:
        (torch.cuda.manual_seed if self._cuda else torch.default_generator.manual_seed)(seed)

    def get(self) -> Tensor:
        return torch.cuda.get_rng_state() if self._cuda else torch.get_rng_state()

    def set(self, state: Tensor) -> None:
        (torch.cuda.set_rng_state if self._cuda else torch.set_rng_state)(state)


@contextmanager
def _device_random(device: torch.device) -> Iterator[_Random]:
    """The device's generator, given back afterwards as it was."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        yield _Random(device)
