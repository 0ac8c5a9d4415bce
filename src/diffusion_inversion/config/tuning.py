"""What `--tune` names: settings of stage 2 and of training, each with values to try, and two grids by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_origin

from pydantic import ValidationError

from ..errors import UsageError
from .sampling import SampleSettings
from .settings import DataSettings, InvertSettings, Settings
from .training import TrainSettings

Model = TypeVar("Model", bound=Settings)
Tunable = Literal["sample", "train"]
MODELS: dict[Tunable, type[Settings]] = {"sample": SampleSettings, "train": TrainSettings}
# Section C.2 of the paper: real to synthetic 1:7, 1:3, 1:1, 3:1, 7:1.
PAPER_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)
GRIDS: dict[str, tuple[str, ...]] = {
    "fast": ("sample.interpolation=0.1,0.4", "train.real_fraction=0.5,0.75"),
    "full": (
        "sample.guidance_scales=1,1.5,2",
        "sample.interpolation=0,0.1,0.25,0.4",
        "sample.interpolation_kind=lerp,slerp",
        "sample.noise_strength=0,0.1,0.2",
        "train.mixing=batch,sequential",
        "train.real_fraction=0.125,0.25,0.5,0.75,0.875",
    ),
}
FULL_SEEDS = 3  # classifier seeds of `full`; elsewhere one, or where there is a budget as many as it pays for
_SAME_IMAGES = "no image depends on it, so there is nothing to choose"
_REFUSED = {
    "sample.seed": "it names a draw, and the best of several draws is luck",
    "sample.batch_size": _SAME_IMAGES,
    "sample.strict": _SAME_IMAGES,
    "sample.safety_checker": "what a checker is for does not show in accuracy",
    "sample.image_size": "all arms would see images of another side",
    "sample.storage": _SAME_IMAGES,
    "sample.resolution": "vectors hold for the resolution they were learned at; it is stage 1's",
    "train.architecture": "choices are scored by the classifier of the run",
    "train.online": "choices are scored on images that are drawn beforehand, so every value is the same",
    "train.online_keep": "no classifier depends on it, so there is nothing to choose",
    "train.arms": "it says what is measured, not how",
    "train.seeds": "it says what is measured, not how",
}


@dataclass(frozen=True)
class Axis:
    """A setting and the values to try, as typed; the run's own value is always among those that are tried."""

    stage: Tunable
    name: str
    values: tuple[Any, ...]

    @property
    def key(self) -> str:
        """As in an experiment file: `sample.interpolation`."""
        return f"{self.stage}.{self.name}"

    def others(self, base: Model) -> dict[Any, Model]:
        """Value => the settings with it, of all values that are not those of `base`. Raises UsageError."""
        found = [changed(base, self, value) for value in self.values]
        values = {getattr(one, self.name): one for one in found}
        return {value: one for value, one in values.items() if value != getattr(base, self.name)}

    def beside(self, base: Model) -> tuple[dict[Any, Model], list[Any]]:
        """The same of those values that can be beside `base`, and those that cannot: what was chosen before rules
        them out.
        """
        possible: list[Any] = []
        for value in self.values:
            with suppress(UsageError):
                changed(base, self, value)
                possible.append(value)
        return replace(self, values=tuple(possible)).others(base), [one for one in self.values if one not in possible]


@dataclass(frozen=True)
class Tuning:
    """What is to be chosen, one setting after the other, and what it may cost."""

    axes: tuple[Axis, ...] = ()  # those of stage 2 first
    seconds: float | None = None  # of all of them: CPU seconds, on a GPU seconds
    seeds: int = 1  # classifier seeds, where there is no budget
    family: int = 0  # candidates of all axes beside the defaults: their intervals hold together

    def of(self, stage: Tunable) -> tuple[Axis, ...]:
        """The axes of a stage."""
        return tuple(axis for axis in self.axes if axis.stage == stage)

    def candidates(self, stage: Tunable, base: Model) -> list[Model]:
        """The settings with every value of the stage's axes, one changed at a time. Raises UsageError."""
        return [changed(base, axis, value) for axis in self.of(stage) for value in axis.others(base)]


AUTO = Axis("train", "real_fraction", PAPER_FRACTIONS)


def changed(base: Model, axis: Axis, value: Any) -> Model:
    """The settings with another value on an axis, checked. Raises UsageError of one line."""
    try:
        return type(base).model_validate({**base.model_dump(), axis.name: value})
    except ValidationError as error:
        cause = "; ".join(dict.fromkeys(fault["msg"].removeprefix("Value error, ") for fault in error.errors()))
        shown = "+".join(map(str, value)) if isinstance(value, tuple) else value
        raise UsageError(f"--tune {axis.key}={shown}: {cause}. Give other values.") from error


def read_tuning(texts: Iterable[str], seconds: float | None = None) -> Tuning:
    """What `--tune` was given: fast, full, or NAME=V1,V2,...; a value that is a list has + between its parts.

    Raises UsageError, one line, for an unknown name, one of stage 1, one that cannot be chosen, and values amiss.
    """
    given = list(texts)
    axes = [_axis(text) for name in given for text in GRIDS.get(name, (name,))]
    axes.sort(key=lambda axis: axis.stage)
    for one, other in pairwise(sorted(axis.key for axis in axes)):
        if one == other:
            raise UsageError(f"--tune {one}: named twice; give all its values at once.")
    return Tuning(tuple(axes), seconds, FULL_SEEDS if "full" in given else 1)


def _axis(text: str) -> Axis:
    named, equals, values = text.partition("=")
    each = [value.strip() for value in values.split(",") if value.strip()]
    stage, dot, name = named.strip().rpartition(".")
    name = name.replace("-", "_")
    if not equals or not each or not name:
        raise UsageError(f"--tune {text}: give {', '.join(GRIDS)}, or NAME=V1,V2,... with a setting's name.")
    models: dict[str, type[Settings]] = {"data": DataSettings, "invert": InvertSettings}
    models.update(MODELS.items())
    homes = [one for one, model in models.items() if name in model.model_fields and stage in ("", one)]
    free: list[Tunable] = [one for one in MODELS if one in homes and f"{one}.{name}" not in _REFUSED]
    if not homes:
        raise UsageError(f"--tune {named}: no such setting; give one of sample or train, as `dinv run --help` has it.")
    if not free or (len(homes) > 1 and not dot):
        raise UsageError(f"--tune {named}: {_why_not(homes, name)}")
    (home,) = free
    field = MODELS[home].model_fields[name]
    if "auto" in each and name in ("real_fraction", "noise_strength"):
        option = f"--{name.replace('_', '-')} auto"
        raise UsageError(f"--tune {name}=auto: give numbers, or {option} without --tune of it.")
    parts: Sequence[Any] = each
    if get_origin(field.annotation) is tuple:
        parts = [tuple(part for part in value.split("+") if part) for value in each]
    elif name == "balance":  # "class,COLUMN"
        parts = [value.replace("class+", "class,") for value in each]
    return Axis(home, name, tuple(parts))


def _why_not(homes: Sequence[str], name: str) -> str:
    ours = [f"{home}.{name}" for home in homes if home in MODELS and f"{home}.{name}" not in _REFUSED]
    if ours:
        return f"a setting of {' and '.join(homes)}; give {' or '.join(ours)}."
    home = homes[-1]
    if home == "invert":
        return "a setting of stage 1: every value would need vectors of its own. Use `dinv sweep` for it."
    if home == "data":
        return "it says which images there are, which no fold of them can choose."
    return f"{_REFUSED[f'{home}.{name}']}. Give it as an option."
