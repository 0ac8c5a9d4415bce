"""Stage 2 (paper, section 3.2): draw variants around the learned vectors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..config.sampling import PACKED_FROM, SampleSettings, Storage
from ..data.images import LabelledImages, to_uint8
from ..engine.frozen_settings import freeze_settings, listed
from ..engine.lock import run_lock
from ..engine.memory import within_memory
from ..engine.progress import track
from ..errors import ConfigMismatchError, DataError, UsageError
from ..generator.generator import Generator
from ..generator.safety import SafetyChecker, check_safety_checker, draw_safely, load_safety_checker
from ..generator.sides import require_side
from ..invert.embeddings import Embeddings
from .balance import counts_of
from .columns import PARENT_VERSIONS, PARENTS, parents
from .drawing import draw_jobs, draw_missing, in_parts
from .strengths import Strengths, of_source
from .synthetic import SCHEMA, Row, SyntheticStore
from .variants import VariantPlan, draw_images, plan_variant, resolution_of, rival_of, timesteps_of


def sample(
    embeddings: Embeddings, generator: Generator, out: str | Path, settings: SampleSettings | None = None
) -> LabelledImages:
    """Draw `settings.variants` images per learned vector, store them below `out`/synthetic and return them.

    Each is eps = u + s (c_hat - u) with u from `settings.unconditional` and `settings.rival_weight`, and c_hat the
    perturbed vector. Images already there are not drawn again, so a killed call goes on, and a call with more variants
    or more vectors adds the missing ones.

    Raises UsageError (an option does not fit the generator), ConfigMismatchError (`out` or the vectors were made
    with another generator or settings), DataError (a step was not kept), LockedError, DiskError.
    """
    run = Path(out)
    draw_variants(embeddings, generator, run, settings or SampleSettings())
    return SyntheticStore(run, embeddings.class_names).read()


def draw_variants(
    embeddings: Embeddings,
    generator: Generator,
    run: Path,
    settings: SampleSettings,
    value_of: Mapping[str, str] | None = None,
    strengths: Strengths | None = None,
) -> None:
    """What `sample` does, without reading the images back.

    `value_of` has each source's value of the attribute that `settings.balance` names, if it does; `strengths` its
    noise strength where that is auto.
    """
    image_size = check(embeddings, generator, settings)
    labels = dict(zip(embeddings.ids, embeddings.labels.tolist(), strict=True))
    counts = counts_of(labels, settings, value_of)
    if (resolution := resolution_of(embeddings, settings)) != embeddings.resolution:
        learned = embeddings.resolution
        print(f"warning: resolution={resolution}: {elsewhere(learned)}", file=sys.stderr, flush=True)
    with run_lock(run):
        store = SyntheticStore(run, embeddings.class_names)
        checker = load_safety_checker(generator) if settings.safety_checker else None
        begun = bool(store.manifest.units())
        settings = settings.model_copy(update={"storage": storage_of(store, settings, sum(counts.values()))})
        freeze_settings(run, "sample", made_from(embeddings, generator, settings, checker), begun=begun)
        require_same_vectors(embeddings, store)
        how = _Drawing(embeddings, generator, settings, strengths)
        draw_missing(
            store,
            embeddings.ids,
            settings,
            image_size,
            checker,
            plan=how.plan,
            draw=how.draw,
            describe=how.describe,
            counts=None if settings.balance == "none" else counts,
            balance=settings.balance,
            storage=_kept_as(settings),
        )


def draw_jobs_of(
    store: SyntheticStore,
    embeddings: Embeddings,
    generator: Generator,
    settings: SampleSettings,
    jobs: Sequence[str],
    strengths: Strengths | None = None,
) -> None:
    """Draw variants, by `job_name`, into `store`, as `draw_variants` would; what is there is not drawn again.

    Call it inside `run_lock`, with the settings that the run's images were drawn with.
    """
    side, how = check(embeddings, generator, settings), _Drawing(embeddings, generator, settings, strengths)
    checker = load_safety_checker(generator) if settings.safety_checker else None
    draw_jobs(
        store, jobs, settings.batch_size, side, checker, plan=how.plan, draw=how.draw, describe=how.describe,
        storage=_kept_as(settings),
    )  # fmt: skip


@dataclass(frozen=True)
class _Drawing:
    """How variants are planned, drawn and described: what the loops of drawing.py take."""

    embeddings: Embeddings
    generator: Generator
    settings: SampleSettings
    strengths: Strengths | None

    def plan(self, source_id: str, variant: int, attempt: int) -> VariantPlan:
        own = of_source(self.settings, self.strengths, source_id)
        return plan_variant(self.embeddings, self.generator, own, self.embeddings.row_of[source_id], variant, attempt)

    def draw(self, plans: list[VariantPlan]) -> Tensor:
        return draw_images(self.embeddings, self.generator, plans, self.settings)

    def describe(self, plan: VariantPlan) -> Row:
        return metadata_row(self.embeddings, self.generator, self.settings, plan)


def check(embeddings: Embeddings, generator: Generator, settings: SampleSettings) -> int:
    """Raise what `sample` raises for settings that cannot be, before anything is done; return the image side in px."""
    width = embeddings.vectors.shape[-1]
    if width != generator.text_width:
        raise ConfigMismatchError(
            f"embeddings: width={width}, but {generator.name} takes {generator.text_width}. Load the generator they "
            "were learned on, or invert again."
        )
    if embeddings.generator_hash != generator.hash:
        raise ConfigMismatchError(
            f"{generator.name}: the vectors were learned on other weights ({embeddings.generator_hash[:12]}, these are "
            f"{generator.hash[:12]}). Load the generator they were learned on, or invert again."
        )
    return check_settings(
        generator,
        settings,
        steps=embeddings.steps,
        resolution=embeddings.resolution,
        image_size=embeddings.image_size,
        classes=len({*embeddings.labels.tolist()}),
    )


def storage_of(store: SyntheticStore, settings: SampleSettings, count: int) -> Storage:
    """How so many images are kept: as those that are there. Raises ConfigMismatchError where they are kept otherwise.

    Where none are there, as the settings say, or by their number.
    """
    asked, kept = settings.storage, store.storage
    if kept is None:
        return asked if asked != "auto" else "parquet" if count >= PACKED_FROM else "png"
    if asked not in ("auto", kept):
        raise ConfigMismatchError(
            f"{store.run}: storage: was {kept}, now {asked}; the images of a run are kept one way. Leave --storage "
            "out, or choose another run folder."
        )
    return kept


def _kept_as(settings: SampleSettings) -> Storage:
    """How what is drawn by the settings of a run is kept; they say so where it is not PNG."""
    return "parquet" if settings.storage == "parquet" else "png"


def check_settings(
    generator: Generator,
    settings: SampleSettings,
    *,
    steps: Sequence[int],
    resolution: int,
    image_size: int,
    classes: int,
) -> int:
    """Raise what `sample` raises for settings that cannot be, before there are vectors; return the image side in px.

    Vectors are to be kept at `steps`, learned at `resolution` px from images of `image_size` px in so many classes.
    Nothing large is read. Raises UsageError, DataError (a step that is not kept).
    """
    drawn_at = settings.resolution or resolution
    require_side(generator, drawn_at, option="--sample-resolution")
    if settings.strict and drawn_at != resolution:
        raise UsageError(f"resolution={drawn_at}, strict: {elsewhere(resolution)}")
    side = image_side(settings, drawn_at, image_size)
    if side > drawn_at:
        raise UsageError(f"image_size={side}: larger than the {drawn_at} px that are generated.")
    if settings.partner in ("other-class", "context") and classes == 1:
        raise UsageError(f"partner={settings.partner}: the vectors are of one class. Use same-class or nearest.")
    if settings.rival_weight and classes == 1:
        raise UsageError(f"rival_weight={settings.rival_weight:g}: the vectors are of one class. Leave it out.")
    if lacking := [step for step in settings.kept_steps if step not in steps]:
        raise DataError(
            f"kept_steps={lacking}: vectors of these steps are not kept (kept: {list(steps)}). "
            f"Invert with --keep-steps {','.join(map(str, lacking))}."
        )
    generator.scheduler(settings.scheduler, settings.inference_steps, timesteps_of(generator, settings))
    if settings.safety_checker:
        check_safety_checker(generator)
    return side


def image_side(settings: SampleSettings, resolution: int, image_size: int) -> int:
    """Side in px at which images are saved that are drawn at `resolution` for a data set of `image_size`."""
    return settings.image_size or min(image_size, resolution)


def elsewhere(learned: int) -> str:
    """What is wrong with another resolution than the vectors were learned at."""
    return (
        f"the vectors were learned at {learned} px, and at another resolution they do not give their images "
        f"(paper, section 5.2). Leave it out, or invert again with this --resolution."
    )


def stale_files(embeddings: Embeddings, store: SyntheticStore) -> list[str]:
    """Names of the images that were drawn from other vectors than those that are there."""
    version = dict(zip(embeddings.ids, embeddings.versions, strict=True))
    stale: list[str] = []
    for table in store.tables("file_name", *PARENTS, *PARENT_VERSIONS):
        names, *columns = (column.to_pylist() for column in table.columns)
        made = zip(names, parents(*columns[:3]), parents(*columns[3:]), strict=True)
        stale += [name for name, ids, of in made if any(version.get(i) != v for i, v in zip(ids, of, strict=True))]
    return stale


def require_same_vectors(embeddings: Embeddings, store: SyntheticStore) -> None:
    """Raise ConfigMismatchError where images in the run were drawn from vectors that are not there any more.

    New vectors are welcome. They change means and partners from then on; images that are drawn stay as they are.
    """
    if stale := stale_files(embeddings, store):
        run = store.run
        raise ConfigMismatchError(
            f"{run}: {len(stale)} of the {store.count} images come from vectors that changed since:\n{listed(stale)}"
            f"\n`dinv repair {run}` draws them again from the vectors that are there now."
        )


def reconstruct(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, rows: Sequence[int] | None = None
) -> UInt8[Tensor, "images 3 side side"]:
    """One image per learned vector, or per vector of `rows`, without perturbation (lambda = alpha = 0).

    Where variants share start noise, it starts at what they share.

    Returns uint8 (N, 3, R, R) at the side R at which images are drawn; white where the safety checker blanks every
    attempt.
    """
    rows = range(len(embeddings)) if rows is None else rows
    batches = [rows[start : start + settings.batch_size] for start in range(0, len(rows), settings.batch_size)]
    return torch.cat([images for _, images in in_batches(embeddings, generator, settings, batches)])


def in_batches(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, batches: Sequence[Sequence[int]]
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """What `reconstruct` returns, of one batch of rows after the other."""
    unperturbed = {"noise_strength": 0.0, "interpolation": 0.0, "shared_noise": 1.0 if settings.shared_noise else 0.0}
    # Of several kept steps and scales the last learned and the first given, alike for all images.
    alike = {"kept_steps": tuple(sorted(settings.kept_steps)[-1:]), "guidance_scales": settings.guidance_scales[:1]}
    plain = settings.model_copy(update={**unperturbed, **alike, "variants": 1})
    jobs = [[(row, 0) for row in batch] for batch in batches]
    yield from zip(batches, drawn(embeddings, generator, plain, jobs, "reconstruct"), strict=True)


def drawn(
    embeddings: Embeddings,
    generator: Generator,
    settings: SampleSettings,
    batches: Sequence[Sequence[tuple[int, int]]],
    what: str,
) -> Iterator[UInt8[Tensor, "batch 3 side side"]]:
    """Draw variants that are named by their row and number, one batch after the other, and store none of them.

    They are those that `sample` draws, but for white ones where the safety checker blanks every attempt. `what` is
    what the progress calls it.
    """
    if not batches:
        return
    checker = load_safety_checker(generator) if settings.safety_checker else None
    draw = partial(draw_images, embeddings, generator, settings=settings)

    def planner(batch: Sequence[tuple[int, int]]) -> Callable[[int, int], VariantPlan]:
        return lambda place, attempt: plan_variant(embeddings, generator, settings, *batch[place], attempt)

    def together(plans: list[VariantPlan]) -> Float[Tensor, "batch 3 side side"]:
        return within_memory(partial(in_parts, draw, plans), len(plans))[0]

    with track(what, sum(map(len, batches))) as advance:
        for batch in batches:
            names = [embeddings.ids[row] for row, _ in batch]
            _, images, _ = draw_safely(planner(batch), together, names, checker, white=True)
            yield to_uint8(images)
            advance(len(batch))


def described(settings: SampleSettings, learned_at: int, image_size: int) -> dict[str, Any]:
    """What an image depends on, as JSON data, beside vectors that were learned at `learned_at` px."""
    resolution = settings.resolution or learned_at
    plain = settings.model_copy(update={"resolution": None if resolution == learned_at else resolution})
    side = image_side(settings, resolution, image_size)
    return plain.described({"variants", "balance", "strict", "safety_checker"}) | {"image_size": side}


def made_from(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, checker: SafetyChecker | None
) -> dict[str, Any]:
    """Everything an image depends on, but the vectors, as JSON data.

    `variants` and `balance` are left out, so that more can be added later; each image's row names the version of its
    vectors.
    The safety checker that is in use stands for the setting: where there is none, the setting makes no difference.
    """
    timesteps = timesteps_of(generator, settings)
    return {
        "schema": SCHEMA,
        "settings": described(settings, embeddings.resolution, embeddings.image_size),
        "generator": generator.record,
        **({"timesteps": list(timesteps)} if timesteps else {}),
        **({"safety_checker": checker.hash} if checker else {}),
    }


def metadata_row(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, plan: VariantPlan
) -> dict[str, Any]:
    """How one image was made; see `columns.COLUMNS`."""
    return {
        "source_id": embeddings.ids[plan.source],
        "variant": plan.variant,
        "label": int(embeddings.labels[plan.source]),
        "partner_id": embeddings.ids[plan.partner],
        "interpolation": settings.interpolation,
        "noise_strength": plan.noise_strength,
        "guidance_scale": plan.guidance_scale,
        "inversion_step": plan.step,
        "scheduler": settings.scheduler,
        "inference_steps": settings.inference_steps,
        "timesteps": list(timesteps_of(generator, settings) or ()) or None,
        "seed": settings.seed,
        "generator": generator.name,
        "generator_hash": generator.hash,
        "generator_licence": generator.licence,
        "source_version": embeddings.versions[plan.source],
        "partner_version": embeddings.versions[plan.partner],
        "partner_label": int(embeddings.labels[plan.partner]),
        # Away from another class, or moved by the difference of the means, an image is of its source's class alone.
        "label_weight": 1 - max(settings.interpolation, 0.0) if settings.partner == "other-class" else 1.0,
        "interpolation_kind": settings.interpolation_kind,
        "partner": settings.partner,
        "unconditional": settings.unconditional,
        # Groups that were learned together have their own size.
        "group_size": settings.group_size if settings.has_groups and embeddings.groups is None else None,
        "guidance_interval": list(settings.guidance_interval),
        "eta": settings.eta,
        "resolution": resolution_of(embeddings, settings),
        "shared_noise": settings.shared_noise,
        "rival_weight": settings.rival_weight,
        "rival_label": rival_of(embeddings, plan) if settings.rival_weight else None,
        "further_ids": [embeddings.ids[row] for row in plan.further] or None,
        "further_versions": [embeddings.versions[row] for row in plan.further] or None,
        "mixture_weights": list(plan.weights) or None,
    }
