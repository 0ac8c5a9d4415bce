"""Settings of every stage: frozen models with units and ranges; an unknown key is an error.

A field is all there is to a setting: `dinv` makes its option of it (`cli/given.py`). Each description ends with where
the default comes from: "text" and "code" are the paper's (Zhou et al., arXiv 2305.15316, and its repository), "ours" is
neither. docs/differences.md says more.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SchedulerName = Literal["ddim", "pndm", "dpm++", "unipc", "euler"]
Unconditional = Literal["mean", "class-mean", "group-mean", "empty", "zero"]
PartnerPolicy = Literal["same-class", "nearest", "other-class", "reference"]
GuidanceScale = Annotated[float, Field(ge=0, le=100)]


def setting(
    default: Any, text: str, source: str = "", *, unset: str = "", option: str | None = "", **limits: Any
) -> Any:
    """A field of a settings model, and the option of the command line that is made of it.

    default: ... for a setting that must be given.
    text: what it is, for a reader of the model and of the help page; choices and default are added there.
    source: where the default comes from.
    unset: what the default stands for where it is None or empty.
    option: name of the option where it is not the field's; "DATA" (upper case): an argument; "x/--no-x": a flag that
        is off and has an opposite; None: no option.
    limits: as those of pydantic's Field.
    """
    description = text + (f"; default: {unset}" if unset else "") + (f" ({source})" if source else "")
    extra: dict[str, Any] = {"text": text, "unset": unset, "option": option}
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Settings(BaseModel):
    """Base of every settings model: immutable, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def described(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """As JSON data to compare runs by."""
        return self.model_dump(mode="json", exclude=set(leave_out))


class InvertSettings(Settings):
    """Stage 1: learn one conditioning vector c (tokens x text width) per image."""

    steps: int = setting(50, "AdamW steps per image; 0 keeps the initial vectors", "ours; text: 3,000", ge=0)
    keep_steps: tuple[int, ...] = setting(
        (), "steps whose vectors are kept too, e.g. 1000,2000,3000", "ours; text: 1000,2000,3000"
    )
    init: Literal["warm", "class-mean", "random"] = setting(
        "warm", "start from the adapter's guess, the mean of the class's guesses, or noise", "ours; code: noise"
    )
    tokens: int = setting(5, "tokens per vector", "code: its README; text: not said", ge=1, le=77)
    learning_rate: float = setting(0.03, "constant rate of stage 1", "text", gt=0, option="invert-learning-rate")
    weight_decay: float = setting(0.01, "AdamW weight decay", "code: PyTorch's default", ge=0, option=None)
    resolution: int | None = setting(
        None, "side in px to learn at", "ours; text: 128 or 256", unset="the generator's", ge=8
    )
    batch_size: int = setting(
        100, "images learned side by side, each on its own all the same", "ours", ge=1, option="invert-batch-size"
    )
    grouping: Literal["independent", "joint"] = setting(
        "independent", "each image on its own, or groups as in the code, whose steps are counted", "text; joint: code"
    )
    group_size: int = setting(100, "joint: images per group", "code", ge=1)
    joint_batch_size: int = setting(50, "joint: images with a loss at each step", "code", ge=1)
    gradient_checkpointing: bool = setting(False, "stage 1 in less memory, slower, with the same numbers", "ours")
    eval_draws: int = setting(
        8, "fixed (timestep, noise) draws that measure an image's loss", "ours", ge=1, option=None
    )
    seed: int = setting(0, "run seed of stages 1 and 2; an image derives its own from it and its id", "ours", ge=0)

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

    variants: int = setting(10, "images per learned vector", "ours; text: 45", ge=1)
    guidance_scales: tuple[GuidanceScale, ...] = setting(
        (1.0,),
        "to mix, e.g. 1.5,2,3, one for each image; 1 = off, the text's w + 1",
        "ours; text: w = 2, or 2, 3 and 4 mixed",
        min_length=1,
    )
    kept_steps: tuple[int, ...] = setting((), "stage-1 steps to mix", "text", unset="the last one")
    combinations: Literal["random", "grid"] = setting(
        "random",
        "of kept steps and guidance scales, one drawn for each image, or all in turn, each equally often",
        "random: text, of guidance; grid: code, 3 x 3 with 5 variants each",
    )
    noise_strength: float = setting(0.1, "lambda, standard deviation of the noise added to c", "text", ge=0, le=10)
    interpolation: float = setting(0.1, "alpha, weight of a partner's vector", "text", ge=0, le=1)
    interpolation_kind: Literal["lerp", "slerp"] = setting(
        "lerp", "along the straight line, or along the great circle of the flattened vectors", "text; slerp: ours"
    )
    partner: PartnerPolicy = setting(
        "same-class",
        "any of its class, the nearest of it, any of another class (soft label), or one of the group, as the code",
        "ours; text: two vectors, not which",
    )
    unconditional: Unconditional = setting(
        "mean",
        "what guidance leads away from, the mean of all vectors, of the class or the group, the empty prompt, or zeros",
        "text; group-mean: code",
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
    image_size: int | None = setting(
        None, "side of the saved PNG in px", "text", unset="the data set's own, at most the generator's", ge=4
    )
    batch_size: int = setting(100, "images drawn side by side", "ours", ge=1, option="sample-batch-size")
    seed: int = setting(0, "run seed of stages 1 and 2; an image derives its own from it and its id", "ours", ge=0)
    safety_checker: bool = setting(
        True, "draw again what the checkpoint's safety checker, if any, would blank", "ours; code: off"
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
    seed: int = setting(0, "run seed; every image derives its own from (seed, class, prompt, variant)", ge=0)
    safety_checker: bool = setting(True, "as in stage 2")


class RetrieveSettings(Settings):
    """Images of a pool that are nearest to the training images: the baseline that finds instead of making."""

    pool: str = setting(..., "folder of images at any depth, parquet files, hf:<id>, or a built-in name")
    k: tuple[int, ...] = setting(
        (10,), "neighbours of each training image, a set for each number", "ours; text: 10, 25 and 50", min_length=1
    )
    extractor: str = setting(
        "lite0", "says what is near; as of `dinv metrics`, such as clip", "ours; text: CLIP, by clip-retrieval"
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

    architecture: str = setting(
        "auto",
        f"one of {', '.join(ARCHITECTURES)}, timm:<name>, or auto: resnet20 on a CPU, resnet18 on a GPU",
        "ours; text: resnet18",
    )
    recipe: RecipeName = setting(
        "paper-sgd",
        "optimizer and schedule; also batch size, learning rate, momentum and weight decay where these are not given",
        "text",
    )
    augmentations: tuple[AugmentationName, ...] = setting(
        ("default",), "what happens to the images of each batch", "text", min_length=1
    )
    mixing: Literal["batch", "concatenate", "sequential"] = setting(
        "batch",
        "of real+synthetic, shares of every batch, one pool of all, or synthetic first and then real",
        "text; the others: ours",
    )
    me_ada_every: int = setting(
        0, "ME-ADA: steps between two rounds of adversarial copies (T_min), 0 = off", "ours", ge=0
    )
    me_ada_share: float = setting(0.1, "ME-ADA: share of the images that each round copies", "ours", gt=0, le=1)
    me_ada_steps: int = setting(15, "ME-ADA: ascent steps on each copy", "ours", ge=1)
    me_ada_rate: float = setting(
        0.04,
        "ME-ADA: ascent step size on pixels in [0, 1]",
        "ours: its authors' 20 at batch 128, adversarial.py",
        gt=0,
    )
    me_ada_gamma: float = setting(1.0, "ME-ADA: weight of the distance from the original", "ours", ge=0)
    me_ada_eta: float = setting(1.0, "ME-ADA: weight of the entropy of the prediction", "ours", ge=0)
    steps: int = setting(
        1000,
        "optimizer steps, the same for every arm",
        "ours; code: 50,000; text: not said",
        ge=1,
        option="train-steps",
    )
    warm_up_steps: int = setting(
        0, "steps in which a cosine recipe's rate rises first", "ours; code: 1,000; text: not said", ge=0
    )
    batch_size: int | None = setting(
        None, "images per step", "text: 128", unset="the recipe's", ge=2, option="train-batch-size"
    )
    learning_rate: float | None = setting(
        None,
        "peak of the schedule",
        "text: 0.1; AdamW 0.001",
        unset="the recipe's",
        gt=0,
        option="train-learning-rate",
    )
    momentum: float | None = setting(
        None, "SGD's momentum, AdamW's beta1", "code: 0.9", unset="the recipe's", ge=0, lt=1, option=None
    )
    weight_decay: float | None = setting(
        None, "weight decay", "code: 5e-4; text: of AdamW alone", unset="the recipe's", ge=0, option=None
    )
    real_fraction: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = setting(
        0.5,
        "real share of each batch of real+synthetic, of the steps where sequential; auto: one of 1/8, 1/4, 1/2, 3/4 "
        "and 7/8 that beats 1/2 on folds of the training images, else 1/2",
        "ours; text: the best of the five",
    )
    arms: tuple[Arm, ...] = setting(ARMS, "what to train on", "text", min_length=1)
    seeds: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4), "one classifier per arm and seed; at least 3 for a verdict", "text: five", min_length=1
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

    data: str = setting(..., "folder of class folders, parquet file, hf:<id>, or a built-in name", option="DATA")
    test: str | None = setting(None, "test images, as DATA", unset="the data set's own, else part held out")
    size: int | None = setting(None, "side in px to load at", unset="the data set's own, at most 512", ge=4)
    limit: int | None = setting(None, "use a subset of so many training images, classes in their proportions", ge=2)
    test_limit: int | None = setting(
        None, "use a subset of so many test images, classes in their proportions, whatever is trained on", ge=2
    )
    holdout: float = setting(0.2, "share held out where the data set has no test split", gt=0, lt=1)
    seed: int = setting(0, "seed of subset and hold-out", ge=0, option="data-seed")
    root: str | None = setting(None, "where downloaded data sets are kept", unset="$DINV_DATA")
    drop_test_duplicates: bool = setting(
        False,
        "leave out test images that are training images too",
        option="drop-test-duplicates/--no-drop-test-duplicates",
    )
    allow_near_duplicates: bool = setting(False, "accept test images that nearly equal training images")
    balanced: bool = setting(False, "the subset has as many training images of every class, as far as they go")
    per_class: int | None = setting(
        None, "at most so many training images of each class", "ours; text: 500 for MedMNIST", ge=1
    )


class GeneratorSettings(Settings):
    """Which generator, and where and how it computes."""

    generator: str = setting("mini", "mini, a diffusers folder, or a hub id")
    revision: str | None = setting(None, "revision of a hub id")
    device: str = setting("auto", "auto, cpu or cuda")
    dtype: str = setting("auto", "auto, float32, bfloat16 or float16: arithmetic of the UNet")


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
