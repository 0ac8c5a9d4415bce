"""The nearest known image of each query in a view, by distances that each known image's neighbourhood calibrates.

Carlini et al. (2023, arXiv 2301.13188, section 5.1) call x, generated, a copy of the training image t where

    d(x, t) / mean of d(t, y) over the k training images y that are nearest to t

is small: an image among many alike (a cell, a plain sky) must be met more closely than one that stands alone. They
also divide by alpha = 0.5, which moves the threshold alone, and take k = 50 of 50,000. The score of x is the smallest
of these ratios over all t. A training image that is left out is scored against all others, and counts in no
neighbourhood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .views import View

_DESCRIBED = 64  # images whose descriptions as queries are in memory at a time
_PAIRS = 32_768  # of a query and a known image whose distances are computed at a time
_LEAST = 1e-3  # of a mean distance: below it the neighbours are the same picture


@dataclass(frozen=True)
class Nearest:
    """The nearest known image of each of Q queries."""

    rows: Tensor  # (Q,) int64, among the known images
    distances: Tensor  # (Q,) float32 in [0, 2]
    scores: Tensor  # (Q,) float32, the calibrated distance: small = near


class Known:
    """Training images as a view sees them, and how close each one's neighbours come.

    Attributes:
        spread: (N,) float32, the mean distance of each to its k nearest.
        left_out: Of the rows that were asked for, each as if it had not been known: a null where nothing else is.
    """

    def __init__(
        self,
        view: View,
        images: Tensor,
        k: int,
        left_out: Tensor | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> None:
        """images: uint8 (N, 3, S, S), N >= 3, of which k is at most N - 2; left_out: rows (M,), none by default.

        `advance` hears how many images were searched for.
        """
        count = len(images)
        if count < 3:
            raise ValueError(f"{count} known images: at least 3 are needed for a neighbourhood")
        self._view, self._advance, k = view, advance, min(k, count - 2)
        self._described = described(view, images)
        left = torch.empty(0, dtype=torch.int64) if left_out is None else left_out
        place = {row: number for number, row in enumerate(left.tolist())}
        # One more than k: without an image that is among them, the others are still k.
        nearest = torch.empty(count, k + 1)
        from_left, to_left = torch.empty(len(left), count), torch.empty(count, len(left))
        for rows, distances in self._blocks(images):
            distances[torch.arange(len(rows)), rows] = torch.inf
            nearest[rows] = distances.topk(k + 1, dim=1, largest=False, sorted=True).values
            to_left[rows] = distances[:, left]
            for number, row in enumerate(rows.tolist()):
                if row in place:
                    from_left[place[row]] = distances[number]
        self.spread = nearest[:, :k].mean(1).clamp_min(_LEAST)
        counted = to_left <= nearest[:, k - 1, None]  # where the image that is left out was one of the k
        without = (nearest.sum(1)[:, None] - to_left) / k
        self.left_out = _best(from_left, torch.where(counted, without, self.spread[:, None]).clamp_min(_LEAST).T)

    def search(self, images: Tensor) -> Nearest:
        """The nearest known image of each of uint8 (Q, 3, S, S), which are not the known ones."""
        found = [_best(distances, self.spread) for _, distances in self._blocks(images)]
        return Nearest(*(torch.cat([getattr(one, name) for one in found]) for name in ("rows", "distances", "scores")))

    def _blocks(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return blocks(self._view, self._described, images, self._advance)


def described(view: View, images: Tensor) -> Tensor:
    """uint8 (N, 3, S, S) as known images of a view, (N, ...)."""
    return torch.cat([view.known(part) for part in images.split(_DESCRIBED)])


def blocks(
    view: View, known: Tensor, images: Tensor, advance: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (B,) of the images, uint8, and their distances (B, N) to all `known` ones, which are `described`."""
    at_once = max(_PAIRS // len(known), 1)
    for rows in torch.arange(len(images)).split(_DESCRIBED):
        queries = view.query(images[rows])
        for part in torch.arange(len(rows)).split(at_once):
            yield rows[part], view.distances(queries[part], known)
        advance(len(rows))


def _best(distances: Tensor, spread: Tensor) -> Nearest:
    """The nearest of distances (Q, N) by their ratio to spreads (N,) or (Q, N)."""
    scores, rows = (distances / spread).min(dim=1)
    return Nearest(rows, distances.gather(1, rows[:, None])[:, 0], scores)
