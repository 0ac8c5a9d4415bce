"""How many variants each source gets: as many for all, or so that counts of real and synthetic images are even.

As many images are drawn as without balance, and each in turn goes to the part (a class, a subgroup) that has the fewest
images, real and synthetic ones together. A part that has more real images than all others come to gets none: it is
full. Within a part sources get as many as each other, or one more. So counts only rise with `variants`, and an image
that two plans ask for is one image.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import TypeAlias

from ..config.sampling import SampleSettings
from ..errors import DataError, UsageError

Part: TypeAlias = tuple[str, ...]  # of which a value of the attribute, or a class's number, or both
_NAMED = 3  # parts in a message


def counts_of(
    labels: Mapping[str, int], settings: SampleSettings, value_of: Mapping[str, str] | None = None
) -> dict[str, int]:
    """How many variants each source gets; `labels` has the class of each source by id, `value_of` its attribute.

    They add up to sources x variants. Raises UsageError where the values are needed and not given, DataError for a
    source without one, and where all have the same.
    """
    if settings.balance == "none":
        return dict.fromkeys(labels, settings.variants)
    parts = parts_of(labels, settings, value_of)
    real = Counter(parts.values())
    members: dict[Part, list[str]] = {}
    for source in sorted(parts, key=_place):
        members.setdefault(parts[source], []).append(source)
    found: dict[str, int] = {}
    for part, more in even(real, settings.variants * len(parts)).items():
        each, left = divmod(more, real[part])
        found |= {source: each + (place < left) for place, source in enumerate(members[part])}
    return {source: found[source] for source in labels}


def parts_of(
    labels: Mapping[str, int], settings: SampleSettings, value_of: Mapping[str, str] | None = None
) -> dict[str, Part]:
    """The part of each source, of those that are to have as many images. Raises as `counts_of`."""
    attribute = settings.balanced_attribute
    if attribute is None:
        return {source: (str(label),) for source, label in labels.items()}
    what = f"balance={settings.balance}"
    if value_of is None:
        raise UsageError(f"{what}: the values of {attribute} are not known here; use class")
    if lost := [source for source in labels if source not in value_of]:
        raise DataError(f"{what}: {len(lost)} of {len(labels)} images have no value, as {lost[0]}; give them one")
    if len(values := {value_of[source] for source in labels}) == 1:
        raise DataError(f"{what}: all {len(labels)} training images have one value, {min(values)}; use class")
    classes = settings.balances_classes
    return {source: (*([str(labels[source])] if classes else []), value_of[source]) for source in labels}


def even(real: Mapping[Part, int], total: int) -> dict[Part, int]:
    """How many of `total` further images each part gets, which has so many: the next goes to that with the fewest.

    Of several it goes to the one that began with the fewest, then to the first by name.
    """

    def needed(level: int) -> int:
        return sum(max(level - count, 0) for count in real.values())

    low = min(real.values())
    level = low - 1 + bisect_right(range(low, low + total + 1), total, key=needed)
    found = {part: max(level - count, 0) for part, count in real.items()}
    reached = sorted((part for part, count in real.items() if count <= level), key=lambda part: (real[part], part))
    for part in reached[: total - needed(level)]:
        found[part] += 1
    return found


def least_variants(real: Mapping[Part, int]) -> int:
    """The least number of variants with which all parts have as many images, one more or less."""
    most = max(real.values())
    return max(math.ceil(sum(most - count for count in real.values()) / sum(real.values())), 1)


def uneven(
    labels: Mapping[str, int], settings: SampleSettings, value_of: Mapping[str, str] | None = None
) -> str | None:
    """What remains uneven, in one line for people; None where nothing does, and where nothing is to be evened."""
    if settings.balance == "none":
        return None
    real = Counter(parts_of(labels, settings, value_of).values())
    more = even(real, settings.variants * sum(real.values()))
    least = min(real[part] + more[part] for part in real)
    above = sorted((part for part in real if real[part] + more[part] > least + 1), key=lambda part: -real[part])
    if not above:
        return None
    return (
        f"balance={settings.balance}: variants={settings.variants} does not even the counts: {len(above)} of "
        f"{len(real)} parts have more real images than the {least} that the others come to with synthetic ones (up to "
        f"{real[above[0]]}), and get none. variants={least_variants(real)} would."
    )


def _place(source: str) -> bytes:
    """A place in an order of sources that does not depend on which others there are, nor on how they are named."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()
