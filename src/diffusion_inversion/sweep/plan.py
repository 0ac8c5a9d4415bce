"""What an experiment file says: settings, the grid or the cases that vary them, what is measured, drawn and claimed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from ..config.commands import AuditSettings
from ..config.fidelity import FilterSettings
from ..config.presets import read_preset
from ..config.sampling import SampleSettings
from ..config.settings import DataSettings, InvertSettings, Settings
from ..config.training import TrainSettings
from ..config.tuning import Tuning, read_tuning
from ..data.sources import absolute, default_root
from ..engine.toml import read_toml
from ..errors import UsageError
from ..run.balancing import whole
from ..run.replicates import drawn_anew
from ..run.tune import prepared
from .ways import SECTIONS, Way, read_way, way_anew

STAGES: dict[str, type[BaseModel]] = {
    "data": DataSettings, "invert": InvertSettings, "sample": SampleSettings, "train": TrainSettings,
}  # fmt: skip
MOST_CELLS = 10_000


class Autoencode(Settings):
    """Sides in px at which images go through the generator's VAE before they are used; None: as they are."""

    train: int | None = Field(None, ge=8, description="the real images that are trained on (the paper's Table 1)")
    test: int | None = Field(None, ge=8, description="the test images (the paper's Table 6)")


class RunOptions(FilterSettings):
    """Options of `dinv run`, by their names; a cell that has any is a run of its own, on vectors that cells share."""

    copies: Literal["redraw", "report", "refuse", "off"] = Field("off", description="as --copies, but off by default")
    tune: tuple[str, ...] = Field((), description="as --tune, each value of it in a text of its own")
    tune_seconds: float | None = Field(None, ge=1, description="as --tune-seconds")


class Metrics(Settings):
    """Distances of the synthetic images from real ones, measured once for each set of synthetic images."""

    against: Literal["train", "test"] = Field("train", description="which real images")
    k: int = Field(5, ge=1, description="neighbours of precision, recall, density and coverage")
    extractor: str = "lite0"
    weights: str | None = None


class Figure(Settings):
    """What is drawn: `y` against `x`, one line for each value of `lines` and each arm."""

    x: str = Field(description="a key of the grid, such as sample.noise_strength, or case; images: synthetic images")
    y: tuple[str, ...] = Field(("accuracy",), min_length=1, description="accuracy, or metrics by name")
    lines: str | None = Field(None, description="another key of the grid, or case")
    xlabel: str | None = None


class Side(Settings):
    """Results that a claim speaks of: an arm, in one cell."""

    arm: str = "synthetic"
    at: dict[str, Any] = Field(default_factory=dict, description="key of the grid => its value; case => a case's name")


class Pair(Settings):
    """Two results of which the first is said to be the greater; of FID and KID the smaller is the better one."""

    greater: Side
    less: Side


class Claim(Settings):
    """One sentence of the paper, as an order of results: it holds if every pair does."""

    says: str
    of: str = Field("accuracy", description="accuracy, worst_class_accuracy or a metric's name")
    pairs: tuple[Pair, ...] = Field(min_length=1)


class Case(Settings):
    """A named set of settings that differ from the file's own."""

    name: str
    set: dict[str, Any]


