"""Groups of images dealt out whole to parts, every part near its share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FREE = -1  # of a group that may go to any part
_LEAST = 1e-9  # what a move must gain: sums of floats differ by less


def deal(
    counts: NDArray[np.int64], shares: Sequence[float], kept: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The part (G,) of each group, in 0..P-1.

    A class of two groups or more lies in two parts at least, as far as moves of single groups get there. Beside that
    the sum over parts p and classes k of (A_pk - s_p T_k)^2 / (s_p T_k^2) is made small, where A_pk images of the T_k
    of a class are in part p with share s_p: Pearson's chi-square of every class, over its size. Each group in turn
    goes where the sum grows least, then the single group that lowers it most is moved, until none does. So of a single
    class two parts miss their shares by half a group at most, and equal parts differ by a group at most.

    counts: (G, K) images of each group by class. Their order decides what falls to whom: the largest first makes the
        sum least, any other order lets chance choose the parts of large groups too.
    shares: (P,) above 0, their sum 1.
    kept: (G,) the part that a group stays in, or `FREE`.
    """
    counts = counts[:, counts.sum(0) > 0]
    part = np.full(len(counts), FREE) if kept is None else kept.copy()
    free = part == FREE
    totals = counts.sum(0)
    target = np.outer(shares, totals)  # (P, K)
    dealt = np.stack([counts[part == number].sum(0) for number in range(len(shares))])
    weighted = counts / totals**2  # (G, K)
    per_share = 1 / np.asarray(shares)
    own = (weighted * counts).sum(1)  # (G,)

    def joining(groups: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        """What the sum grows by where each of the groups (M,) joins each part: (M, P)."""
        grown: NDArray[np.float64] = (2 * weighted[groups] @ (dealt - target).T + own[groups, None]) * per_share
        return grown

    for group in np.flatnonzero(free):
        part[group] = joining(np.array([group]))[0].argmin()
        dealt[part[group]] += counts[group]

    has = (counts > 0).astype(np.int64)
    number_of = has.sum(0)
    rows = np.arange(len(counts))
    while True:
        here = np.stack([has[part == number].sum(0) for number in range(len(shares))])
        alone = ((here == number_of) & (number_of > 1)).astype(np.int64)
        would_be = ((here + 1 == number_of) & (number_of > 1)).astype(np.int64)
        joined = joining(slice(None))
        left = joined[rows, part] - 2 * own * per_share[part]  # joining counts c^2 for, leaving against
        gain = joined - left[:, None]
        emptier = has @ would_be.T - (has @ alone.T)[rows, part][:, None]
        order = np.where(free[:, None], emptier * 1e6 * len(totals) + gain, np.inf)
        order[rows, part] = np.inf
        group, to = np.unravel_index(order.argmin(), order.shape)
        if not order[group, to] < -_LEAST:
            return part
        dealt[part[group]] -= counts[group]
        dealt[to] += counts[group]
        part[group] = to
