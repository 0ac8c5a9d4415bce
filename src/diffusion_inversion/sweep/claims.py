"""Judge the claims of several sweeps together, from the errors that their JSON files keep: no prediction is needed.

A claim makes one of two statements: that it holds, which is false unless every difference is above 0, or that it does
not, which is false unless one is below 0. Each has a p-value: of the differences' one-sided ones the largest ("holds")
or the smallest ("does not hold"), times their number. With one claim at level 5 % that says what `outcome.judge` says.

Over all claims: Holm's steps over both statements of each, so the chance of any false statement is at most 5 %,
whatever the claims share (Holm 1979); and Benjamini-Hochberg over the claims' two-sided p-values, so of the statements
made 5 % are false on average if the claims were independent (Benjamini & Yekutieli 2005, with their direction).

The p-value of a difference is the level at which its interval (`evaluation.half_width`) ends at 0. That interval holds
what it says at every level, so also at those of many claims (Banerjee 1960): let U and T be the true variances, in
shares u and v of their sum, x and y their estimates over them, a and b the quantiles. Then it covers with probability
G(u a^2 x + v b^2 y) >= u G(a^2 x) + v G(b^2 y), for the distribution function G of a squared normal is concave; and the
mean of either G is what an ordinary t interval covers. benchmarks/claim_errors.py counts false statements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..engine.untrusted import read_json
from ..errors import DataError, UsageError
from ..train.evaluation import MIN_UNITS, half_width

Outcome = Literal["holds", "does not hold", "too noisy to say"]
UNCLEAR: Outcome = "too noisy to say"
LEAST_P = 1e-12  # smaller ones are given as this
MAX_BYTES = 1 << 28  # of a sweep's JSON
# Differences of them are in [-1, 1].
BOUNDED = ("accuracy", "balanced_accuracy", "worst_class_accuracy", "precision", "recall", "coverage")
_GRID = 4096  # levels between LEAST_P and 1, between which logarithms are interpolated


class Difference(BaseModel):
    """A mean difference with its two errors, neither cut nor multiplied by a quantile."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    value: float = Field(allow_inf_nan=False, description="of the greater minus the less; accuracies in [-1, 1]")
    units: int = Field(ge=1, description="seeds or replicates it is paired over")
    unit_error: float | None = Field(ge=0, description="standard error by their spread; None: there is one")
    image_error: float | None = Field(ge=0, description="standard error by the choice of images; None: not known")
    images: float | None = Field(description="images that `image_error` is estimated from; None: endlessly many")

    def half(self, level: float) -> float | None:
        """Half its interval at `level` in (0, 1); None where an error is not known."""
        if self.image_error is None or (self.units > 1 and self.unit_error is None):
            return None
        images = math.inf if self.images is None else self.images
        return float(half_width((self.unit_error or 0.0) ** 2, self.image_error**2, max(self.units, 2), images, level))


