"""Exact nearest neighbours by the cosine of features, among more images than fit into memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DECIMALS = 12  # of a similarity: two that differ by the rounding of a product alone are a tie


@dataclass(frozen=True)
class Neighbours:
    """The k nearest of each of N queries, nearest first; of equally near ones the lower row comes first."""

    rows: Tensor  # (N, k) int64: which of those that were searched
    similarities: Tensor  # (N, k) float64 in [-1, 1]: cosines


class NearestSearch:
    """Search in features that come block by block: memory is that of the queries, of one block and of their product.

    Similarities are cosines in float64: those of faiss' `IndexFlatIP` on rows of unit length, which rounds to float32.
    A row that is zero has no direction; its cosine with everything is 0.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        """`queries` are features (N, D); `k` is how many neighbours each gets, at least 1."""
        if k < 1:
            raise ValueError(f"k={k}: give at least 1")
        self.k = k
        self._queries = _units(queries)
        self._rows = torch.empty(len(queries), 0, dtype=torch.int64)
        self._similarities = torch.empty(len(queries), 0, dtype=torch.float64)
        self._last = -1

    def add(self, features: Tensor, rows: Tensor) -> None:
        """Search in features (B, D) whose row numbers (B,) int64 ascend, from block to block too."""
        if not len(rows):
            return
        if int(rows[0]) <= self._last or bool((rows.diff() <= 0).any()):
            raise ValueError("rows must ascend, in a block and from block to block: ties go to the lower row")
        self._last = int(rows[-1])
        similarities = (self._queries @ _units(features).T).round(decimals=_DECIMALS)
        both = torch.cat([self._similarities, similarities], dim=1)
        known = torch.cat([self._rows, rows.expand(len(self._queries), -1)], dim=1)
        # Stable, and earlier rows stand first: equal similarities stay in the order of their rows.
        order = both.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self._similarities, self._rows = both.gather(1, order), known.gather(1, order)

    def found(self) -> Neighbours:
        """The neighbours among all that was added; fewer than k where that was less."""
        return Neighbours(self._rows, self._similarities)


def _units(features: Tensor) -> Tensor:
    """Rows (N, D) of length 1, float64; a zero row stays zero."""
    rows = features.double()
    lengths = rows.norm(dim=1, keepdim=True)
    units: Tensor = rows / torch.where(lengths > 0, lengths, 1.0)
    return units


@dataclass(frozen=True)
class Taken:
    """An image that was searched, and for which query it is taken."""

    row: int  # of the image
    query: int
    rank: int  # of the image among the query's neighbours, 0 = the nearest
    similarity: float


def nearest_queries(found: Neighbours, k: int) -> list[Taken]:
    """Every image that is among the first k neighbours of a query, once, in row order: for the nearest such query.

    Queries that are equally near: the first of them.
    """
    kept = found.rows[:, :k]
    count, width = kept.shape
    query = torch.arange(count)[:, None].expand(count, width).reshape(-1)
    rank = torch.arange(width).expand(count, width).reshape(-1)
    row, similarity = kept.reshape(-1), found.similarities[:, :k].reshape(-1)
    order = similarity.sort(descending=True, stable=True).indices  # of equal ones the first query's stays first
    order = order[row[order].sort(stable=True).indices]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = row[order][1:] != row[order][:-1]
    chosen = order[first]
    columns = zip(*(values[chosen].tolist() for values in (row, query, rank, similarity)), strict=True)
    return [Taken(r, q, n, s) for r, q, n, s in columns]
