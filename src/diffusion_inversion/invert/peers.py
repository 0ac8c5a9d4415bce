"""Among which rows a row chooses its partner: those of its class and the others, in all vectors or in a group."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Peers:
    """Rows with those of one class side by side."""

    rows: tuple[int, ...]
    place: int  # of the row itself in `rows`
    own: range  # places of its class


def peers_of(rows: Sequence[int], labels: Sequence[int]) -> dict[int, Peers]:
    """The peers of every row in `rows`, whose classes are whole stretches; `labels` has the class of any row."""
    ordered = tuple(rows)
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for place, row in enumerate(ordered):
        starts.setdefault(labels[row], place)
        ends[labels[row]] = place + 1
    own = {label: range(start, ends[label]) for label, start in starts.items()}
    return {row: Peers(ordered, place, own[labels[row]]) for place, row in enumerate(ordered)}


def peers_in_groups(
    rows: Sequence[int], names: Sequence[Hashable], places: Mapping[int, int], labels: Sequence[int]
) -> dict[int, tuple[tuple[int, ...], Peers]]:
    """For every row its group, in the order of `rows`, and its peers there, in the order of `places`.

    `names` has the name of the group of each of `rows`, `labels` the class of any row.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, name in zip(rows, names, strict=True):
        groups.setdefault(name, []).append(row)
    found: dict[int, tuple[tuple[int, ...], Peers]] = {}
    for members in groups.values():
        group, near = tuple(members), peers_of(sorted(members, key=places.__getitem__), labels)
        found.update((row, (group, peers)) for row, peers in near.items())
    return found


def nearest_rows(
    vectors: Float[Tensor, "rows features"], block: int = 1024, *, farthest: bool = False
) -> Int64[Tensor, " rows"]:
    """For every vector the row of the nearest other one (L2), or the farthest, of equals the first; at least two rows.

    Computed in float64 about the mean, `block` rows at a time.
    """
    points = vectors.double()
    points = points - points.mean(0)
    squares = points.square().sum(1)
    found = []
    for start in range(0, len(points), block):
        part = points[start : start + block]
        distances = squares - 2 * part @ points.T  # less |part|^2, which does not change the order
        if farthest:
            distances.neg_()
        own = torch.arange(len(part))
        distances[own, start + own] = torch.inf
        found.append(distances.argmin(1))
    return torch.cat(found)


def nearest_classes(means: Float[Tensor, "classes features"]) -> dict[int, int]:
    """Class => the other class whose mean is nearest (L2); of those with a mean (no NaN), which are two at least."""
    there = means.isfinite().all(1).nonzero().flatten().tolist()
    return {label: there[place] for label, place in zip(there, nearest_rows(means[there]).tolist(), strict=True)}
