"""Seconds and memory of real steps on this machine: some of stage 1, of drawing and of training, done and thrown away.

All random numbers are drawn by identity or from streams made here, and no file is written, so a run computes the same
bits whether its steps were timed or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from ...config.sampling import SampleSettings, SchedulerName
from ...config.settings import InvertSettings
from ...config.training import TrainSettings
from ...data.datasets import Splits
from ...data.images import LabelledImages, resize, to_model_range, to_uint8
from ...engine.memory import is_out_of_memory
from ...engine.threads import follow
from ...errors import DataError
from ...generator.features import load_lite0, profile
from ...generator.generator import Generator
from ...generator.safety import load_safety_checker
from ...invert.inversion import guesses, most_at_once
from ...invert.optimisation import gradient_checkpointing, invert_batch
from ...invert.slots import slots_for
from ...randomness import generator_for
from ...sample.denoising import denoise
from ...sample.png import encode_png
from ...sample.variants import timesteps_of
from ...train.classifiers import Classifier, choose_architecture
from ...train.evaluation import predict
from ...train.recipes import resolve
from ...train.training import READ_ELSEWHERE, READ_EVERY, train
from ..bench.memory import own_peak
from ..coarseness import FEWEST_IMAGES, affordable, drawn
from ..coarseness import measure as measure_coarseness

FEW = 2  # images of a first look
STEPS = 3  # of each kind, beside one that warms up
_CURVE = 8  # steps of a stage 1 whose loss is measured at every second one
_TRAINED = 10_000  # steps that the schedule of a timed training has: more than are done
_TESTED = 500  # test images at most


@dataclass(frozen=True)
class Steps:
    """Seconds that parts of a run take, and bytes that they need at once."""

    begin: float  # of an image in stage 1 before its first step
    evaluation: float  # of one draw that measures an image's loss
    learning: float  # of a step of stage 1, for an image with a loss in it
    drawing: float  # of a variant: all its denoising steps, decoding, PNG
    likeness: float  # of comparing an image with its reconstruction
    setup: float  # of a classifier before its first step
    training: float  # of its step, a whole batch
    testing: float  # of a test image
    own_training: float  # the same two at the real images' own side; 0 where that is not trained
    own_testing: float
    autoencoder: float  # of the probe before stage 1, all of it
    memory: int  # bytes of the process, without synthetic images


class _Enough(Exception):
    """Ends work whose steps are timed."""


class _Clock:
    """Seconds between calls; after `most` of them, where it is given, it raises _Enough."""

    def __init__(self, device: torch.device, most: int | None = None) -> None:
        self.device, self.most = device, most
        self.spans: list[float] = []
        self.last = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, *_: object) -> None:
        now = self.now()
        self.spans.append(now - self.last)
        self.last = now
        if len(self.spans) == self.most:
            raise _Enough


def time_steps(
    splits: Splits,
    generator: Generator,
    invert: InvertSettings,
    sample: SampleSettings,
    train: TrainSettings,
    *,
    side: int,
    own: int | None,
    seconds: float,
) -> Steps:
    """Do real steps of each part at the run's batch size, or at as many images as `seconds` for each part allow.

    With 0 seconds it is a first look at two images. `side` and `own` are px of what the classifiers see (own_size.py).
    """
    follow()
    with torch.random.fork_rng(devices=[generator.device] if generator.device.type == "cuda" else []):
        resolution = invert.resolution or generator.resolution
        drawn_at = sample.resolution or resolution
        memory = _Memory()
        batch = min(most_at_once(invert), len(splits.train))
        with gradient_checkpointing(generator, invert.gradient_checkpointing), memory.of(batch) as at:
            (begin, evaluation, learning), at.count = at_size(
                lambda count: _stage1(splits.train, generator, invert, resolution, count), batch, seconds
            )
        whole = min(sample.batch_size, len(splits.train) * sample.variants)
        with memory.of(whole) as at:
            (drawing, likeness), at.count = at_size(
                lambda count: _stage2(generator, sample, invert.tokens, drawn_at, side, count), whole, seconds
            )
        with memory.of(1):
            setup, training, testing = _training(splits, train, side, generator.device, seconds)
            at_own = _training(splits, train, own, generator.device, seconds)[1:] if own else (0.0, 0.0)
            autoencoder = _autoencoder(splits.train, generator, drawn_at, side) if seconds else 0.0
        return Steps(
            begin, evaluation, learning, drawing, likeness, setup, training, testing, *at_own, autoencoder, memory.most
        )  # fmt: skip


def at_size(measure: Callable[[int], tuple[float, ...]], whole: int, seconds: float) -> tuple[tuple[float, ...], int]:
    """What `measure(count)` gives for the largest count up to `whole` that fits into `seconds`, and that count.

    The counts grow as far as what the one before took allows; the first, which warms up, stands where no more fits.
    """
    count, left = min(FEW, whole), seconds
    best: tuple[tuple[float, ...], int] | None = None
    while True:
        before = time.perf_counter()
        try:
            found = measure(count)
        except (MemoryError, RuntimeError) as error:
            if best is None or not is_out_of_memory(error):
                raise
            return best  # a run takes smaller parts then (engine/memory.py)
        took = time.perf_counter() - before
        left -= took
        more = min(whole, int(count * left / took))
        if more < count or (more == count and best is not None):
            return found, count
        best, count = (found, count), more


def _stage1(
    images: LabelledImages, generator: Generator, settings: InvertSettings, resolution: int, count: int
) -> tuple[float, float, float]:
    """Seconds for each image: before its first step, of one evaluation draw, of a step."""
    # The loss is measured at every second step, with one draw: three steps without it, two with it.
    update = {"steps": _CURVE, "keep_steps": (), "eval_draws": 1, "grouping": "independent", "early_stopping": None}
    probe = settings.model_copy(update=update)
    batch = images.subset(range(count))
    pixels = to_model_range(batch.resized(resolution).images)
    initial = guesses(batch, pixels, generator, probe)
    slots = slots_for(generator, settings)
    for _ in range(1 if slots is None else 3):  # on a GPU work is recorded first
        clock = _Clock(generator.device, 2 * STEPS)
        with suppress(_Enough):
            invert_batch(generator, pixels, initial, batch.ids, probe, clock, slots=slots)
    if slots is not None:
        slots.release()
    step = fmean(clock.spans[1::2])
    evaluation = max(fmean(clock.spans[2::2]) - step, 0.0)
    return max(clock.spans[0] - step - evaluation, 0.0) / count, evaluation / count, step / count


def _stage2(
    generator: Generator, settings: SampleSettings, tokens: int, resolution: int, side: int, count: int
) -> tuple[float, float]:
    """Seconds for each image: of drawing it, and of comparing it with its source."""
    stream = generator_for(0, "plan", "denoising")
    latent = resolution // generator.vae_factor
    noise = torch.randn(count, generator.latent_channels, latent, latent, generator=stream)
    vectors = torch.randn(count, tokens, generator.text_width, generator=stream)
    guided = any(scale != 1 for scale in settings.guidance_scales)
    scale = torch.full((count,), max(settings.guidance_scales))
    spaced = timesteps_of(generator, settings)
    how: tuple[SchedulerName, int] = settings.scheduler, settings.inference_steps
    for _ in range(2 if generator.device.type == "cuda" else 1):
        clock = _Clock(generator.device, STEPS + 1)
        with suppress(_Enough):
            denoise(generator, noise, vectors, vectors, scale, *how, clock, timesteps=spaced)
    step = fmean(clock.spans[1:] or clock.spans)
    times = generator.scheduler(*how, spaced).timesteps.double()
    low, high = settings.guidance_interval
    within = ((times / generator.training_timesteps >= low) & (times / generator.training_timesteps <= high)).double()
    passes = len(times) if not guided else float((1 + within).sum()) / 2  # a step without guidance is half of one with
    start = clock.now()
    drawn_images = generator.decode(noise.to(generator.device)).cpu()
    if settings.safety_checker and (checker := load_safety_checker(generator)) is not None:
        checker.flagged(drawn_images)
    for image in resize(to_uint8(drawn_images), side):
        encode_png(image)
    decoded = clock.now()
    lite0 = load_lite0().to(generator.device)
    profile(lite0, drawn_images.to(generator.device))
    return (step * passes + decoded - start) / count, 2 * (clock.now() - decoded) / count


def _training(
    splits: Splits, settings: TrainSettings, side: int, device: torch.device, seconds: float
) -> tuple[float, float, float]:
    """Seconds before the first optimizer step, of a step, and of a test image."""
    update = {"steps": max(_TRAINED, settings.steps), "me_ada_every": 0, "real_fraction": 0.5, "mixing": "batch"}
    probe = settings.model_copy(update=update)
    few = range(min(4 * resolve(settings).batch_size, len(splits.train)))
    images = splits.train.subset(few).resized(side)
    every = READ_EVERY.get(device.type, READ_ELSEWHERE)
    clock = _Clock(device)

    def on_step(step: int, loss: float) -> None:
        if step % every == 0:
            clock()
            if len(clock.spans) > STEPS and sum(clock.spans) >= seconds:
                raise _Enough

    with suppress(_Enough):
        train(images, settings=probe, device=str(device), on_step=on_step)
    with torch.random.fork_rng(devices=[]):
        architecture = choose_architecture(settings.architecture, device)
        classifier = Classifier(architecture, images.class_names, side).to(device)
    tested = splits.test.subset(range(min(_TESTED if seconds else FEW, len(splits.test)))).resized(side)
    start = clock.now()
    predict(classifier, tested)
    tested_in, span = clock.now() - start, fmean(clock.spans[1:])
    return max(clock.spans[0] - span, 0.0), span / every, tested_in / len(tested)


def _autoencoder(images: LabelledImages, generator: Generator, resolution: int, side: int) -> float:
    """Seconds of `coarseness`, by the fewest images that it takes; 0 where it cannot be done."""
    try:
        few, whole = drawn(images, FEWEST_IMAGES), drawn(images, affordable(generator, resolution))
        start = time.perf_counter()
        measure_coarseness(few, generator, resolution=resolution, used=side)
    except DataError:
        return 0.0
    return (time.perf_counter() - start) * len(whole) / len(few)


@dataclass
class _Share:
    """How many images a measurement had at once, of the run's `whole`."""

    whole: int
    count: int = 1


class _Memory:
    """The most that the process needs, in bytes: peaks of measurements, for as many images as the run has at once."""

    def __init__(self) -> None:
        self.most = own_peak()

    @contextmanager
    def of(self, whole: int) -> Iterator[_Share]:
        with suppress(OSError):  # elsewhere than on Linux the peak is the one since the process began
            Path("/proc/self/clear_refs").write_text("5")
        share, before = _Share(whole), own_peak()
        yield share
        self.most = max(self.most, round(before + (own_peak() - before) * max(share.whole / share.count, 1.0)))