class SweepPlan(Settings):
    """An experiment file; `name` is its own, and that of everything that is written about it."""

    name: str
    title: str
    about: str = ""
    generator: str = "mini"
    revision: str | None = None
    data: dict[str, Any]
    invert: dict[str, Any] = Field(default_factory=dict)
    sample: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    retrieve: dict[str, Any] = Field(
        default_factory=dict, description="with it the images of a cell are found in a pool, not made: `dinv retrieve`"
    )
    lecf: dict[str, Any] = Field(
        default_factory=dict, description="with it CLIP keeps some of many sentences' images: settings of `dinv lecf`"
    )
    prompts: dict[str, Any] = Field(
        default_factory=dict,
        description="with it the images of a cell are drawn from `prompts`: settings of `dinv sample --prompts`",
    )
    gan: dict[str, Any] = Field(
        default_factory=dict,
        description="with it they are a GAN's: its `weights`, `how` (sample or invert), settings of `dinv gan sample`",
    )
    autoencode: Autoencode = Autoencode()
    run: dict[str, Any] = Field(default_factory=dict, description="options of `dinv run`: RunOptions")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="dotted key => values, all combined")
    cases: tuple[Case, ...] = Field((), description="each combined with the whole grid")
    replicates: int = Field(1, ge=1, description="how often every cell is done, each time with all of it drawn anew")
    own_size: bool = Field(False, description="beside the arm real also `real (own size)`, where images are shrunk")
    metrics: Metrics | None = None
    figure: Figure | None = None
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _names_are_known(self) -> SweepPlan:
        keys = {*self.grid, *(("case",) if self.cases else ())}
        names = [case.name for case in self.cases]
        if len(set(names)) < len(names):
            raise ValueError(f"cases: a name is given twice among {names}")
        if not keys:
            raise ValueError("nothing varies: give a [grid] or [[cases]]")
        for name, values in self.grid.items():
            if name == "case":
                raise ValueError("grid: case is what [[cases]] are called; give them there")
            if not values:
                raise ValueError(f"grid: {name} has no values")
        if self.figure is not None:
            lines = {self.figure.lines} if self.figure.lines else set()
            if unknown := ({self.figure.x} - {"images"} | lines) - keys:
                raise ValueError(f"figure: {sorted(unknown)} does not vary here; these do: {sorted(keys)}")
        for claim in self.claims:
            for side in (side for pair in claim.pairs for side in (pair.greater, pair.less)):
                if unknown := set(side.at) - keys:
                    raise ValueError(f"claim {claim.says!r}: {sorted(unknown)} does not vary here")
        return self


@dataclass(frozen=True)
class Cell:
    """One combination of values, with all settings worked out. `at` says which values, by key of the grid or case."""

    at: Mapping[str, Any]
    data: DataSettings
    invert: InvertSettings
    sample: SampleSettings
    train: TrainSettings
    autoencode: Autoencode
    way: Way | None = None  # None: images are drawn around vectors
    run: RunOptions = field(default_factory=RunOptions)
    tuning: Tuning = field(default_factory=Tuning)  # what `run` has to be chosen

    @property
    def is_run(self) -> bool:
        """Whether it is done in a run folder of its own, as `dinv run` would."""
        return bool(self.tuning.axes or self.train.online) or self.run != RunOptions()

    @property
    def is_auto(self) -> bool:
        """Whether the real share of batches is chosen."""
        return self.train.real_fraction == "auto"

    @property
    def chooses_fraction(self) -> bool:
        """Whether that is done by a job of the sweep, not in a run folder."""
        return self.is_auto and not self.is_run and "real+synthetic" in self.train.arms

    @property
    def filtering(self) -> FilterSettings:
        """What becomes of images that show another class."""
        return FilterSettings(filter=self.run.filter)

    @property
    def copies(self) -> AuditSettings | None:
        """How copies of training images are looked for; None where they are not."""
        return None if self.run.copies == "off" else AuditSettings(copies=self.run.copies)

    @property
    def learns(self) -> bool:
        """Whether its images are drawn around vectors."""
        return self.way is None

    @property
    def asked_sides(self) -> list[int | None]:
        """Sides in px that are asked of its images: kept at, and drawn or else learned at."""
        return [self.sample.image_size, self.sample.resolution or self.invert.resolution]

    @property
    def amounts(self) -> tuple[int | str | None, ...]:
        """What says how many images of each source it uses; (None,): all that are there."""
        if not self.learns:
            return (None,)
        return (self.sample.variants, *(() if self.sample.balance == "none" else (self.sample.balance,)))

    @property
    def root(self) -> Path:
        """Where built-in data sets lie."""
        return default_root(self.data.root)

    def differs(self, section: str = "") -> str:
        """Its values for people, those of one section or all."""
        shown = [f"{key}={value}" for key, value in self.at.items() if not section or key.startswith((section, "case"))]
        return ", ".join(shown) or "as the file says"


