"""Settings of the downstream task."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ..engine.text import did_you_mean
from .settings import Settings, setting

Arm = Literal["real", "synthetic", "real+synthetic"]
ARMS: tuple[Arm, ...] = get_args(Arm)
RecipeName = Literal["paper-sgd", "medmnist-adamw", "fast"]
ARCHITECTURES = (
    "resnet20", "resnet56", "resnet18", "vgg16", "mobilenetv2", "shufflenetv2", "efficientnetb0", "lite0",
)  # fmt: skip
AugmentationName = Literal[
    "none", "default", "autoaugment", "randaugment", "cutout", "mixup", "cutmix", "augmix"
]  # fmt: skip

Mixing = Literal["batch", "concatenate", "sequential", "real-last", "curriculum", "queue", "two-losses", "confidence"]


def known_architecture(name: str) -> str:
    """The name of an architecture as it is. Raises ValueError for one that is neither ours nor timm:<name>."""
    if name in ARCHITECTURES or (name.startswith("timm:") and len(name) > len("timm:")):
        return name
    near = did_you_mean(name, (*ARCHITECTURES, "auto"))
    raise ValueError(f"unknown; use one of {', '.join(ARCHITECTURES)} or timm:<name>{near}")


class TrainSettings(Settings):
    """Downstream task: one classifier per arm and seed, all with the same number of optimizer steps."""

    architecture: str = setting(
        "auto",
        f"one of {', '.join(ARCHITECTURES)}, timm:<name>, or auto: resnet20 on a CPU, resnet18 on a GPU",
        "ours; text: resnet18",
    )
    recipe: RecipeName = setting(
        "paper-sgd",
        "optimizer, schedule and every number of theirs that is not given, batch size too",
        "text",
    )
    augmentations: tuple[AugmentationName, ...] = setting(
        ("default",), "what happens to the images of each batch", "text", min_length=1
    )
    mixing: Mixing = setting(
        "batch",
        "real+synthetic has shares of every batch, one pool of all, synthetic first and then real, shares but real "
        "alone in the last tenth of the steps, shares with variants far from their source first, shares with ever new "
        "variants, half a batch of each with its own loss, or losses weighed by a judge's confidence in each label",
        "text; the others: ours",
    )
    online: int = setting(
        0,
        "variants of each source that are drawn while classifiers train, ahead of them: a queue of one epoch, whose "
        "oldest tenth is replaced at even steps; 0 = all drawn beforehand",
        "ours",
        ge=0,
    )
    online_keep: bool = setting(
        False, "online: images stay, else they are deleted when all classifiers passed them", "ours"
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
        "real share of each batch of real+synthetic, of the steps where sequential, of the loss where two-losses; "
        "auto: one of 1/8, 1/4, 1/2, 3/4 and 7/8 that beats 1/2 on folds of the training images, else 1/2",
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

    @model_validator(mode="after")
    def _a_queue_is_all_that_goes_online(self) -> TrainSettings:
        if self.online_keep and not self.online:
            raise ValueError("online_keep: nothing is drawn while classifiers train; leave it out or give online")
        if self.online and self.mixing not in ("batch", "queue"):
            raise ValueError(
                f"online={self.online}: images come in a queue, mixing={self.mixing} needs all; leave out one"
            )
        if self.online and self.real_fraction == "auto":
            raise ValueError(
                f"online={self.online}: real_fraction=auto is chosen on images that are there; give a number"
            )
        if self.online and self.me_ada_every:
            raise ValueError(
                f"online={self.online}: adversarial copies have no place in a queue; leave out me_ada_every"
            )
        return self

    @model_validator(mode="after")
    def _the_mixing_has_what_it_needs(self) -> TrainSettings:
        if self.me_ada_every and self.mixing in ("curriculum", "queue", "confidence"):
            raise ValueError(
                f"me_ada_every={self.me_ada_every}: with mixing={self.mixing} adversarial copies would need a place in "
                "the order, or a confidence, of their own; leave one of the two out"
            )
        if self.mixing == "two-losses" and self.batch_size is not None and self.batch_size < 4:
            raise ValueError(
                f"batch_size={self.batch_size}: with mixing=two-losses batch normalisation needs two images of each "
                "kind; give at least 4"
            )
        return self

    def described(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """As `Settings` has it; without `online` where it is off, by which older work would differ."""
        return super().described({*leave_out, *(() if self.online else ("online", "online_keep"))})
