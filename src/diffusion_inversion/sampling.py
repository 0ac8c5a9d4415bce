"""Stage 2 (paper, section 3.2): draw variants around the learned vectors."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .config import SampleSettings
from .embeddings import Embeddings
from .engine.claim import claim_run, listed
from .engine.lock import run_lock
from .engine.memory import within_memory
from .engine.progress import track
from .engine.units import each_unit, unit_name
from .errors import ConfigMismatchError, UsageError
from .generator import Generator
from .images import LabelledImages, resize, to_uint8
from .safety import SafetyChecker, draw_safely, load_safety_checker
from .synthetic import SCHEMA, Row, SyntheticStore, job_name, parse_job
from .variants import Plan, draw_in_parts, image_side, plan_variant, resolution_of


def sample(
    embeddings: Embeddings, generator: Generator, out: str | Path, settings: SampleSettings | None = None
) -> LabelledImages:
    """Draw `settings.variants` images per learned vector, store them below `out`/synthetic and return them.

    Each is eps = u + s (c_hat - u) with u from `settings.unconditional` and c_hat the perturbed vector. Images already
    there are not drawn again, so a killed call goes on, and a call with more variants or more vectors adds the missing
    ones.

    Raises UsageError (an option does not fit the generator), ConfigMismatchError (`out` or the vectors were made
    with another generator or settings), DataError (a step was not kept), LockedError, DiskError.
    """
    draw_variants(embeddings, generator, out, settings)
    return SyntheticStore(Path(out), embeddings.class_names).read()


def draw_variants(
    embeddings: Embeddings, generator: Generator, out: str | Path, settings: SampleSettings | None = None
) -> None:
    """What `sample` does, without reading the images back."""
    settings = settings or SampleSettings()
    image_size = check(embeddings, generator, settings)
    if (resolution := resolution_of(embeddings, settings)) != embeddings.resolution:
        learned = embeddings.resolution
        print(f"warning: resolution={resolution}: {elsewhere(learned)}", file=sys.stderr, flush=True)
    run = Path(out)
    with run_lock(run):
        store = SyntheticStore(run, embeddings.class_names)
        rows = store.rows()
        checker = load_safety_checker(generator) if settings.safety_checker else None
        claim_run(run, "sample", fingerprint(embeddings, generator, settings, checker), begun=bool(rows))
        require_same_vectors(embeddings, rows, run)
        row_of = {image_id: row for row, image_id in enumerate(embeddings.ids)}
        jobs = [job_name(image_id, variant) for variant in range(settings.variants) for image_id in embeddings.ids]
        left = set(jobs) - {job_name(row["source_id"], row["variant"]) for row in rows}
        room = settings.batch_size
        with track("sample", len(left)) as advance:

            def draw(unit: tuple[str, ...]) -> None:
                nonlocal room
                wanted = [parse_job(job) for job in unit]
                # A unit that is drawn again is computed as it was, for the same bits.
                before = store.manifest.dropped().get(unit_name(unit))
                at_once = min(room, len(unit)) if before is None else before.get("at_once", len(unit))

                def plan(place: int, attempt: int) -> Plan:
                    image_id, variant = wanted[place]
                    return plan_variant(embeddings, generator, settings, row_of[image_id], variant, attempt)

                def together(plans: list[Plan]) -> Float[Tensor, "batch 3 side side"]:
                    nonlocal at_once, room
                    first = min(at_once, len(plans))
                    drawn, taken = within_memory(partial(draw_in_parts, embeddings, generator, plans, settings), first)
                    if taken < first:
                        at_once = room = taken  # for the units that follow too
                    return drawn

                plans, images, blanked = draw_safely(plan, together, unit, checker)
                rows = [metadata_row(embeddings, generator, settings, plan) for plan in plans]
                store.commit(resize(to_uint8(images), image_size), rows, at_once, blanked)
                advance(len(plans))

            each_unit(run, jobs, store.manifest, settings.batch_size, draw)
        store.finish(variants=settings.variants)


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
    check_resolution(embeddings.resolution, generator, settings)
    resolution = resolution_of(embeddings, settings)
    image_size = image_side(embeddings, settings)
    if image_size > resolution:
        raise UsageError(f"image_size={image_size}: larger than the {resolution} px that are generated.")
    if settings.partner == "other-class" and len({*embeddings.labels.tolist()}) == 1:
        raise UsageError("partner=other-class: the vectors are of one class. Use same-class or nearest.")
    for step in settings.kept_steps:
        embeddings.at(step)
    generator.scheduler(settings.scheduler, settings.inference_steps)
    return image_size


def check_resolution(learned: int, generator: Generator, settings: SampleSettings) -> None:
    """Raise UsageError for a resolution that cannot be, or, where `strict`, that is not the one learned at."""
    resolution = settings.resolution or learned
    if resolution % generator.vae_factor:
        raise UsageError(f"resolution={resolution}: not a multiple of {generator.vae_factor}, which the VAE needs.")
    if settings.strict and resolution != learned:
        raise UsageError(f"resolution={resolution}, strict: {elsewhere(learned)}")


def elsewhere(learned: int) -> str:
    """What is wrong with another resolution than the vectors were learned at."""
    return (
        f"the vectors were learned at {learned} px, and at another resolution they do not give their images "
        f"(paper, section 5.2). Leave it out, or invert again with this --resolution."
    )


def is_stale(row: Row, version: Mapping[str, str]) -> bool:
    """Whether an image was drawn from other vectors than those of these versions, by image id."""
    return any(version.get(row[f"{part}_id"]) != row[f"{part}_version"] for part in ("source", "partner"))


def require_same_vectors(embeddings: Embeddings, rows: list[Row], run: Path) -> None:
    """Raise ConfigMismatchError where images in the run were drawn from vectors that are not there any more.

    New vectors are welcome. They change means and partners from then on; images that are drawn stay as they are.
    """
    version = dict(zip(embeddings.ids, embeddings.versions, strict=True))
    stale = [str(row["file_name"]) for row in rows if is_stale(row, version)]
    if stale:
        raise ConfigMismatchError(
            f"{run}: {len(stale)} of the {len(rows)} images come from vectors that changed since:\n{listed(stale)}"
            f"\n`dinv repair {run}` draws them again from the vectors that are there now."
        )


def reconstruct(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, rows: Sequence[int] | None = None
) -> UInt8[Tensor, "images 3 side side"]:
    """One image per learned vector, or per vector of `rows`, without perturbation (lambda = alpha = 0).

    Returns uint8 (N, 3, R, R) at the side R at which images are drawn.
    """
    plain = settings.model_copy(update={"noise_strength": 0.0, "interpolation": 0.0, "variants": 1})
    found = []
    checker = load_safety_checker(generator) if settings.safety_checker else None
    rows = range(len(embeddings)) if rows is None else rows
    with track("reconstruct", len(rows)) as advance:
        for start in range(0, len(rows), settings.batch_size):
            batch = rows[start : start + settings.batch_size]

            def together(plans: list[Plan]) -> Float[Tensor, "batch 3 side side"]:
                return within_memory(partial(draw_in_parts, embeddings, generator, plans, plain), len(plans))[0]

            _, images, _ = draw_safely(
                lambda place, attempt, batch=batch: plan_variant(  # type: ignore[misc]
                    embeddings, generator, plain, batch[place], 0, attempt
                ),
                together,
                [embeddings.ids[row] for row in batch],
                checker,
            )
            found.append(to_uint8(images))
            advance(len(batch))
    return torch.cat(found)


def fingerprint(
    embeddings: Embeddings, generator: Generator, settings: SampleSettings, checker: SafetyChecker | None
) -> dict[str, Any]:
    """Everything an image depends on, but the vectors, as JSON data.

    `variants` is left out, so that more can be added later; each image's row names the version of its vectors.
    The safety checker that is in use stands for the setting: where there is none, the setting makes no difference.
    """
    resolution = resolution_of(embeddings, settings)
    plain = settings.model_copy(update={"resolution": None if resolution == embeddings.resolution else resolution})
    return {
        "schema": SCHEMA,
        "settings": plain.described({"variants", "strict", "safety_checker"})
        | {"image_size": image_side(embeddings, settings)},
        "generator": generator.record,
        **({"safety_checker": checker.hash} if checker else {}),
    }


def metadata_row(embeddings: Embeddings, generator: Generator, settings: SampleSettings, plan: Plan) -> dict[str, Any]:
    """How one image was made; see `synthetic.COLUMNS`."""
    return {
        "source_id": embeddings.ids[plan.source],
        "variant": plan.variant,
        "label": int(embeddings.labels[plan.source]),
        "partner_id": embeddings.ids[plan.partner],
        "interpolation": settings.interpolation,
        "noise_strength": settings.noise_strength,
        "guidance_scale": plan.guidance_scale,
        "inversion_step": plan.step,
        "scheduler": settings.scheduler,
        "inference_steps": settings.inference_steps,
        "seed": settings.seed,
        "generator": generator.name,
        "generator_hash": generator.hash,
        "source_version": embeddings.versions[plan.source],
        "partner_version": embeddings.versions[plan.partner],
        "partner_label": int(embeddings.labels[plan.partner]),
        "label_weight": 1 - settings.interpolation if settings.partner == "other-class" else 1.0,
        "interpolation_kind": settings.interpolation_kind,
        "partner": settings.partner,
        "unconditional": settings.unconditional,
        "group_size": settings.group_size if settings.unconditional == "group-mean" else None,
        "guidance_interval": list(settings.guidance_interval),
        "eta": settings.eta,
        "resolution": resolution_of(embeddings, settings),
    }
