"""Images from prompts by the sampler of stage 2, in a folder of its format: what text-prompted baselines need."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..config.sampling import PromptSettings
from ..data.images import LabelledImages, resize, to_model_range
from ..engine.frozen_settings import freeze_settings
from ..engine.lock import run_lock
from ..errors import DataError, UsageError
from ..generator.generator import EMPTY_PROMPT, Generator
from ..generator.safety import SafetyChecker, attempt_identity, check_safety_checker, load_safety_checker
from ..generator.sides import require_side
from ..invert.embeddings import FOLDER as VECTORS
from ..randomness import generator_for
from .columns import EARLIER
from .denoising import denoise, require_finite
from .drawing import draw_missing
from .synthetic import SCHEMA, Row, SyntheticStore

CLASS = "{class}"
PROMPTS = "prompts"  # the kind of what is drawn here, among the settings of stage 2
MOST_BYTES = 2**22  # of a file of prompts


@dataclass(frozen=True)
class Prompt:
    """A text to draw from and the class that its images belong to."""

    class_name: str
    text: str

    @property
    def source_id(self) -> str:
        """What its images name as their source."""
        return f"{self.class_name}: {self.text}"


@dataclass(frozen=True, eq=False)
class RealGuidance:
    """Real images to begin at instead of noise alone (He et al. 2022, section 3.2.2): an image of the prompt's class.

    strength: how far they are noised, from 0, the image as the autoencoder has it, to 1.
    """

    images: LabelledImages
    strength: float

    def row(self, seed: int, prompt: Prompt, variant: int) -> int:
        """The image that one drawing begins at; images that come or go change those that begin at them alone."""
        label = self.images.class_names.index(prompt.class_name)

        def rank(row: int) -> str:
            return hashlib.sha256(f"{seed} {variant} {self.images.hashes[row]} {prompt.source_id}".encode()).hexdigest()

        rows: list[int] = (self.images.labels == label).nonzero()[:, 0].tolist()
        return min(rows, key=rank)


@dataclass(frozen=True)
class _PromptPlan:
    prompt: int
    variant: int
    guidance_scale: float
    initial_noise: Float[Tensor, "channels height width"]
    start: int | None = None  # the real image it begins at, where there is guidance by them


def read_prompts(prompts: str, class_names: Sequence[str] = ()) -> tuple[Prompt, ...]:
    """What `--prompts` names: a template over `class_names`, or a file of lines `class<TAB>prompt`.

    A template holds {class}. Empty lines and lines that begin with # are left out. Raises UsageError for a template
    without classes, DataError for a file that is not of such lines, is larger than 4 MiB, says one line twice, or has
    two prompts whose images would name one source.
    """
    if CLASS in prompts:
        if not class_names:
            raise UsageError(f"--prompts {prompts!r}: names {CLASS}, but no classes. Add --classes-of RUN.")
        return tuple(Prompt(name, prompts.replace(CLASS, name)) for name in class_names)
    path = Path(prompts)
    if not path.is_file():
        raise UsageError(f"--prompts {prompts!r}: no such file, and no template with {CLASS}.")
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise DataError(
                f"{path}: {size:,} bytes, more than {MOST_BYTES:,}. Split it, and draw each part in its own folder."
            )
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a text file in UTF-8. Write lines class<TAB>prompt.") from error
    found: dict[Prompt, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        class_name, _, prompt = (part.strip() for part in line.partition("\t"))
        if not class_name or not prompt:
            raise DataError(f"{path}, line {number}: not class<TAB>prompt. Put one tab between the two.")
        if Prompt(class_name, prompt) in found:
            raise DataError(f"{path}, line {number}: there already. Ask for more images with --variants.")
        found[Prompt(class_name, prompt)] = None
    if not found:
        raise DataError(f"{path}: no prompt. Write lines class<TAB>prompt.")
    _rows_by_source([*found])
    return tuple(found)


def _rows_by_source(prompts: Sequence[Prompt]) -> dict[str, int]:
    """Where each source id's prompt lies. Raises DataError where two prompts have one."""
    rows: dict[str, int] = {}
    for row, prompt in enumerate(prompts):
        other = prompts[rows.setdefault(prompt.source_id, row)]
        if other != prompt:
            raise DataError(
                f"prompts {other.text!r} of class {other.class_name!r} and {prompt.text!r} of class "
                f"{prompt.class_name!r}: their images would both name the source {prompt.source_id!r}. Change one."
            )
    return rows


