"""How much noise each image bears: the ladder of strengths that are tried, and the bisection that finds a place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ..config.sampling import SampleSettings

# Strengths that are tried, as shares of a vector's root mean square: 0, then 1/64 to 2, each sqrt(2) times the last.
LADDER = (0.0, *(2 ** (half / 2) for half in range(-12, 3)))
Strengths = Mapping[str, float]  # source id => lambda


def of_source(settings: SampleSettings, strengths: Strengths | None, source_id: str) -> SampleSettings:
    """The settings with the noise strength of a source where they leave it open, and it was found."""
    if settings.noise_strength != "auto" or strengths is None:
        return settings
    return settings.model_copy(update={"noise_strength": strengths[source_id]})


def strength_at(level: int, vector: Tensor) -> float:
    """Lambda of a level of the ladder for a vector (tokens x features), to six digits."""
    return float(f"{LADDER[level] * float(vector.double().square().mean().sqrt()):.6g}")


def bisect(count: int, levels: int, passes: Callable[[list[int]], Sequence[bool]]) -> list[int]:
    """For each of `count` items the level, 0 to levels - 1, up to which it passes; all are searched side by side.

    Level 0 is taken to pass. What is returned passes, or is 0, and the level after it fails, where there is one: so it
    is the limit where all levels below a limit pass and all above fail, and one of the limits where there are several.
    `passes` is given a level for every item, ceil(log2(levels)) times, and says which pass; where the search of an item
    has ended before, what is said of it is not heard.
    """
    low, high = [0] * count, [levels] * count
    while max((top - bottom for bottom, top in zip(low, high, strict=True)), default=0) > 1:
        tried = [(bottom + top) // 2 for bottom, top in zip(low, high, strict=True)]
        for place, (level, good) in enumerate(zip(tried, passes(tried), strict=True)):
            if level == low[place]:
                continue
            (low if good else high)[place] = level
    return low
