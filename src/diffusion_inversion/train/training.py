"""Train one classifier on real images, on synthetic ones, or on both."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.training import TrainSettings
from ..data.images import LabelledImages
from ..engine.state import UnitState
from ..errors import DinvError
from ..generator.device import bfloat16_is_fast, resolve_device
from ..randomness import generator_for
from .adversarial import ascend
from .ahead import Part, require_there, saved_for
from .architectures import form_of
from .augment import make_augmentation
from .classifiers import Classifier, choose_architecture
from .gradients import Gradients
from .mixing import (
    Pool,
    batches_at,
    check_images,
    counts_at,
    make_pools,
    measure,
    shares_of,
    statistics_kept,
    weighted_loss,
)
from .recipes import make_optimizer, make_schedule, resolve, resolved
from .store import SCHEMA

# Steps whose losses are read together: a CPU has computed each when its step ends, other devices lag behind the host.
READ_EVERY, READ_ELSEWHERE = {"cpu": 1}, 50
_fingerprints: WeakKeyDictionary[LabelledImages, str] = WeakKeyDictionary()  # a run trains many on the same images


def train(
    images: LabelledImages,
    *,
    synthetic: LabelledImages | None = None,
    settings: TrainSettings | None = None,
    seed: int = 0,
    device: str = "auto",
    on_step: Callable[[int, float], None] | None = None,
    state: UnitState | None = None,
    part: Part | None = None,
) -> Classifier:
    """Train one classifier; return it in eval mode on `device`, as the last step left it.

    With `images` alone every batch comes from them, be they real or synthetic. With `synthetic` too, `images` are the
    real ones and `settings.mixing` says how both are mixed. Both have the same classes and the same side. Optimizer,
    schedule and their numbers are those of `settings.recipe` (train/recipes.py), by default the paper's.
    `settings.arms` and `settings.seeds` are not read here.

    The seed fixes the initial weights, the order of the images and their augmentation; equal arguments on one machine
    give equal weights. `on_step(step, loss)` is called for each step, step from 1 to settings.steps, in order: on the
    CPU at once, elsewhere when the losses of 50 steps are read, so that the host does not wait for each. With `state` a
    long training is saved now and then, and goes on from there with the same bits.

    With `part` the synthetic images are those of a queue that are there: it trains up to the last step that has no need
    of others, and saves there what the next call goes on from.

    Raises DataError for empty or mismatched images, without what the mixing reads of them, or where images of the queue
    that it needs are not there, UsageError for an unusable device, augmentation or architecture, DinvError when a loss
    that was read is not finite.
    """
    settings = settings or TrainSettings()
    recipe = resolve(settings)
    where = resolve_device(device)
    check_images(images, synthetic)
    measured = None if synthetic is None or part is not None else measure(images, synthetic, settings.mixing)
    pools = make_pools(images, synthetic, settings, seed, measured, None if part is None else part.window)
    last = settings.steps if part is None else part.last
    shares = shares_of(settings, len(pools))
    loss_of = F.cross_entropy if pools[0].weights is None else weighted_loss
    augmentation = make_augmentation(settings.augmentations, len(images.class_names))

    # Layers draw their initial weights from the global CPU generator; fork_rng gives it back untouched.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator_for("train", seed, "weights").get_state())
        classifier = Classifier(choose_architecture(settings.architecture, where), images.class_names, images.size)
    classifier.to(where).train()
    if where.type == "cuda":
        classifier.to(memory_format=torch.channels_last)

    def loss_of_step(batches: Sequence[Tensor], goals: Sequence[Tensor]) -> Tensor:
        with _arithmetic(where):
            logits = [classifier(batches[0])]
            with statistics_kept(classifier):
                logits += map(classifier, batches[1:])
        parts = [
            share * loss_of(one.float(), goal, label_smoothing=recipe.label_smoothing)
            for share, one, goal in zip(shares, logits, goals, strict=True)
        ]
        return torch.stack(parts).sum()

    gradients = Gradients(loss_of_step, list(classifier.parameters()), where)
    optimizer = make_optimizer(recipe, classifier.parameters(), fused=where.type == "cuda")
    schedule = make_schedule(recipe, optimizer, settings.steps)
    moves = generator_for("train", seed, "augmentation")
    losses = Losses(READ_EVERY.get(where.type, READ_ELSEWHERE), last)
    first = 0
    if (saved := saved_for(state, form_of(classifier.architecture, images.size))) is not None:
        first = _restore(saved, classifier, optimizer, schedule, moves, pools)
    if part is not None and first < last:
        require_there(part.window, first + 1, last, settings.steps, state)

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for step in range(first + 1, last + 1):
            batches, goals = [], []
            for drawn, labels in batches_at(step, settings, pools):
                batch, targets = augmentation(drawn, labels, moves)
                batches.append(batch)
                # Class numbers where nothing is mixed: the same loss as one-hot targets, and the bits it always had.
                goals.append(targets if augmentation.mixes or labels.is_floating_point() else labels)
            with _seeded(where, seed, step):
                loss = gradients(batches, goals)
            optimizer.step()
            schedule.step()
            read = losses.add(step, loss)
            if bad := next((one for one in read if not math.isfinite(one[1])), None):
                span = f" (of steps {read[0][0]} to {step}, whose losses were read together)" if len(read) > 1 else ""
                raise DinvError(
                    f"loss={bad[1]} at step {bad[0]}{span}: training diverged. Set learning_rate below "
                    f"{recipe.learning_rate:g}."
                )
            if settings.me_ada_every and step % settings.me_ada_every == 0 and step < settings.steps:
                _add_adversarial(classifier, pools, settings, seed, step)
            if on_step is not None:
                for done, value in read:
                    on_step(done, value)
            if state is not None and read and step < settings.steps:
                state.offer(partial(_progress, step, classifier, optimizer, schedule, moves, pools))

    if state is not None and first < last < settings.steps:
        state.save(_progress(last, classifier, optimizer, schedule, moves, pools))
    classifier.provenance = {"seed": seed, **provenance(images, synthetic, settings, where, measured)}
    if part is not None:
        classifier.provenance["images" if synthetic is None else "synthetic"] = part.described()
    return classifier.eval()


class Losses:
    """Losses of a training, left on their device and read some at a time: reading one waits for all that it needs."""

    def __init__(self, every: int, steps: int) -> None:
        """Read when there are `every`, and after the last of `steps`."""
        self.every, self.steps = every, steps
        self._waiting: list[Tensor] = []  # scalars, of the steps up to the last one added

    def add(self, step: int, loss: Tensor) -> list[tuple[int, float]]:
        """Take the loss of the next step; return (step, loss) of those that were read now, in order, mostly none."""
        self._waiting.append(loss.detach())
        if len(self._waiting) < self.every and step < self.steps:
            return []
        values = torch.stack(self._waiting).tolist()
        self._waiting.clear()
        return list(enumerate(values, start=step - len(values) + 1))


def _add_adversarial(classifier: Classifier, pools: list[Pool], settings: TrainSettings, seed: int, step: int) -> None:
    """One maximisation phase of ME-ADA: copies of a share of the images that the next step draws from join them.

    Only images that were given are copied, as they are, without augmentation. Copies are rounded to whole pixels.
    """
    where = next(classifier.parameters()).device
    classifier.eval()
    for place, (pool, count) in enumerate(zip(pools, counts_at(step + 1, settings, len(pools)), strict=True)):
        if not count:
            continue
        order = torch.randperm(pool.given, generator=generator_for("train", seed, "adversarial", place, step))
        rows = order[: max(round(settings.me_ada_share * pool.given), 1)]
        copies = []
        for part in rows.split(resolve(settings).batch_size):
            with _arithmetic(where):
                moved = ascend(
                    classifier.logits,
                    pool.images[part].to(where).float() / 255,
                    pool.targets(part).to(where),
                    steps=settings.me_ada_steps,
                    rate=settings.me_ada_rate,
                    gamma=settings.me_ada_gamma,
                    eta=settings.me_ada_eta,
                )
            copies.append((moved * 255).round().to(torch.uint8).cpu())
        pool.add(torch.cat(copies), pool.labels[rows], None if pool.soft is None else pool.soft.rows(rows))
    classifier.train()


@contextmanager
def _seeded(device: torch.device, seed: int, step: int) -> Iterator[None]:
    """Let dropout and stochastic depth draw by identity: they know PyTorch's global generators alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator_for("train", seed, "dropout", step).initial_seed())
        yield


