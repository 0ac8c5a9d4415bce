"""How the downstream networks are optimised: three recipes as data, and what they resolve to.

`paper-sgd` and `medmnist-adamw` are the two of the paper's section B.1. Its text has SGD with momentum at a batch of
128, a cosine from 0.1, and AdamW at 1e-3 with weight decay 5e-4 for MedMNIST, without a schedule of its own. From its
code (`train_net.py`) are momentum 0.9, weight decay 5e-4 for SGD too, one schedule for both, and a warm-up of 1,000 of
50,000 steps, which is `TrainSettings.warm_up_steps`: 0 here unless it is asked for (presets `paper` and `reference`).
`fast` is the best of 13 candidates (SGD and AdamW, batches of 16 to 128, with and
without label smoothing) at an equal number of images. ResNet-20, 1,000 training images of CIFAR-10, 30,720
drawn in all, validated on 2,000 other training images, mean ± std (n=3 seeds), one thread (`experiments/recipes.py`):

| recipe | accuracy | CPU seconds |
|---|---|---|
| paper-sgd | 42.1 ± 2.0 % | 47 |
| medmnist-adamw | 43.7 ± 0.9 % | 45 |
| fast | 49.6 ± 1.6 % | 50 |

On 200 digits of 8 px, where a step costs more than its images, `fast` gains nothing over `paper-sgd` at equal CPU time.
Its batches are a quarter of the paper's: at an equal number of steps it sees a quarter of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from ..config.training import RecipeName, TrainSettings
from ..errors import UsageError

# The settings that override a recipe where they are given.
OVERRIDES = ("batch_size", "learning_rate", "momentum", "weight_decay")
WARM_UP = 0.3  # share of the steps in which one-cycle rises; from there it falls as a cosine
FEWEST_STEPS = 4  # of one-cycle: with fewer the rise has no step, and the one of the last is at a rate of 0
FLOOR = 1e-3  # with a warm-up: of the highest rate, where it begins and where the cosine ends (paper's code)


@dataclass(frozen=True)
class Recipe:
    """All numbers of an optimisation but the count of its steps."""

    optimizer: Literal["sgd", "adamw"]
    learning_rate: float  # the highest
    momentum: float  # SGD's, or AdamW's beta1
    weight_decay: float
    schedule: Literal["cosine", "one-cycle"]  # cosine: from the highest rate to 0; one-cycle: from 1/25 of it up first
    label_smoothing: float  # in [0, 1)
    batch_size: int
    warm_up_steps: int = 0  # before the cosine


RECIPES: dict[RecipeName, Recipe] = {
    "paper-sgd": Recipe("sgd", 0.1, 0.9, 5e-4, "cosine", 0.0, 128),
    "medmnist-adamw": Recipe("adamw", 1e-3, 0.9, 5e-4, "cosine", 0.0, 128),
    "fast": Recipe("adamw", 2e-3, 0.9, 0.05, "one-cycle", 0.0, 32),
}


def resolve(settings: TrainSettings) -> Recipe:
    """Return the recipe of the settings with the numbers that they give themselves."""
    given = {name: value for name in OVERRIDES if (value := getattr(settings, name)) is not None}
    return replace(RECIPES[settings.recipe], **given, warm_up_steps=settings.warm_up_steps)


def resolved(settings: TrainSettings) -> TrainSettings:
    """Return the same settings with every number of the recipe spelled out."""
    recipe = resolve(settings)
    return settings.model_copy(update={name: getattr(recipe, name) for name in OVERRIDES})


def check_steps(settings: TrainSettings) -> None:
    """Raise UsageError for fewer steps than the recipe's schedule needs."""
    if RECIPES[settings.recipe].schedule == "one-cycle" and settings.steps < FEWEST_STEPS:
        raise UsageError(
            f"steps={settings.steps}: recipe {settings.recipe} raises and lowers its rate within the steps and needs "
            f"{FEWEST_STEPS} of them. Give --train-steps {FEWEST_STEPS} or more, or another --recipe."
        )


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter], *, fused: bool = False) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe; weight decay is on all parameters. `fused`: a step is one kernel, for CUDA."""
    kernel = True if fused else None  # None: PyTorch's own choice
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=kernel,
        )
    betas = (recipe.momentum, 0.999)
    return torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=betas, weight_decay=recipe.weight_decay, fused=kernel
    )


def make_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Make the schedule of a recipe over `steps` optimizer steps; it is stepped after each of them."""
    if recipe.warm_up_steps:
        rates = warmed_up(recipe.warm_up_steps, steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[step])
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=WARM_UP, cycle_momentum=False
    )


def warmed_up(warm_up: int, steps: int) -> list[float]:
    """Rate over the highest one after 0 .. `steps` steps: a linear rise over `warm_up` of them, on the cosine of all.

    The recursion of the paper's code: PyTorch's ChainedScheduler of LinearLR and of CosineAnnealingLR, each of which
    changes the rate that the other left.
    """

    def rise(step: int) -> float:
        return FLOOR + (1 - FLOOR) * min(step / warm_up, 1.0)

    def height(step: int) -> float:
        return 1 + math.cos(math.pi * step / steps)

    rates = [FLOOR]
    for step in range(1, steps + 1):
        risen = rates[-1] * rise(step) / rise(step - 1)
        rates.append(FLOOR + (risen - FLOOR) * height(step) / height(step - 1))
    return rates
