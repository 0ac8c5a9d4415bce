"""What is resampled for an error: units of images that came about together, such as the variants of one source.

Ten variants of one image say less than ten images: an error that counts them as ten is too small. A unit that has
images on both sides (a real image and what was made from it) is taken out of both at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

GROUPS = 20  # of units, that the jackknife leaves out in turn
FEWEST_UNITS = 3  # of a side: with fewer there is no error


@dataclass(frozen=True, eq=False)
class Units:
    """The unit of every image, as a number; images of either side that have the same number are of one unit."""

    real: Int64[Tensor, " real"]
    generated: Int64[Tensor, " generated"]

    @property
    def counts(self) -> tuple[int, int]:
        """Units of the real and of the generated images."""
        return len(self.real.unique()), len(self.generated.unique())

    @property
    def shared(self) -> bool:
        """Whether a unit has images on both sides."""
        return bool(torch.isin(self.real, self.generated).any())

    @property
    def groups(self) -> int:
        """How many groups the jackknife makes of them: an error has one degree of freedom less."""
        return min(GROUPS, *self.counts)

    @property
    def enough(self) -> bool:
        """Whether there are enough of them for an error."""
        return min(self.counts) >= FEWEST_UNITS

    def strata(self) -> list[Int64[Tensor, " units"]]:
        """Units on both sides, on the real one alone, on the generated one alone; each ascending."""
        real, generated = self.real.unique(), self.generated.unique()
        both = torch.isin(real, generated)
        return [real[both], real[~both], generated[~torch.isin(generated, real)]]


def single_units(n_real: int, n_generated: int) -> Units:
    """Every image on its own."""
    return Units(torch.arange(n_real), torch.arange(n_real, n_real + n_generated))


def named_units(real: Sequence[Hashable], generated: Sequence[Hashable]) -> Units:
    """Units from their names: the same name on both sides is one unit."""
    number = {name: place for place, name in enumerate(dict.fromkeys([*real, *generated]))}
    return Units(torch.tensor([number[name] for name in real]), torch.tensor([number[name] for name in generated]))


def by_content(units: Units, real_features: Tensor, generated_features: Tensor) -> Units:
    """The same units, numbered by what their images are: so draws of them do not depend on the order of the rows."""
    smallest: dict[int, bytes] = {}
    for side, features in ((units.real, real_features), (units.generated, generated_features)):
        rows = features.detach().cpu().contiguous().numpy()
        for unit, row in zip(side.tolist(), rows, strict=True):
            key = hashlib.sha256(row.tobytes()).digest()
            smallest[unit] = min(smallest.get(unit, key), key)
    number = {unit: place for place, unit in enumerate(sorted(smallest, key=lambda unit: smallest[unit]))}
    return Units(*(torch.tensor([number[unit] for unit in side.tolist()]) for side in (units.real, units.generated)))


def deal(units: Units, seed: int) -> tuple[Int64[Tensor, " real"], Int64[Tensor, " generated"], int]:
    """Deal the units at random among groups of equal size: the group of every image, and how many groups there are.

    At most GROUPS of them, and no more than a side has units, so each has units of either side: those of one side alone
    are dealt on from where those of both sides ended.
    """
    stream = torch.Generator().manual_seed(seed)
    groups = units.groups
    real, generated = torch.empty_like(units.real), torch.empty_like(units.generated)
    strata = units.strata()
    for members, first in zip(strata, (0, len(strata[0]), len(strata[0])), strict=True):
        group = (torch.randperm(len(members), generator=stream) + first) % groups
        for side, found in ((units.real, real), (units.generated, generated)):
            mine = torch.isin(side, members)
            found[mine] = group[torch.searchsorted(members, side[mine])]
    return real, generated, groups


@dataclass(frozen=True, eq=False)
class Jackknife:
    """The sets of a delete-a-group jackknife, as columns of 0 and 1 for either side.

    Where units are shared, each group is left out of both sides at once: one series. Else each real group is left out,
    then each generated one: two series, whose variances add.
    """

    real: Float64[Tensor, "real parts"]
    generated: Float64[Tensor, "generated parts"]
    series: int  # columns of one series

    def error(self, values: Float64[Tensor, " parts"]) -> float:
        """Standard error from a metric's values on these sets (Shao & Wu 1989)."""
        variance = torch.zeros((), dtype=torch.float64)
        for found in values.split(self.series):
            variance += (len(found) - 1) / len(found) * (found - found.mean()).square().sum()
        return float(variance.sqrt())


def jackknife(units: Units, seed: int) -> Jackknife:
    """The jackknife's sets. Needs `units.enough`."""
    real_group, generated_group, groups = deal(units, seed)
    real, generated = ((group[:, None] != torch.arange(groups)).double() for group in (real_group, generated_group))
    if units.shared:
        return Jackknife(real, generated, groups)
    return Jackknife(
        torch.cat([real, torch.ones_like(real)], dim=1),
        torch.cat([torch.ones_like(generated), generated], dim=1),
        groups,
    )


def part(
    units: Units, stream: torch.Generator, share: float = 0.5
) -> tuple[Bool[Tensor, " real"], Bool[Tensor, " generated"]]:
    """A random share of the units, rounded down: which images of either side are in it."""
    drawn = [m[torch.randperm(len(m), generator=stream)][: int(share * len(m))] for m in units.strata()]
    chosen = torch.cat(drawn)
    return torch.isin(units.real, chosen), torch.isin(units.generated, chosen)