def draw_prompts(
    prompts: Sequence[Prompt],
    generator: Generator,
    run: Path,
    settings: PromptSettings,
    *,
    kind: str = PROMPTS,
    real: RealGuidance | None = None,
) -> None:
    """Draw `settings.variants` images of every prompt into `run`/synthetic, for the method `kind`.

    Each is eps = u + s (c - u) with c the prompt's and u the empty prompt's text tokens, as StableDiffusionPipeline
    does. Images already there are not drawn again; more variants and more prompts of the same classes may be added.
    With `real` guidance an image's partner is the real one that it begins at.

    Raises UsageError (an option does not fit the generator, or `run` is one of vectors), DataError (two prompts with
    one source id), ConfigMismatchError (`run` was made otherwise), PartialError (the safety checker blanks an image
    every time, or it is not finite), LockedError, DiskError.
    """
    class_names = classes_of(prompts)
    resolution, image_size = check(generator, settings, run)
    row_of = _rows_by_source(prompts)
    with run_lock(run):
        store = SyntheticStore(run, class_names)
        checker = load_safety_checker(generator) if settings.safety_checker else None
        described = made_from(generator, settings, kind, class_names, resolution, image_size, checker)
        if real is not None:
            described["real_guidance"] = real.strength
        freeze_settings(run, "sample", described, begun=len(store.table("file_name")) > 0)
        draw_missing(
            store,
            row_of,
            settings,
            image_size,
            checker,
            plan=lambda source_id, variant, attempt: _plan(
                prompts, generator, settings, resolution, row_of[source_id], variant, attempt, real
            ),
            draw=lambda plans: draw_images(prompts, generator, plans, settings, real),
            describe=lambda plan: _metadata_row(prompts, class_names, generator, settings, plan, kind, real),
            counts=dict.fromkeys(row_of, settings.variants),  # of prompts that were given before, nothing is used
        )


def check(generator: Generator, settings: PromptSettings, run: Path) -> tuple[int, int]:
    """Sides in px of what is drawn and of what is saved.

    Raises, before anything is done, UsageError for settings that cannot be, and where `run` is one of vectors.
    """
    refuse_vectors(run, "images from prompts")
    resolution = settings.resolution or generator.resolution
    require_side(generator, resolution, option="--sample-resolution")
    image_size = settings.image_size or resolution
    if image_size > resolution:
        raise UsageError(f"image_size={image_size}: larger than the {resolution} px that are generated.")
    generator.scheduler(settings.scheduler, settings.inference_steps)
    if settings.safety_checker:
        check_safety_checker(generator)
    return resolution, image_size


