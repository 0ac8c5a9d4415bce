"""Whether two results of a sweep are of the same test images and classifier seeds, which a claim pairs them over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import UsageError
from .plan import Cell, Claim
from .work import Workshop

Tested = tuple[tuple[int, ...], Any]  # the seeds of a replicate, and what its test images are told by


def require_paired(claim: Claim, greater: Iterable[Tested], less: Iterable[Tested]) -> None:
    """Raise UsageError where a replicate of one side has other seeds, or test images, than that of the other."""
    for ours, theirs in zip(greater, less, strict=True):
        for what, one, other in zip(("classifier seeds", "test images"), ours, theirs, strict=True):
            if one != other:
                raise UsageError(
                    f"claim {claim.says!r}: the sides of a pair have other {what}, over which their difference is "
                    "taken; name two results that share them."
                )


def require_pairable(claim: Claim, workshop: Workshop, greater: Sequence[Cell], less: Sequence[Cell]) -> None:
    """The same before anything is computed, of the replicates of two cells: test images are told by their pixels too.

    They are opened where settings of the data differ; what names no other test images may be varied in a claim.
    """

    def tested(cell: Cell) -> Tested:
        test = workshop.splits(cell.data).test
        return cell.train.seeds, (test.ids, test.hashes)

    for ours, theirs in zip(greater, less, strict=True):
        if ours.data != theirs.data:
            require_paired(claim, [tested(ours)], [tested(theirs)])
        else:
            require_paired(claim, [(ours.train.seeds, None)], [(theirs.train.seeds, None)])
