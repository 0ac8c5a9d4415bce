"""Stage 1 (paper, section 3.1): learn one conditioning vector per image, everything else frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from ..config.settings import InvertSettings
from ..data.forgotten import forgotten_rows
from ..data.images import LabelledImages, changed, to_model_range
from ..engine.frozen_settings import freeze_settings, listed
from ..engine.ledger import Ledger
from ..engine.lock import run_lock
from ..engine.memory import within_memory
from ..engine.progress import already, track
from ..engine.state import UnitState, clear_states
from ..engine.units import each_unit, unit_name
from ..errors import ConfigMismatchError, PartialError, UsageError
from ..generator.generator import Generator, Images
from ..generator.sides import require_side
from ..randomness import generator_for, shuffled
from . import philox
from .embeddings import CONFIG_FILE, SCHEMA, Embeddings, EmbeddingStore, Shard
from .optimisation import curve_steps, gradient_checkpointing, invert_batch
from .slots import Slots, slots_for
from .trajectory import BatchResult

RANDOM_BOUND = 0.1


def invert(
    images: LabelledImages, generator: Generator, out: str | Path, settings: InvertSettings | None = None
) -> Embeddings:
    """Learn a vector c (tokens x width) for every image and store it below `out`; return all stored vectors.

    c* = argmin_c E_{eps, t} ||eps - eps_theta(z_t, t, c)||^2 (section 3.1), each image on its own, AdamW at a
    constant rate (`grouping="joint"`: in groups, as the reference code). A v-prediction model is optimised on its own
    training target instead, since at its pure-noise end the noise prediction tells nothing. Images already in `out`
    are not learned again, so a killed call goes on, and a call with more images learns the new ones.

    Raises UsageError (bad resolution or tokens), ConfigMismatchError (`out` was made otherwise, or images in it
    changed), PartialError (vectors of some images are not finite; the rest is kept), LockedError, DiskError.
    """
    settings = settings or InvertSettings()
    resolution = settings.resolution or generator.resolution
    check(generator, settings, resolution)
    run = Path(out)
    with run_lock(run):
        store = EmbeddingStore(run)
        tried = store.images()
        begun = store.begun()
        described = _as_begun(run, made_from(images, generator, settings, resolution), begun)
        freeze_settings(run, "invert", described, begun=begun)
        require_same_images(images, tried, run)
        if gone := forgotten_rows(images, run, "train"):
            raise UsageError(
                f"{images.ids[gone[0]]}: {run} was told to forget it. Leave such images out ({len(gone)})."
            )
        means_of = begun_with(images, store) if settings.init == "class-mean" else None
        store.begin(
            {
                "class_names": list(images.class_names),
                "steps": list(settings.checkpoints),
                "curve_steps": list(curve_steps(settings)),
                "generator_hash": generator.hash,
                "resolution": resolution,
                "image_size": images.size,
                **({"vector_dtype": settings.vector_dtype} if settings.vector_dtype != "float32" else {}),
                **({} if means_of is None else {"means_of": means_of}),
            }
        )
        left = len(images) - len(tried)
        already("invert", len(tried), len(images), "vectors")
        means = None
        if left and means_of is not None:
            first_ones = images.subset([images.row_of[one] for one in means_of if one in images.row_of])
            means = class_means(first_ones, generator, settings, resolution)
        room = most_at_once(settings)
        slots = Slots() if "draws" in described else None
        with (
            track("invert", left * max(1, settings.steps), "image-steps", 1 / max(1, settings.steps)) as advance,
            gradient_checkpointing(generator, settings.gradient_checkpointing),
        ):

            def learn(unit: tuple[str, ...]) -> None:
                nonlocal room
                batch = images.subset([images.row_of[image_id] for image_id in unit])
                pixels = to_model_range(batch.resized(resolution).images)
                initial = means[batch.labels] if means is not None else guesses(batch, pixels, generator, settings)
                learned_from = [described, batch.hashes, batch.labels.tolist()]
                counted = 0

                def compute(at_once: int) -> tuple[BatchResult, UnitState]:
                    nonlocal counted
                    advance(-counted)  # what a larger size had done is done again
                    counted = 0

                    def count(n: int) -> None:
                        nonlocal counted
                        counted += n
                        advance(n)

                    state = UnitState(store.folder, unit, [*learned_from, at_once])
                    return invert_batch(generator, pixels, initial, unit, settings, count, state, at_once, slots), state

                # A unit that is done again is computed as it was, for the same bits.
                whole, before = min(most_at_once(settings), len(unit)), store.manifest.dropped().get(unit_name(unit))
                first = min(whole, room) if before is None else before.get("at_once", whole)
                (result, state), at_once = within_memory(compute, first)
                if at_once < first:
                    room = at_once  # for the units that follow too
                shard = Shard(unit, batch.labels, result.vectors, result.losses, result.null_losses)
                notes = result.notes(unit, settings.learning_rate)
                if at_once < whole:
                    notes["at_once"] = at_once
                store.commit(shard.rows(result.causes == 0), batch, notes)
                state.clear()

            each_unit(run, learning_order(images.ids, settings), store.manifest, unit_size(settings), learn)
        store.finish()
        clear_states(store.folder)
    failed = store.failed()
    if left and failed:
        first = next(iter(failed))
        raise PartialError(
            f"{len(failed)} of {len(images)} images gave vectors that are not finite (first: {first}: "
            f"{failed[first]}); the others are kept. Run the same command again to go on without them, or begin "
            "another folder with a lower --invert-learning-rate or --dtype float32.",
            {"failed": failed},
        )
    return store.read()


def unit_size(settings: InvertSettings) -> int:
    """Images that are learned and committed together: a batch of independent ones, or a joint group."""
    return settings.batch_size if settings.grouping == "independent" else settings.group_size


def most_at_once(settings: InvertSettings) -> int:
    """Images in memory at a time, where it suffices."""
    return settings.batch_size if settings.grouping == "independent" else settings.joint_batch_size


def learning_order(ids: Sequence[str], settings: InvertSettings) -> list[str]:
    """The ids in the order in which units are cut from them.

    Joint groups are cut from a shuffled order (by seed and id), so that they hold all classes: the reference code
    cuts them from TensorFlow Datasets' order, which is shuffled. Its MedMNIST groups are of one class; ours are not.
    """
    if settings.grouping == "independent":
        return list(ids)
    return shuffled(ids, settings.seed)


def require_same_images(images: LabelledImages, tried: dict[str, tuple[str, int]], run: Path) -> None:
    """Raise ConfigMismatchError where images that were learned are gone or have other pixels or another label.

    Images that are new are welcome: they alone are learned.
    """
    if lines := [f"{image_id}: {what}" for image_id, what in changed(tried, images.contents)]:
        raise ConfigMismatchError(
            f"{run}: {len(lines)} of the {len(tried)} images that were learned changed:\n{listed(lines)}\n"
            f"Restore the data and the options that select it, or choose another run folder. Or take them out, with "
            f"all that was made from them: `dinv forget {run} --source ID` for one, `--changed` for all of these."
        )


def check(generator: Generator, settings: InvertSettings, resolution: int) -> None:
    """Raise UsageError for settings that this generator cannot do, before anything is computed or written."""
    require_side(generator, resolution, option="--resolution")
    if settings.init == "random":
        return
    if generator.adapter is not None and settings.tokens != generator.adapter.tokens:
        raise UsageError(
            f"tokens={settings.tokens}: the adapter of {generator.name} gives {generator.adapter.tokens}. "
            "Use that many, or --init random."
        )
    if settings.tokens > generator.tokenizer.model_max_length:
        raise UsageError(
            f"tokens={settings.tokens}: more than the text encoder's {generator.tokenizer.model_max_length}. "
            "Use fewer, or --init random."
        )


def made_from(
    images: LabelledImages, generator: Generator, settings: InvertSettings, resolution: int
) -> dict[str, Any]:
    """Everything the learned vectors depend on, but the images, as JSON data.

    Gradient checkpointing is left out: it computes the same numbers twice. `draws` is there where random numbers come
    from counters and not from streams.
    """
    return {
        "schema": SCHEMA,
        "settings": settings.described({"gradient_checkpointing"}),
        "resolution": resolution,
        "class_names": list(images.class_names),
        "image_size": images.size,
        "generator": generator.record,
        **({"draws": philox.NAME} if slots_for(generator, settings) is not None else {}),
    }


def _as_begun(run: Path, described: dict[str, Any], begun: bool) -> dict[str, Any]:
    """The settings with what the run began with, where either will do.

    That is its classes, where others were only added behind them: no vector depends on classes but its own. And how
    random numbers are drawn: a run that was begun on a CPU goes on with streams on a GPU, and one begun there with
    counters on a CPU.
    """
    frozen = Ledger(run).read_json(CONFIG_FILE) or {}
    names = frozen.get("class_names")
    if isinstance(names, list) and described["class_names"][: len(names)] == names:
        described = {**described, "class_names": names}
    if begun and frozen:
        described = {name: value for name, value in described.items() if name != "draws"}
        if frozen.get("draws") == philox.NAME:
            described["draws"] = philox.NAME
    return described


def guesses(
    images: LabelledImages, pixels: Images, generator: Generator, settings: InvertSettings
) -> Float32[Tensor, "images tokens features"]:
    """Starting vectors (N, tokens, width) on the CPU for one batch.

    warm: the adapter's tokens of the image, or the class name's text tokens where the generator has no adapter;
    random: uniform in +-0.1 (the reference code's +-1 / sqrt(group of 100)), in joint groups +-1 / sqrt(group_size).
    """
    if settings.init == "random":
        shape = (settings.tokens, generator.text_width)
        draws = [torch.rand(shape, generator=generator_for(settings.seed, "init", i)) for i in images.ids]
        bound = RANDOM_BOUND if settings.grouping == "independent" else settings.group_size**-0.5
        return 2 * bound * torch.stack(draws) - bound
    if generator.adapter is not None:
        return generator.image_tokens(pixels).cpu()
    return generator.text_tokens(list(images.class_names)).cpu()[images.labels, : settings.tokens]


def begun_with(images: LabelledImages, store: EmbeddingStore) -> list[str]:
    """Ids of the images whose class means vectors start at: those that the run began with, and all of later classes.

    So a vector that is learned again starts where it did, whatever was added to its class since.
    """
    known = (store.manifest.last("header") or {}).get("means_of", [])
    classes = {image_id: label for image_id, label in zip(images.ids, images.labels.tolist(), strict=True)}
    has = {classes[image_id] for image_id in known if image_id in classes}
    return [*known, *(image_id for image_id, label in classes.items() if label not in has)]


def class_means(
    images: LabelledImages, generator: Generator, settings: InvertSettings, resolution: int
) -> Float32[Tensor, "classes tokens features"]:
    """Mean of the warm guesses over each class (class-mean start); zero for a class without images."""
    sums = torch.zeros(len(images.class_names), settings.tokens, generator.text_width)
    for start in range(0, len(images), settings.batch_size):
        batch = images.subset(range(start, min(start + settings.batch_size, len(images))))
        pixels = to_model_range(batch.resized(resolution).images)
        sums.index_add_(0, batch.labels, guesses(batch, pixels, generator, settings))
    counts = torch.bincount(images.labels, minlength=len(images.class_names)).clamp(min=1)
    return sums / counts[:, None, None]