def classes_of(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """Class names in alphabetical order, as a folder of class folders has them."""
    return tuple(sorted({prompt.class_name for prompt in prompts}))


def draw_images(
    prompts: Sequence[Prompt],
    generator: Generator,
    plans: Sequence[_PromptPlan],
    settings: PromptSettings,
    real: RealGuidance | None = None,
) -> Float[Tensor, "batch 3 side side"]:
    """Denoise and decode a batch: (B, 3, R, R) float32 in [-1, 1]."""
    texts = sorted({prompts[plan.prompt].text for plan in plans})
    tokens = generator.text_tokens([EMPTY_PROMPT, *texts])
    place = {text: row for row, text in enumerate(texts, start=1)}
    conditional = tokens[[place[prompts[plan.prompt].text] for plan in plans]]
    start = None
    if real is not None:
        rows = [plan.start for plan in plans if plan.start is not None]
        side = plans[0].initial_noise.shape[-1] * generator.vae_factor
        start = generator.encode(to_model_range(resize(real.images.images[rows], side))).mean, real.strength
    latents = denoise(
        generator,
        torch.stack([plan.initial_noise for plan in plans]),
        conditional,
        tokens[:1].expand_as(conditional),
        torch.tensor([plan.guidance_scale for plan in plans]),
        settings.scheduler,
        settings.inference_steps,
        start=start,
    )
    require_finite(latents, [prompts[plan.prompt].source_id for plan in plans], generator, settings)
    return generator.decode(latents).cpu()


def refuse_vectors(folder: Path, what: str) -> None:
    """Raise UsageError where `folder` is a run of vectors, so no place for `what`: images that are made without."""
    if (folder / VECTORS).exists():
        raise UsageError(f"{folder}: a run of learned vectors. Give {what} a folder of their own.")


def made_from(
    generator: Generator,
    settings: PromptSettings,
    kind: str,
    class_names: tuple[str, ...],
    resolution: int,
    image_size: int,
    checker: SafetyChecker | None,
) -> dict[str, Any]:
    """Everything an image depends on, but its prompt, which its row names, as JSON data. Class names give labels."""
    sides = {"resolution": resolution, "image_size": image_size}
    return {
        "schema": SCHEMA,
        "kind": kind,
        "settings": settings.model_dump(mode="json", exclude={"variants", "safety_checker"}) | sides,
        "class_names": list(class_names),
        "generator": generator.record,
        **({"safety_checker": checker.hash} if checker else {}),
    }


def _plan(
    prompts: Sequence[Prompt],
    generator: Generator,
    settings: PromptSettings,
    resolution: int,
    row: int,
    variant: int,
    attempt: int,
    real: RealGuidance | None = None,
) -> _PromptPlan:
    """Decide everything random about one image, from its own stream."""
    identity = (settings.seed, "prompt", prompts[row].source_id, variant, *attempt_identity(attempt))
    stream = generator_for(*identity)
    scales = settings.guidance_scales
    guidance_scale = scales[int(torch.randint(len(scales), (1,), generator=stream))]
    side = resolution // generator.vae_factor
    initial_noise = torch.randn(generator.latent_channels, side, side, generator=stream)
    start = None if real is None else real.row(settings.seed, prompts[row], variant)
    return _PromptPlan(row, variant, guidance_scale, initial_noise, start)


def _metadata_row(
    prompts: Sequence[Prompt],
    class_names: tuple[str, ...],
    generator: Generator,
    settings: PromptSettings,
    plan: _PromptPlan,
    kind: str = PROMPTS,
    real: RealGuidance | None = None,
) -> Row:
    """How one image was made; see `columns.COLUMNS`. A prompt is its own partner and has no stage-1 step."""
    prompt = prompts[plan.prompt]
    version = hashlib.sha256(prompt.source_id.encode()).hexdigest()[:16]
    partner = prompt.source_id, version
    if real is not None and plan.start is not None:
        partner = real.images.ids[plan.start], real.images.hashes[plan.start][:16]
    label = class_names.index(prompt.class_name)
    return {
        **EARLIER,
        "source_id": prompt.source_id,
        "variant": plan.variant,
        "label": label,
        "partner_label": label,
        "partner_id": partner[0],
        "interpolation": 0.0,
        "noise_strength": 0.0,
        "guidance_scale": plan.guidance_scale,
        "inversion_step": 0,
        "scheduler": settings.scheduler,
        "inference_steps": settings.inference_steps,
        "seed": settings.seed,
        "generator": generator.name,
        "generator_hash": generator.hash,
        "generator_licence": generator.licence,
        "source_version": version,
        "partner_version": partner[1],
        "unconditional": "empty",
        "method": kind,
        "resolution": settings.resolution or generator.resolution,
    }
