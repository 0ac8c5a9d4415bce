"""Settings of few-shot learners on a frozen CLIP.

Each description ends with where the default comes from: "CoOp", "Tip" and "He" are Zhou et al. 2022 (arXiv 2109.01134),
Zhang et al. 2022 (arXiv 2207.09519) and He et al. 2022 (arXiv 2210.07574) with their repositories, "ours" is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

from pydantic import Field, field_validator

from .settings import Settings

CLASS = "{class}"  # in a template: where the name of the class goes
Method = Literal["zero-shot", "coop", "tip-adapter", "tip-adapter-f", "classifier-tuning"]
METHODS: tuple[Method, ...] = get_args(Method)
LEAST_SEEDS = 3

Texts = TypeVar("Texts", bound=Sequence[str])


def each_names_the_class(templates: Texts) -> Texts:
    """The templates as they are. Raises ValueError for one without {class}."""
    if bad := [text for text in templates if CLASS not in text]:
        raise ValueError(f"{bad[0]!r} has no {CLASS}: all classes would have the same prompt")
    return templates


class FewShotSettings(Settings):
    """What is learned from how many images of each class, and how."""

    shots: tuple[int, ...] = Field((1, 2, 4, 8, 16), min_length=1, description="training images of each class (all)")
    methods: tuple[Method, ...] = Field(METHODS, min_length=1, description="learners")
    seeds: tuple[int, ...] = Field(
        (0, 1, 2, 3, 4),
        min_length=LEAST_SEEDS,
        description="each draws shots of its own and trains on them; at least 3 (ours; CoOp: three)",
    )
    templates: tuple[str, ...] = Field(
        (f"a photo of a {CLASS}.",),
        min_length=1,
        description="prompts of a class, of which the mean embedding is taken, each of length 1 (all)",
    )
    views: int = Field(
        10,
        ge=1,
        description="augmented encodings of an image: Tip-Adapter's key is their mean (Tip); other learners draw one "
        "for each step (ours; the others encode anew)",
    )
    smallest_crop: float = Field(
        0.5, gt=0, le=1, description="least area of a random crop, relative to the image (Tip; CoOp: 0.08)"
    )
    coop_tokens: int = Field(16, ge=1, description="learned vectors before the class name, shared by all (CoOp)")
    coop_epochs: int | None = Field(
        None, ge=2, description="default: 50 for 1 shot, 100 up to 4, 200 above; the first is a warm-up (CoOp)"
    )
    coop_batch_size: int = Field(32, ge=1, description="images a step (CoOp)")
    coop_learning_rate: float = Field(0.002, gt=0, description="SGD, cosine (CoOp)")
    tip_alpha: float = Field(1.17, ge=0, description="weight of the cache before it is searched for (Tip, ImageNet)")
    tip_beta: float = Field(1.0, ge=0, description="sharpness of the cache before it is searched for (Tip)")
    largest_alpha: float = Field(3.0, gt=0.1, description="the search goes from 0.1 up to it (Tip, ImageNet)")
    largest_beta: float = Field(7.0, gt=0.1, description="the search goes from 0.1 up to it (Tip, ImageNet)")
    alphas: int = Field(20, ge=1, description="values that are searched (Tip)")
    betas: int = Field(200, ge=1, description="values that are searched (Tip)")
    folds: int = Field(
        5, ge=2, description="parts of the shots, each held out once to choose alpha and beta (ours; Tip: images apart)"
    )
    tip_epochs: int = Field(20, ge=1, description="of Tip-Adapter-F (Tip; EuroSAT 100)")
    tip_batch_size: int = Field(256, ge=1, description="images a step of Tip-Adapter-F (Tip)")
    tip_learning_rate: float = Field(0.001, gt=0, description="AdamW, cosine, of Tip-Adapter-F (Tip)")
    tuning_steps: int | None = Field(
        None,
        ge=1,
        description="of classifier tuning, with and without synthetic images; default: 30 epochs of 800 images a class "
        "in batches of 512 (He, with synthetic images)",
    )
    tuning_batch_size: int = Field(32, ge=1, description="real images a step of classifier tuning (He)")
    tuning_synthetic_batch_size: int = Field(512, ge=1, description="synthetic images a step beside them (He)")
    tuning_learning_rate: float = Field(0.001, gt=0, description="AdamW, cosine (He)")
    tuning_weight_decay: float = Field(0.1, ge=0, description="(He)")
    soft_weight: float = Field(
        0.5, ge=0, le=1, description="of the zero-shot classifier's answers in the loss of synthetic images (He)"
    )
    soft_temperature: float = Field(2.0, gt=0, description="of these answers (He)")

    @field_validator("shots", "methods", "seeds", "templates")
    @classmethod
    def _each_once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError("give each once")
        return values

    @field_validator("shots")
    @classmethod
    def _at_least_one_shot(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if min(shots) < 1:
            raise ValueError("give at least one image of each class")
        return tuple(sorted(shots))

    _templates = field_validator("templates")(each_names_the_class)