class ClaimRecord(BaseModel):
    """A claim with what it rests on, as the JSON of a sweep has it."""

    model_config = ConfigDict(frozen=True)
    says: str
    of: str
    errors: tuple[Difference, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Judged:
    """A claim, the p-values of its two statements, and what is said of it alone and beside all others."""

    sweep: str
    claim: ClaimRecord
    holds: float
    fails: float
    alone: Outcome
    together: Outcome  # Holm
    discovery: Outcome  # Benjamini-Hochberg

    @property
    def record(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "sweep": self.sweep, "says": self.claim.says, "of": self.claim.of, "p_holds": self.holds,
            "p_does_not_hold": self.fails, "alone": self.alone, "together": self.together, "discovery": self.discovery,
        }  # fmt: skip


def tails(value: Any, unit_variance: Any, image_variance: Any, units: int, images: float) -> Any:
    """Two-sided p-values of differences: the level at which `half_width` is |value|; numbers or arrays of one shape.

    At least LEAST_P; 1 for a difference of 0.
    """
    import numpy as np

    # The square of the half width is a sum of the two variances, so its quantiles are worked out once for all.
    grid = np.linspace(math.log(LEAST_P), 0.0, _GRID)
    of_units, of_images = (
        half_width(*alone, units, images, 1 - np.exp(grid)) ** 2 for alone in ((1.0, 0.0), (0.0, 1.0))
    )
    square, unit_variance, image_variance = np.broadcast_arrays(np.square(value), unit_variance, image_variance)

    def excess(place: Any) -> Any:
        return of_units[place] * unit_variance + of_images[place] * image_variance - square

    low, high = np.zeros(square.shape, dtype=int), np.full(square.shape, _GRID - 1)
    for _ in range(_GRID.bit_length()):
        middle = (low + high) // 2
        wider = excess(middle) > 0
        low, high = np.where(wider, middle, low), np.where(wider, high, middle)
    above, below = excess(low), excess(high)
    share = np.clip(above / np.where(above > below, above - below, 1.0), 0.0, 1.0)
    return np.exp(grid[low] + share * (grid[high] - grid[low]))


def combined(values: Any, two_sided: Any) -> tuple[Any, Any]:
    """P-values of "holds" and "does not hold" from those of the differences (..., pairs)."""
    import numpy as np

    towards, against = two_sided / 2, 1 - two_sided / 2
    above, below = np.where(values > 0, towards, against), np.where(values < 0, towards, against)
    count = values.shape[-1]
    return np.minimum(1.0, count * above.max(axis=-1)), np.minimum(1.0, count * below.min(axis=-1))


def statements(claim: ClaimRecord) -> tuple[float, float]:
    """The p-values of "holds" and of "does not hold"; 1 for a difference of too few seeds or of an unknown error."""
    import numpy as np

    two_sided = []
    for found in claim.errors:
        images = math.inf if found.images is None else found.images
        if found.half(0.5) is None or (claim.of.endswith("accuracy") and found.units < MIN_UNITS):
            two_sided.append(math.inf)
            continue
        variances = (found.unit_error or 0.0) ** 2, (found.image_error or 0.0) ** 2
        two_sided.append(float(tails(found.value, *variances, max(found.units, 2), images)))
    values = np.array([found.value for found in claim.errors])
    p = np.array(two_sided)
    # Of an unknown error neither side can be excluded.
    unknown = np.isinf(p)
    holds, fails = combined(np.where(unknown, 0.0, values), np.where(unknown, 0.0, p))
    return float(holds), float(fails)


def holm(p: Any, level: float) -> Any:
    """Which of the p-values (..., m) Holm's steps reject at family-wise `level`; bool of the same shape."""
    import numpy as np

    ordered = np.sort(p, axis=-1)
    count = ordered.shape[-1]
    passed = np.logical_and.accumulate(ordered <= level / np.arange(count, 0, -1), axis=-1).sum(axis=-1, keepdims=True)
    # The passed are the smallest; of equal ones all or none.
    cut = np.take_along_axis(ordered, np.maximum(passed - 1, 0), axis=-1)
    return (passed > 0) & (np.asarray(p) <= cut)


def benjamini_hochberg(p: Any, level: float) -> Any:
    """Which of the p-values (..., m) the step-up procedure rejects at false discovery rate `level`."""
    import numpy as np

    ordered = np.sort(p, axis=-1)
    count = ordered.shape[-1]
    ranks = np.arange(1, count + 1)
    last = ((ordered <= level * ranks / count) * ranks).max(axis=-1, keepdims=True)
    cut = np.take_along_axis(ordered, np.maximum(last - 1, 0), axis=-1)
    return (last > 0) & (np.asarray(p) <= cut)


def judge_together(claims: Sequence[tuple[str, ClaimRecord]], confidence: float = 0.95) -> list[Judged]:
    """Judge claims, each with the name of its sweep, alone and over all; in their order.

    Raises UsageError for a confidence outside (0, 1).
    """
    import numpy as np

    if not 0 < confidence < 1:
        raise UsageError(f"confidence={confidence}: give a share between 0 and 1, both excluded")
    if not claims:
        return []
    level = 1 - confidence
    p = np.array([statements(claim) for _, claim in claims])  # (claims, 2)
    alone = p <= level / 2
    together = holm(p.reshape(-1), level).reshape(p.shape)
    found = benjamini_hochberg(np.minimum(1.0, 2 * p.min(axis=1)), level)
    discovery = found[:, None] & (p == p.min(axis=1, keepdims=True))
    return [
        Judged(sweep, claim, *pair.tolist(), *(_said(*said[place]) for said in (alone, together, discovery)))
        for place, ((sweep, claim), pair) in enumerate(zip(claims, p, strict=True))
    ]


def _said(holds: bool, fails: bool) -> Outcome:
    return "holds" if holds else "does not hold" if fails else UNCLEAR


def differences_text(claim: ClaimRecord, level: float) -> str:
    """Its differences with intervals that hold together at `level`; accuracies in points."""
    differences: list[tuple[float, float | None, float | None]] = []
    for found in claim.errors:
        half = found.half(1 - (1 - level) / len(claim.errors))
        low, high = (None, None) if half is None else (found.value - half, found.value + half)
        if low is not None and high is not None and claim.of.startswith(BOUNDED):
            low, high = max(low, -1.0), min(high, 1.0)
        differences.append((found.value, low, high))
    return in_words(claim.of, differences)


def in_words(of: str, differences: Sequence[tuple[float, float | None, float | None]]) -> str:
    """Differences of a measure, each with the ends of its interval; accuracies in points."""
    scale, unit = (100, " points") if of.endswith("accuracy") else (1, "")
    parts = []
    for value, low, high in differences:
        span = "" if low is None or high is None else f" [{scale * low:+.3g}, {scale * high:+.3g}]"
        parts.append(f"{scale * value:+.3g}{span}")
    return "; ".join(parts) + unit


def claims_text(judged: Sequence[Judged], confidence: float) -> str:
    """Lines for a terminal: every claim, its differences at `confidence` alone, and what is said of it."""
    lines = []
    for one in judged:
        lines.append(f"{one.sweep}: {one.claim.says}")
        lines.append(f"    {one.claim.of} {differences_text(one.claim, confidence)}")
        lines.append(f"    alone: {one.alone}; together: {one.together}; false discovery rate: {one.discovery}")
    count, level = len(judged), 100 * confidence
    lines.append(
        f"{count} claims. Alone: each by itself at {level:.4g} %. Together: the chance of a false statement is at most "
        f"{100 - level:.3g} % (Holm over {2 * count} statements). False discovery rate: of the statements made at most "
        f"{100 - level:.3g} % are false on average (Benjamini-Hochberg)."
    )
    return "\n".join(lines)


def read_claims(paths: Sequence[Path]) -> list[tuple[str, ClaimRecord]]:
    """The claims of sweeps, each with its name: JSON files of `dinv sweep`, or folders with some; each file once.

    Raises UsageError for a path that is not there and a folder without sweeps, DataError for a file of another kind.
    """
    files: dict[Path, list[tuple[str, ClaimRecord]]] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: not there. Give folders that `dinv sweep --out` wrote, or JSON files in them.")
        inside = [file for file in sorted(path.glob("*.json")) if _is_sweep(file)] if path.is_dir() else [path]
        if not inside:
            raise UsageError(
                f"{path}: no sweep in it. Give folders that `dinv sweep --out` wrote, or JSON files in them."
            )
        files |= {file.resolve(): _claims(file) for file in inside}
    return [claim for found in files.values() for claim in found]


def _is_sweep(file: Path) -> bool:
    try:
        return _has_claims(read_json(file, max_bytes=MAX_BYTES))
    except DataError:
        return False


def _has_claims(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("plan"), dict) and isinstance(record.get("claims"), list)


def _claims(file: Path) -> list[tuple[str, ClaimRecord]]:
    record = read_json(file, max_bytes=MAX_BYTES)
    if not _has_claims(record):
        raise DataError(f"{file}: not the JSON of a sweep. Give <name>.json of the folder of `dinv sweep`.")
    try:
        return [(file.stem, ClaimRecord.model_validate(claim)) for claim in record["claims"]]
    except ValidationError as error:
        raise DataError(
            f"{file}: its claims lack their errors, which older versions did not write. Give its `dinv sweep` "
            "command again: what is done is kept, only the tables are made anew."
        ) from error
