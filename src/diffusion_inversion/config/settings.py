"""Settings of every stage: frozen models with units and ranges; an unknown key is an error.

Each description ends with where the default comes from: "text" and "code" are the paper's (Zhou et al., arXiv
2305.15316, and its repository), "ours" is neither. docs/differences.md says more.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SchedulerName = Literal["ddim", "pndm", "dpm++", "unipc", "euler"]
Unconditional = Literal["mean", "class-mean", "group-mean", "empty", "zero"]
PartnerPolicy = Literal["same-class", "nearest", "other-class", "reference"]


class Settings(BaseModel):
    """Base of every settings model: immutable, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    _later: ClassVar[frozenset[str]] = frozenset()  # fields that the run folders of earlier versions do not name

    def described(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """As JSON data to compare runs by: a field newer than some runs only where it differs from its default."""
        same = {name for name in self._later if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude=same.union(leave_out))


class InvertSettings(Settings):
    """Stage 1: learn one conditioning vector c (tokens x text width) per image."""

    _later = frozenset({"grouping", "group_size", "joint_batch_size", "gradient_checkpointing"})

    steps: int = Field(50, ge=0, description="AdamW steps per image; 0 keeps the initial vectors (ours; text: 3,000)")
    keep_steps: tuple[int, ...] = Field((), description="steps whose vectors are kept too (ours; text: 1000,2000,3000)")
    learning_rate: float = Field(0.03, gt=0, description="constant AdamW learning rate (text)")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay (code: PyTorch's default)")
    tokens: int = Field(5, ge=1, le=77, description="tokens per vector (code: its README; text: not said)")
    init: Literal["warm", "class-mean", "random"] = Field(
        "warm", description="start: adapter's guess, the mean of the class's guesses, or noise (ours; code: noise)"
    )
    batch_size: int = Field(100, ge=1, description="images optimised side by side; each on its own all the same (ours)")
    grouping: Literal["independent", "joint"] = Field(
        "independent", description="each image on its own (text), or groups as in the code, which steps then counts"
    )
    group_size: int = Field(100, ge=1, description="joint: images per group (code)")
    joint_batch_size: int = Field(50, ge=1, description="joint: images with a loss at each step (code)")
    gradient_checkpointing: bool = Field(False, description="less memory, more time, the same numbers (ours)")
    eval_draws: int = Field(8, ge=1, description="fixed (timestep, noise) draws that measure an image's loss (ours)")
    resolution: int | None = Field(
        None,
        ge=8,
        description="side in px at which images are learned; default: the generator's (ours; text: 128 or 256)",
    )
    seed: int = Field(0, ge=0, description="run seed; every image derives its own from it and its id (ours)")

    @model_validator(mode="after")
    def _kept_steps_are_reached(self) -> InvertSettings:
        bad = [s for s in self.keep_steps if not 0 <= s <= self.steps]
        if bad:
            raise ValueError(f"keep_steps={bad}: outside 0..steps={self.steps}; lower them or raise steps")
        return self

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Every step whose vectors are stored, the last one included, ascending."""
        return tuple(sorted({*self.keep_steps, self.steps}))


class SampleSettings(Settings):
    """Stage 2: draw variants around the learned vectors."""

    _later = frozenset(
        {
            "interpolation_kind", "partner", "unconditional", "group_size", "guidance_interval", "eta", "resolution",
            "strict", "safety_checker", "combinations",
        }
    )  # fmt: skip

    variants: int = Field(10, ge=1, description="images per learned vector (ours; text: 45)")
    guidance_scales: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="diffusers' convention, 1 = off; the text's w is this minus 1; one for each image (ours; text: w = "
        "2, or 2, 3 and 4 mixed)",
    )
    kept_steps: tuple[int, ...] = Field((), description="stage-1 steps to mix; default: the last one (text)")
    combinations: Literal["random", "grid"] = Field(
        "random",
        description="of kept steps and guidance scales: one drawn for each image, or all in turn, so that each source "
        "has equally many of each (random: text, of guidance; grid: code, 3 x 3 with 5 variants each)",
    )
    noise_strength: float = Field(0.1, ge=0, description="lambda: standard deviation of the noise added to c (text)")
    interpolation: float = Field(0.1, ge=0, le=1, description="alpha: weight of a partner's vector (text)")
    interpolation_kind: Literal["lerp", "slerp"] = Field(
        "lerp", description="along the straight line (text), or along the great circle of the flattened vectors"
    )
    partner: PartnerPolicy = Field(
        "same-class",
        description="any of the same class (ours; text: two vectors, not which); the nearest of the same class; any of "
        "another class, with a soft label; or, as the code, of its group, of another class where the own has few there",
    )
    unconditional: Unconditional = Field(
        "mean",
        description="what guidance leads away from: the mean of all vectors (text), of the class, of the group (code), "
        "the empty prompt, cut to the tokens of a vector, or zeros",
    )
    group_size: int = Field(
        100,
        ge=1,
        description="images in a group of group-mean and of partner reference, where stage 1 has no groups of its own "
        "(code)",
    )
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0),
        description="guide where t / T, 1 = pure noise, lies in it; plain prediction outside (ours: 2404.07724)",
    )
    scheduler: SchedulerName = Field(
        "dpm++", description="DDIM, PNDM, DPM-Solver++(2M), UniPC or Euler (ours; text: not said; code: PNDM)"
    )
    eta: float = Field(
        0.0, ge=0, le=1, description="share of DDPM's noise that ddim adds (ours; code: 1, which PNDM drops)"
    )
    inference_steps: int = Field(16, ge=1, le=1000, description="denoising steps (ours; text: 100)")
    resolution: int | None = Field(
        None,
        ge=8,
        description="side in px at which images are drawn; default: the one the vectors were learned at (text)",
    )
    strict: bool = Field(False, description="refuse another resolution than the vectors were learned at (ours)")
    image_size: int | None = Field(
        None,
        ge=4,
        description="side of the saved PNG in px; default: the data set's own (text), at most the generator's",
    )
    batch_size: int = Field(100, ge=1, description="images denoised side by side (ours)")
    seed: int = Field(0, ge=0, description="run seed; an image derives its own from (seed, source id, variant) (ours)")
    safety_checker: bool = Field(
        True, description="draw again what the checkpoint's safety checker, if any, would blank (ours; code: off)"
    )

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

    @property
    def has_groups(self) -> bool:
        """Whether group_size makes a difference."""
        return self.unconditional == "group-mean" or self.partner == "reference"


class PromptSettings(Settings):
    """Images from prompts, with the sampler of stage 2: what baselines are made of."""

    variants: int = Field(10, ge=1, description="images per prompt")
    guidance_scales: tuple[float, ...] = Field(
        (7.5,), min_length=1, description="diffusers' convention, 1 = off; one is drawn per image"
    )
    scheduler: SchedulerName = Field("dpm++", description="as in stage 2")
    inference_steps: int = Field(16, ge=1, le=1000, description="denoising steps")
    resolution: int | None = Field(None, ge=8, description="side in px that is drawn; default: the generator's")
    image_size: int | None = Field(None, ge=4, description="side of the saved PNG in px; default: the resolution")
    batch_size: int = Field(100, ge=1, description="images denoised side by side")
    seed: int = Field(0, ge=0, description="run seed; every image derives its own from (seed, class, prompt, variant)")
    safety_checker: bool = Field(True, description="as in stage 2")


class RetrieveSettings(Settings):
    """Images of a pool that are nearest to the training images: the baseline that finds instead of making."""

    pool: str = Field(description="folder of images, parquet files, hf:<id>, or a built-in name")
    k: tuple[int, ...] = Field(
        (10,), min_length=1, description="neighbours of each training image; a set for each number (text: 10, 25, 50)"
    )
    extractor: str = Field(
        "lite0", description="whose features are compared, one of `dinv metrics` (ours; text: CLIP, clip-retrieval)"
    )
    weights: str | None = Field(None, description="the extractor's weights, as for `dinv metrics`")
    image_size: int | None = Field(
        None, ge=4, description="side in px that is compared and saved; default: the training images' own"
    )
    batch_size: int = Field(64, ge=1, description="images in the network at once")
    block_size: int = Field(512, ge=1, description="images of the pool in memory at once")

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


Arm = Literal["real", "synthetic", "real+synthetic"]
ARMS: tuple[Arm, ...] = ("real", "synthetic", "real+synthetic")
RecipeName = Literal["paper-sgd", "medmnist-adamw", "fast"]
ARCHITECTURES = (
    "resnet20", "resnet56", "resnet18", "vgg16", "mobilenetv2", "shufflenetv2", "efficientnetb0",
)  # fmt: skip
AugmentationName = Literal[
    "none", "default", "autoaugment", "randaugment", "cutout", "mixup", "cutmix", "augmix"
]  # fmt: skip


def known_architecture(name: str) -> str:
    """The name of an architecture as it is. Raises ValueError for one that is neither ours nor timm:<name>."""
    if name in ARCHITECTURES or (name.startswith("timm:") and len(name) > len("timm:")):
        return name
    raise ValueError(f"unknown; use one of {', '.join(ARCHITECTURES)} or timm:<name>")


class TrainSettings(Settings):
    """Downstream task: one classifier per arm and seed, all with the same number of optimizer steps."""

    _later = frozenset({"warm_up_steps"})

    architecture: str = Field(
        "auto",
        description=f"{', '.join(ARCHITECTURES)} or timm:<name>; auto: resnet20 on CPU (ours), resnet18 on GPU (text)",
    )
    recipe: RecipeName = Field(
        "paper-sgd", description="optimizer, schedule and four of the numbers below, as recipes.RECIPES has them (text)"
    )
    steps: int = Field(
        1000, ge=1, description="optimizer steps, the same for every arm (ours; code: 50,000; text: not said)"
    )
    warm_up_steps: int = Field(
        0,
        ge=0,
        description="steps in which the rate of a cosine recipe rises first (ours; code: 1,000; text: not said)",
    )
    batch_size: int | None = Field(None, ge=2, description="images per step; default: the recipe's (text: 128)")
    learning_rate: float | None = Field(
        None, gt=0, description="peak of the schedule; default: the recipe's (text: 0.1; AdamW 0.001)"
    )
    momentum: float | None = Field(
        None, ge=0, lt=1, description="SGD's momentum, AdamW's beta1; default: the recipe's (code: 0.9)"
    )
    weight_decay: float | None = Field(
        None, ge=0, description="default: the recipe's (code: 5e-4; text: of AdamW alone)"
    )
    augmentations: tuple[AugmentationName, ...] = Field(
        ("default",), min_length=1, description="what happens to the images of each batch (text)"
    )
    mixing: Literal["batch", "concatenate", "sequential"] = Field(
        "batch",
        description="real+synthetic: shares of every batch (text), one pool of all, or synthetic first and then real",
    )
    real_fraction: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = Field(
        0.5,
        description="real share of each batch (batch) or of the steps (sequential) of real+synthetic; auto: the best "
        "of 1/8, 1/4, 1/2, 3/4 and 7/8 on a fifth of the real training images (ours; text: the best of the five)",
    )
    me_ada_every: int = Field(
        0, ge=0, description="T_min: steps between two rounds of adversarial copies (ME-ADA); 0 = off (ours)"
    )
    me_ada_share: float = Field(0.1, gt=0, le=1, description="share of the images that each round copies (ours)")
    me_ada_steps: int = Field(15, ge=1, description="gradient ascent steps on each copy (ours)")
    me_ada_rate: float = Field(
        0.04,
        gt=0,
        description="ascent step size on pixels in [0, 1] (ours: its authors' 20 at batch 128, adversarial.py)",
    )
    me_ada_gamma: float = Field(1.0, ge=0, description="weight of the distance from the original (ours)")
    me_ada_eta: float = Field(1.0, ge=0, description="weight of the entropy of the prediction (ours)")
    arms: tuple[Arm, ...] = Field(ARMS, min_length=1, description="what to train on (text)")
    seeds: tuple[int, ...] = Field(
        (0, 1, 2, 3, 4),
        min_length=1,
        description="one classifier per arm and seed; at least 3 for a verdict (text: five)",
    )

    @field_validator("architecture")
    @classmethod
    def _architecture_is_known(cls, name: str) -> str:
        return name if name == "auto" else known_architecture(name)

    @model_validator(mode="after")
    def _the_warm_up_ends(self) -> TrainSettings:
        if self.warm_up_steps and self.recipe == "fast":
            raise ValueError(f"warm_up_steps={self.warm_up_steps}: recipe fast has a rise of its own; leave it out")
        if self.warm_up_steps >= self.steps:
            raise ValueError(
                f"warm_up_steps={self.warm_up_steps}: not fewer than steps={self.steps}; lower it or add steps"
            )
        return self

    @model_validator(mode="after")
    def _a_fraction_can_be_chosen(self) -> TrainSettings:
        if self.real_fraction == "auto" and self.mixing == "concatenate":
            raise ValueError("real_fraction=auto: with mixing=concatenate the sizes of the sets decide, not a fraction")
        return self


class DataSettings(Settings):
    """Which images are inverted, and which test the classifier."""

    _later = frozenset({"balanced", "per_class"})

    data: str = Field(description="folder of class folders, parquet file, hf:<id>, or a built-in name")
    test: str | None = Field(None, description="test images, as DATA; default: the data set's own, else a hold-out")
    size: int | None = Field(None, ge=4, description="side in px to load at; default: the data set's own, at most 512")
    limit: int | None = Field(None, ge=2, description="subset of the training images, classes in their proportions")
    balanced: bool = Field(
        False, description="the subset has as many training images of every class, as far as they go"
    )
    per_class: int | None = Field(
        None, ge=1, description="training images of each class at most (ours; text: 500 for MedMNIST)"
    )
    test_limit: int | None = Field(
        None, ge=2, description="subset of the test images, classes in their proportions, whatever is trained on"
    )
    holdout: float = Field(0.2, gt=0, lt=1, description="share held out where the data set has no test split")
    seed: int = Field(0, ge=0, description="seed of subset and hold-out")
    root: str | None = Field(None, description="where downloads go; default: $DINV_DATA")
    drop_test_duplicates: bool = Field(False, description="leave out test images that are training images too")
    allow_near_duplicates: bool = Field(False, description="accept test images that nearly equal training images")


# What `dinv demo` runs, sized for 2 CPU cores: elpv in at most 10 minutes, digits in at most 4. Classes keep their
# proportions: of elpv's 160 cells about a third are defective.
DEMOS: dict[str, dict[str, dict[str, object]]] = {
    "elpv": {
        "data": {"limit": 160, "test_limit": 1000, "holdout": 0.4},
        "invert": {"steps": 40},
        "sample": {"variants": 8},
        "train": {"recipe": "fast", "steps": 200, "seeds": [0, 1, 2]},
    },
    "digits": {
        "data": {"limit": 100, "test_limit": 350},
        "invert": {"steps": 25},
        "sample": {"variants": 5},
        "train": {"steps": 200, "seeds": [0, 1, 2]},
    },
}