def read_plan(path: Path, data: str | None = None, test: str | None = None, replicates: int | None = None) -> SweepPlan:
    """Read and check an experiment file; the other arguments replace its own. A `preset` lies below its settings.

    Raises UsageError, which names the key, for a file that cannot be used.
    """
    content = read_toml(path)
    tables = {name: content.get(name, {}) for name in STAGES}
    if wrong := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise UsageError(f"{path}: {', '.join(wrong)}: not a table; write [{wrong[0]}] and its settings below.")
    if preset := content.pop("preset", None):
        base = read_preset(str(preset), data or tables["data"].get("data"))
        content |= {stage: {**base[stage], **tables[stage]} for stage in base}
    content["name"] = path.stem
    if replicates is not None:
        content["replicates"] = replicates
    given = {key: value for key, value in {"data": data, "test": test}.items() if value is not None}
    named = {**tables["data"], **given}
    content["data"] = named | {key: absolute(named[key]) for key in ("data", "test") if isinstance(named.get(key), str)}
    try:
        plan = SweepPlan.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: " + problems(error)) from error
    varied = "data.data" in plan.grid or (plan.cases and all("data.data" in case.set for case in plan.cases))
    if not plan.data.get("data") and not varied:
        raise UsageError(f"{path}: names no data. Give it by --data, or as data under [data].")
    return plan


def cells(plan: SweepPlan) -> list[Cell]:
    """Every case with every combination of the grid, in their order, checked.

    Raises UsageError for a key that no stage knows and for values that cannot be used.
    """
    count = max(len(plan.cases), 1)
    for values in plan.grid.values():
        count *= len(values)
    if count > MOST_CELLS:
        raise UsageError(f"{plan.title}: {count:,} combinations, more than {MOST_CELLS:,}; make the grid smaller.")
    return [_cell(plan, at) for at in _combinations(plan)]


def replicates(plan: SweepPlan, cell: Cell) -> list[Cell]:
    """A cell as each replicate does it: subset, hold-out, vectors, images and classifiers have seeds of their own."""
    return [
        replace(
            cell,
            data=drawn_anew(cell.data, number),
            invert=drawn_anew(cell.invert, number),
            sample=drawn_anew(cell.sample, number),
            train=drawn_anew(cell.train, number),
            way=way_anew(cell.way, number),
        )
        for number in range(plan.replicates)
    ]


def _combinations(plan: SweepPlan) -> Iterator[dict[str, Any]]:
    for case in plan.cases or (None,):
        for values in itertools.product(*plan.grid.values()):
            at = dict(zip(plan.grid, values, strict=True))
            yield {"case": case.name, **at} if case is not None else at


def _cell(plan: SweepPlan, at: Mapping[str, Any]) -> Cell:
    sections: dict[str, dict[str, Any]] = {name: dict(getattr(plan, name)) for name in STAGES}
    sections["autoencode"] = plan.autoencode.model_dump()
    sections |= {name: dict(getattr(plan, name)) for name in (*SECTIONS.values(), "run")}
    changed = {key: value for key, value in at.items() if key != "case"}
    if "case" in at:
        changed = {**next(case.set for case in plan.cases if case.name == at["case"]), **changed}
    for key, value in changed.items():
        section, _, name = key.partition(".")
        if section not in sections or not name:
            raise UsageError(f"{plan.title}: {key}: unknown; give <section>.<setting> with one of {list(sections)}.")
        sections[section][name] = value
    try:
        run = RunOptions.model_validate(sections["run"])
        sample = whole(SampleSettings.model_validate(sections["sample"]))
        train = TrainSettings.model_validate(sections["train"])
        tuning = read_tuning(run.tune, run.tune_seconds)
        if run != RunOptions():  # else real_fraction=auto alone is chosen without a run
            tuning = prepared(tuning, sample, train)
        return Cell(
            at,
            DataSettings.model_validate(_from_anywhere(sections["data"])),
            InvertSettings.model_validate(sections["invert"]),
            sample,
            train,
            Autoencode.model_validate(sections["autoencode"]),
            read_way(sections),
            run,
            tuning,
        )
    except ValidationError as error:
        raise UsageError(f"{plan.title}, at {dict(at)}: " + problems(error)) from error


def _from_anywhere(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of data whose relative paths are made absolute, since jobs are named after them; others as they are."""
    paths = {key: data[key] for key in ("data", "test") if isinstance(data.get(key), str)}
    return {**data, **{key: absolute(path) for key, path in paths.items() if not Path(path).is_absolute()}}


def problems(error: ValidationError) -> str:
    """What is wrong, one line for each field."""
    lines = []
    for fault in error.errors():
        name = ".".join(map(str, fault["loc"])) or "settings"
        missing = fault["type"] == "missing"  # its input is all that is there
        lines.append(f"{name}: missing; add it" if missing else f"{name}={fault['input']!r}: {fault['msg']}")
    return "settings that cannot be used:\n" + "\n".join(f"  {line}" for line in lines)
