"""Settings of what makes images, or takes them: stage 2, prompts, retrieval and adoption."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .settings import MOST_SEED, Settings, setting

SchedulerName = Literal["ddim", "pndm", "dpm++", "unipc", "euler"]
Unconditional = Literal["mean", "class-mean", "group-mean", "empty", "zero"]
InterpolationKind = Literal["lerp", "slerp", "circle", "dirichlet"]
PartnerPolicy = Literal["same-class", "nearest", "farthest", "other-class", "context", "reference"]
GuidanceScale = Annotated[float, Field(ge=0, le=100)]
PACKED_FROM = 100_000  # images that a run draws
Storage = Literal["png", "parquet"]
NoiseStrength = Annotated[float, Field(ge=0, le=10)] | Literal["auto"]


class SampleSettings(Settings):
    """Stage 2: draw variants around the learned vectors."""

    variants: int = setting(10, "images per learned vector", "ours; text: 45", ge=1)
    balance: str = setting(
        "none",
        "what has as many images, real and synthetic ones together, in each of its parts: class, COLUMN of "
        "--attributes, or class,COLUMN; variants says how many are drawn in all, and the rarest get the most",
        "ours",
        min_length=1,
    )
    guidance_scales: tuple[GuidanceScale, ...] = setting(
        (1.0,),
        "one or more guidance scales, e.g. 1.5,2,3, as diffusers has them: 1 = off, the paper's w plus 1",
        "ours; text: w = 2, or 2, 3 and 4 mixed",
        min_length=1,
    )
    kept_steps: tuple[int, ...] = setting((), "stage-1 steps to mix", "text", unset="the last one")
    combinations: Literal["random", "grid"] = setting(
        "random",
        "of kept steps and guidance scales, one drawn for each image, or all in turn, each equally often",
        "random: text, of guidance; grid: code, 3 x 3 with 5 variants each",
    )
    noise_strength: NoiseStrength = setting(
        0.1,
        "lambda, standard deviation of the noise added to c; auto: for each image the largest whose probes still show "
        "its class",
        "text; auto: ours",
    )
    interpolation: float = setting(
        0.1,
        "alpha, weight of another image of the class; below 0: away from it; `--tune interpolation=0,0.1,0.4` chooses",
        "text; below 0: ours",
        ge=-1,
        le=1,
    )
    interpolation_kind: InterpolationKind = setting(
        "lerp",
        "along the straight line, the great circle of the flattened vectors, a circle about the class mean (keeps the "
        "variance), or a random mixture of several vectors of the class",
        "text; others: ours",
    )
    mixture_size: int = setting(3, "dirichlet: vectors in a mixture, the source's among them", "ours", ge=2)
    partner: PartnerPolicy = setting(
        "same-class",
        "any of its class, the nearest or the farthest of it, any of another class (soft label), one of another class "
        "moved by the difference of the class means (own label), or one of the group, as the code",
        "ours; text: two vectors, not which",
    )
    shared_noise: float = setting(
        0.0,
        "how far start noises are turned to one that all variants of a source share, 1 = all start there",
        "ours",
        ge=0,
        le=1,
    )
    unconditional: Unconditional = setting(
        "mean",
        "what guidance leads away from, the mean of all vectors, of the class or the group, the empty prompt, or zeros",
        "text; group-mean: code",
    )
    rival_weight: float = setting(
        0.0,
        "n, weight of the nearest other class's mean in what guidance leads away from, 1 - n that of the "
        "unconditional vector",
        "ours",
        ge=0,
        le=1,
    )
    group_size: int = setting(
        100, "group of group-mean and partner reference, where stage 1 has no groups of its own", "code", ge=1
    )
    guidance_interval: tuple[float, float] = setting(
        (0.0, 1.0),
        "guide where t / T lies in it, e.g. 0.2,0.8; 1 = pure noise; plain prediction outside",
        "ours: 2404.07724",
    )
    eta: float = setting(
        0.0, "share of DDPM's noise that ddim adds, 0 to 1", "ours; code: 1, which PNDM drops", ge=0, le=1
    )
    resolution: int | None = setting(
        None,
        "side in px to draw at",
        "text",
        unset="the one the vectors were learned at",
        ge=8,
        option="sample-resolution",
    )
    strict: bool = setting(False, "refuse another resolution than the vectors were learned at", "ours")
    scheduler: SchedulerName = setting(
        "dpm++", "the sampler; dpm++ is DPM-Solver++(2M)", "ours; text: not said; code: PNDM"
    )
    inference_steps: int = setting(16, "denoising steps", "ours; text: 100", ge=1, le=1000)
    timestep_spacing: Literal["checkpoint", "learned"] = setting(
        "checkpoint",
        "where the denoising steps lie, as the checkpoint's scheduler says or where pretraining found that few of "
        "them end nearest to where many would; mini has learned ones for 4 and 6 steps of dpm++",
        "ours; learned: 2405.15506",
    )
    image_size: int | None = setting(
        None, "side of the saved PNG in px", "text", unset="the data set's own, at most the generator's", ge=4
    )
    batch_size: int = setting(100, "images drawn side by side", "ours", ge=1, option="sample-batch-size")
    seed: int = setting(
        0, "run seed of stages 1 and 2; an image derives its own from it and its id", "ours", ge=0, le=MOST_SEED
    )
    storage: Storage | Literal["auto"] = setting(
        "auto",
        "a PNG file for each image, or Parquet files of up to ten batches, each image a row; auto: as the run was "
        f"begun, else parquet from {PACKED_FROM:,} images on",
        "ours",
    )
    safety_checker: bool = setting(
        True, "draw again what the checkpoint's safety checker, if any, would blank", "ours; code: off"
    )

    @field_validator("interpolation", mode="before")
    @classmethod
    def _interpolation_is_chosen_elsewhere(cls, value: object) -> object:
        if value == "auto":
            raise ValueError("one for all images is chosen on folds; use --tune interpolation=0,0.1,0.25,0.4")
        return value

    @field_validator("guidance_interval")
    @classmethod
    def _interval_is_one(cls, interval: tuple[float, float]) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low < high <= 1:
            raise ValueError("give two different shares of the schedule in 0..1, the lower first")
        return interval

    @model_validator(mode="after")
    def _eta_has_its_scheduler(self) -> SampleSettings:
        if self.eta and self.scheduler != "ddim":
            raise ValueError(f"eta={self.eta:g}: {self.scheduler} has no eta; leave it out or use scheduler ddim")
        return self

    @model_validator(mode="after")
    def _group_size_has_its_use(self) -> SampleSettings:
        if self.group_size != type(self).model_fields["group_size"].default and not self.has_groups:
            raise ValueError(
                f"group_size={self.group_size}: unconditional={self.unconditional} and partner={self.partner} have no "
                "groups; leave it out or use unconditional group-mean or partner reference"
            )
        return self

    @model_validator(mode="after")
    def _kinds_have_their_partners(self) -> SampleSettings:
        kind, partner = f"interpolation_kind={self.interpolation_kind}", f"partner={self.partner}"
        if self.interpolation_kind == "dirichlet" and self.partner != "same-class":
            raise ValueError(f"{kind}: mixes any vectors of the class, but {partner}; use same-class")
        if self.interpolation_kind == "dirichlet" and self.interpolation < 0:
            raise ValueError(f"{kind}: interpolation={self.interpolation:g} is no weight; give 0 to 1")
        if self.interpolation_kind == "circle" and self.partner in ("other-class", "reference"):
            raise ValueError(
                f"{kind}: goes about the mean of one class, but {partner} takes others; use same-class, nearest, "
                "farthest or context"
            )
        size = self.mixture_size
        if size != type(self).model_fields["mixture_size"].default and self.interpolation_kind != "dirichlet":
            raise ValueError(f"mixture_size={size}: {kind} mixes two; leave it out or use interpolation_kind dirichlet")
        return self

    @model_validator(mode="after")
    def _rivals_have_their_guidance(self) -> SampleSettings:
        if self.rival_weight and set(self.guidance_scales) == {1.0}:
            raise ValueError(
                f"rival_weight={self.rival_weight:g}: guidance_scales=1 leads away from nothing; leave it out or give "
                "other scales"
            )
        return self

    @property
    def has_groups(self) -> bool:
        """Whether group_size makes a difference."""
        return self.unconditional == "group-mean" or self.partner == "reference"

    @property
    def balances_classes(self) -> bool:
        """Whether the parts that have as many images are classes, or lie within them."""
        return self.balance == "class" or self.balance.startswith("class,")

    @property
    def balanced_attribute(self) -> str | None:
        """The attribute whose values part the images that have as many; None: none."""
        attribute = self.balance.removeprefix("class,") if self.balances_classes else self.balance
        return None if attribute in ("none", "class") else attribute

    def described(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """As `Settings` has it; without what is as older work had it, by which its names would differ."""
        older = {
            "balance": self.balance == "none",
            "storage": self.storage != "parquet",
            "timestep_spacing": self.timestep_spacing == "checkpoint",
        }
        return super().described({*leave_out, *(name for name, same in older.items() if same)})


class PromptSettings(Settings):
    """Images from prompts, with the sampler of stage 2: what baselines are made of."""

    variants: int = setting(10, "images per prompt", ge=1)
    guidance_scales: tuple[GuidanceScale, ...] = setting(
        (7.5,), "diffusers' convention, 1 = off; one is drawn per image", min_length=1
    )
    scheduler: SchedulerName = setting("dpm++", "as in stage 2")
    inference_steps: int = setting(16, "denoising steps", ge=1, le=1000)
    resolution: int | None = setting(
        None, "side in px that is drawn", unset="the generator's", ge=8, option="sample-resolution"
    )
    image_size: int | None = setting(None, "side of the saved PNG in px", unset="the resolution", ge=4)
    batch_size: int = setting(100, "images drawn side by side", ge=1, option="sample-batch-size")
    seed: int = setting(
        0, "run seed; every image derives its own from (seed, class, prompt, variant)", ge=0, le=MOST_SEED
    )
    safety_checker: bool = setting(True, "as in stage 2")


class RetrieveSettings(Settings):
    """Images of a pool that are nearest to the training images: the baseline that finds instead of making."""

    pool: str = setting(..., "folder of images at any depth, parquet files, hf:<id>, or a built-in name")
    k: tuple[int, ...] = setting(
        (10,), "neighbours of each training image, a set for each number", "ours; text: 10, 25 and 50", min_length=1
    )
    extractor: str = setting(
        "lite0", "features that decide what is near; as of `dinv metrics`", "ours; text: CLIP, by clip-retrieval"
    )
    weights: str | None = setting(None, "local file or folder of the extractor's weights")
    image_size: int | None = setting(
        None, "side in px that is compared and saved", unset="the training images' own", ge=4
    )
    batch_size: int = setting(64, "images in the network at once", ge=1)
    block_size: int = setting(512, "images of the pool in memory at once", ge=1)

    @field_validator("k", mode="before")
    @classmethod
    def _one_number_is_enough(cls, k: object) -> object:
        return (k,) if isinstance(k, int) else k

    @field_validator("k")
    @classmethod
    def _numbers_ascend(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if min(k) < 1 or any(later <= earlier for earlier, later in pairwise(k)):
            raise ValueError("give numbers of at least 1 that ascend, such as 10,25,50")
        return k


class AdoptSettings(Settings):
    """Images that another method made, put into a run folder as they are."""

    images: str = setting(
        ...,
        "the images of another method, as DATA: of the same classes, its training images where it has parts",
        option="IMAGES",
    )
    image_size: int | None = setting(
        None,
        "side in px of all arms: larger images are resized to it, smaller ones refused",
        unset="DATA's own, at most that of the smallest image of IMAGES",
        ge=4,
    )