def _arithmetic(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=training_precision(device) == torch.bfloat16)


def training_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where autocast to it was measured faster, float32 elsewhere. Weights and losses stay float32."""
    # ResNet-20, batch 128, 32 px, images/s on one thread of an AVX512-BF16 CPU, forward + backward + SGD:
    # float32 contiguous 393, channels_last 475; bfloat16 contiguous 560-700, channels_last 460-730.
    # So bfloat16, and no memory format of its own: channels last pays in batches of 128 and not in those of 32
    # (benchmarks/memory_format.py). On other CPUs bfloat16 is emulated. On an H100, channels last, batch 32, it takes
    # .93 of float32's time at 32 px, .67 at 64 px (benchmarks/training_speed.py).
    fast = bfloat16_is_fast(device)
    return torch.bfloat16 if fast else torch.float32


def _progress(
    step: int,
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    moves: torch.Generator,
    pools: list[Pool],
) -> dict[str, Tensor]:
    """All that a training needs to go on after `step` steps."""
    return {
        "step": torch.tensor(step),
        "form": torch.tensor(form_of(classifier.architecture, classifier.image_size)),
        "rate": torch.tensor(schedule.get_last_lr(), dtype=torch.float64),
        "moves": moves.get_state(),
        **{f"network.{name}": value for name, value in classifier.network.state_dict().items()},
        **{
            f"optimizer.{place}.{name}": value
            for place, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if isinstance(value, Tensor)
        },
        **{f"pool.{place}.{name}": value for place, pool in enumerate(pools) for name, value in pool.state().items()},
    }


def _restore(
    saved: dict[str, Tensor],
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    moves: torch.Generator,
    pools: list[Pool],
) -> int:
    """Put back what `_progress` took; return the steps that are done."""
    step = int(saved["step"])
    classifier.network.load_state_dict(_below("network.", saved))
    buffers: dict[int, dict[str, Tensor]] = {}
    for key, value in _below("optimizer.", saved).items():
        index, _, name = key.partition(".")
        buffers.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": buffers})
    (rate,) = saved["rate"].tolist()
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": step, "_step_count": step + 1, "_last_lr": [rate]})
    for group in optimizer.param_groups:
        group["lr"] = rate
    moves.set_state(saved["moves"])
    for place, pool in enumerate(pools):
        pool.restore(_below(f"pool.{place}.", saved))
    return step


def _below(prefix: str, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}


def fingerprint(images: LabelledImages) -> str:
    """sha256 hex of what a classifier sees: side, class names, labels, pixels and soft labels, in order.

    Computed once for each object, whose tensors nobody changes.
    """
    if images not in _fingerprints:
        _fingerprints[images] = _hash(images)
    return _fingerprints[images]


def _hash(images: LabelledImages) -> str:
    digest = hashlib.sha256(f"{tuple(images.images.shape)} {images.class_names}".encode())
    digest.update(images.labels.contiguous().numpy().data)
    digest.update(images.images.contiguous().numpy().data)
    if images.soft is not None:
        digest.update(images.soft.second.contiguous().numpy().data)
        digest.update(images.soft.weight.contiguous().numpy().data)
        if images.soft.answers is not None:
            digest.update(images.soft.answers.contiguous().numpy().data)
    return digest.hexdigest()


def digest_of(measured: Tensor) -> str:
    """sha256 hex of what a mixing reads of the synthetic images (N,)."""
    return hashlib.sha256(measured.contiguous().numpy().data).hexdigest()


def provenance(
    images: LabelledImages,
    synthetic: LabelledImages | None,
    settings: TrainSettings,
    device: torch.device,
    measured: Tensor | None,
) -> dict[str, Any]:
    """Describe, as JSON, all that decides a classifier's weights but its arm and seed: settings, arithmetic, data."""

    def describe(part: LabelledImages) -> dict[str, Any]:
        return {"name": part.name, "count": len(part), "sha256": fingerprint(part)}

    return {
        **recipe(settings, device),
        "images": describe(images),
        "synthetic": None if synthetic is None else describe(synthetic),
        **({} if measured is None else {"measured": digest_of(measured)}),
    }


def recipe(settings: TrainSettings, device: torch.device) -> dict[str, Any]:
    """Describe, as JSON, how a classifier is trained, whatever it is trained on: settings and arithmetic."""
    return {
        "schema": SCHEMA,
        "settings": resolved(settings).described({"architecture", "arms", "seeds"}),
        "recipe": asdict(resolve(settings)),
        "architecture": choose_architecture(settings.architecture, device),
        "device": device.type,
        "precision": str(training_precision(device)).removeprefix("torch."),
    }
