"""Synthetic images that are drawn ahead of the classifiers that train on them: which must be there at which step.

The images come in generations, one variant of every source each, through a queue of one epoch whose oldest tenth is
replaced at even steps (`mixing.queue`). What a classifier sees at a step depends on its seed and the step alone: it
waits for what is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..data.images import LabelledImages
from ..engine.signals import finishing
from ..engine.state import UnitState
from ..errors import DataError
from .mixing import Window, queue


@dataclass(frozen=True)
class Part:
    """Images of a queue that are there, and the last step that has no need of others."""

    window: Window
    last: int
    version: str  # sha256 hex of all that the images of the whole queue depend on
    count: int  # of these

    def described(self) -> dict[str, Any]:
        """What a classifier's file says of its images."""
        return {"name": "online", "count": self.count, "sha256": self.version}


@dataclass(frozen=True)
class Stretch:
    """Steps that draw from the same generations, up to the last of them."""

    generations: tuple[int, ...]
    last: int


@dataclass(frozen=True)
class Ahead:
    """A queue of so many generations, and who has its images.

    images: of some generations, one after the other, each in the same order of the sources; draws what is not there.
    release: told that generations below a number are not needed any more.
    """

    sources: int
    count: int
    version: str
    images: Callable[[tuple[int, ...]], LabelledImages]
    release: Callable[[int], None]

    def part(self, stretch: Stretch) -> Part:
        """The images of a stretch, as `images` gives them, in the queue."""
        order = torch.full((self.count, self.sources), -1)
        for place, number in enumerate(stretch.generations):
            order[number] = torch.arange(self.sources) + place * self.sources
        window = queue(order.flatten(), self.sources)
        return Part(window, stretch.last, self.version, self.count * self.sources)

    def stretches(self, steps: int) -> list[Stretch]:
        """What a training of so many steps needs, in order; what no step comes to is in none."""
        whole = queue(torch.arange(self.count * self.sources), self.sources)
        needed: dict[int, tuple[int, int]] = {}  # by the newest generation: the oldest, and the last step
        for step in range(1, steps + 1):
            gone = whole.gone(step, steps)
            newest = (gone + self.sources - 1) // self.sources
            oldest = needed[newest][0] if newest in needed else gone // self.sources
            needed[newest] = oldest, step
        return [Stretch(tuple(range(oldest, newest + 1)), last) for newest, (oldest, last) in needed.items()]


def saved_for(state: UnitState | None, form: int) -> dict[str, Tensor] | None:
    """What a training of a network of this form (`architectures.form_of`) goes on from; None where it begins anew."""
    saved = None if state is None else state.load()
    return saved if saved is not None and int(saved.get("form", 1)) == form else None


def require_there(window: Window, first: int, last: int, steps: int, state: UnitState | None) -> None:
    """Raise DataError where images that steps `first` to `last` of `steps` draw are not there: -1 in the window."""
    slots = torch.arange(window.slots)
    if any((window.rows(slots, step, steps) < 0).any() for step in (first, last)):  # what is there is one piece
        raise DataError(
            f"{'training' if state is None else state.path}: nothing to go on from is saved there, or it is damaged, "
            f"and the images of step {first} were given up. Run the same command again: it trains from the start."
        )


def go_side_by_side(
    ahead: Ahead,
    stretches: Sequence[Stretch],
    units: Mapping[str, UnitState | None],
    go_on: Callable[[str, UnitState | None, Stretch], object],
    form: int = 1,
) -> None:
    """Let all classifiers, of networks of one form, go through all stretches but the last, one stretch at a time.

    What each has is saved by its state at the end of each stretch; one that was saved further on is not called again.
    """
    saved = {unit: saved_for(state, form) for unit, state in units.items()}
    done = {unit: 0 if found is None else int(found["step"]) for unit, found in saved.items()}
    del saved
    for stretch, following in pairwise(stretches):
        for unit, state in units.items():
            if done[unit] < stretch.last:
                with finishing():
                    go_on(unit, state, stretch)
                done[unit] = stretch.last
        if units:
            ahead.release(following.generations[0])
