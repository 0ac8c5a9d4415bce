"""Settings of every stage: frozen models with units and ranges; an unknown key is an error.

A field is all there is to a setting: `dinv` makes its option of it (`cli/given.py`). Each description ends with where
the default comes from: "text" and "code" are the paper's (Zhou et al., arXiv 2305.15316, and its repository), "ours" is
neither. docs/differences.md says more.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_SEED = 2**63 - 1  # what tables of images hold


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
    vector_dtype: Literal["float32", "float16", "int8"] = setting(
        "float32", "how vectors are kept on disk, in 4, 2 or 1 bytes a number", "ours"
    )
    early_stopping: float | None = setting(
        None,
        "an image ends where its loss on the evaluation bank fell by less than this share of itself over the last "
        "quarter of the steps, and its place in the batch is another's",
        "ours",
        unset="off",
        gt=0,
        lt=1,
    )
    eval_draws: int = setting(
        8, "fixed (timestep, noise) draws that measure an image's loss", "ours", ge=1, option=None
    )
    seed: int = setting(
        0, "run seed of stages 1 and 2; an image derives its own from it and its id", "ours", ge=0, le=MOST_SEED
    )

    @model_validator(mode="after")
    def _kept_steps_are_reached(self) -> InvertSettings:
        bad = [s for s in self.keep_steps if not 0 <= s <= self.steps]
        if bad:
            raise ValueError(f"keep_steps={bad}: outside 0..steps={self.steps}; lower them or raise steps")
        return self

    @model_validator(mode="after")
    def _images_that_end_are_independent(self) -> InvertSettings:
        if self.early_stopping is not None and self.grouping == "joint":
            raise ValueError(
                f"early_stopping={self.early_stopping}: images of a joint group take their steps together; "
                "leave it out, or use grouping=independent"
            )
        return self

    def described(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """As `Settings` has it; without what older work did not have, where it is as it was then."""
        newer = ("vector_dtype", "early_stopping")
        plain = {name for name in newer if getattr(self, name) == type(self).model_fields[name].default}
        return super().described({*leave_out, *plain})

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Every step whose vectors are stored, the last one included, ascending."""
        return tuple(sorted({*self.keep_steps, self.steps}))


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
    seed: int = setting(0, "seed of subset and hold-out", ge=0, le=MOST_SEED, option="data-seed")
    root: str | None = setting(None, "where downloaded data sets are kept", unset="$DINV_DATA")
    drop_test_duplicates: bool = setting(
        False,
        "leave out test images that are training images too",
        option="drop-test-duplicates/--no-drop-test-duplicates",
    )
    allow_near_duplicates: bool = setting(False, "accept test images that nearly equal training images")
    balanced: bool = setting(False, "the subset has as many training images of every class, as far as they go")
    licence: str | None = setting(
        None, "licence of DATA: an SPDX id such as CC-BY-4.0, or words; what is published names it", unset="its own"
    )
    per_class: int | None = setting(
        None, "at most so many training images of each class", "ours; text: 500 for MedMNIST", ge=1
    )
    groups: str | None = setting(
        None,
        "what each image is of (patient, part, camera, scene): no hold-out and no fold splits a group; limits take "
        "images of the parts that were made. An existing CSV file of image and group; else a column of DATA's table "
        "(parquet, hub, list of files, metadata.csv beside class folders); else a regular expression on file names, "
        "whose first capture group, or else whole match, is the group",
        unset="each image alone",
    )

    def described(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """As `Settings` has it; without `groups` where none are, by which names of older work would differ."""
        return super().described({*leave_out, *(("groups",) if self.groups is None else ())})


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
