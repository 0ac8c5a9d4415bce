"""What an audit found, and its record as JSON data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.images import LabelledImages
from .conformal import Threshold, p_values
from .nearest import Nearest
from .said import as_percent
from .shares import Share, share

SCHEMA = 1
BINS, BIN = 40, 0.05  # of scores, and how wide one is; the last has all above
ANY = "any view"


@dataclass(frozen=True)
class Recall:
    """Copies made on purpose at one level."""

    found: Share
    right: int  # how many of these are flagged for a picture that they show


@dataclass(frozen=True)
class Seen:
    """What one view saw. Scores are calibrated distances, small = near.

    unit: the score below which as many training images lie, each among the others, as may be flagged by chance. Scores
    of all views are compared in this unit.
    """

    nearest: Nearest  # of all M generated images
    unit: float
    null: Tensor  # (m,) scores of images that copy nothing
    planted: Tensor  # (P,) scores


@dataclass(frozen=True)
class CopyAudit:
    """What an audit found of M generated images.

    An image counts by the view in which it is nearest, in units of the views: `relative` (M,), `null_relative` (m,). So
    one threshold holds the rate for all views together.

    - `null`: what the threshold was taken from: "test" images, or training images "left out" one by one.
    - `recall`: by view or ANY, then by level; empty where nothing was planted.
    - `sources`: of each generated image; None: not known.
    """

    real: LabelledImages
    generated: LabelledImages
    neighbours: int
    null: str
    null_dropped: int  # near-duplicates of training images
    threshold: Threshold
    views: dict[str, Seen]
    recall: dict[str, dict[str, Recall]]
    sources: tuple[str, ...] | None

    @property
    def relative(self) -> Tensor:
        return nearest_of({name: seen.nearest.scores for name, seen in self.views.items()}, self.views)

    @property
    def null_relative(self) -> Tensor:
        return nearest_of({name: seen.null for name, seen in self.views.items()}, self.views)

    @property
    def flagged(self) -> Tensor:
        """Which images are too near: bool (M,)."""
        return self.threshold.flags(self.relative)

    @property
    def units(self) -> Tensor | None:
        """The same number for images of one source: int64 (M,)."""
        if self.sources is None:
            return None
        number = {source: place for place, source in enumerate(dict.fromkeys(self.sources))}
        return torch.tensor([number[source] for source in self.sources])

    @property
    def copies(self) -> Share:
        """Share of the generated images that are flagged."""
        return share(self.flagged, self.units)

    @property
    def exceeds_chance(self) -> bool:
        """Whether more is flagged, beyond its interval, than the null lets be of images that copy nothing, at 95 %."""
        return self.copies.low > self.threshold.at_most

    def worst_first(self) -> list[int]:
        """Rows of the flagged images, the nearest first."""
        relative, rows = self.relative, self.flagged.nonzero()[:, 0].tolist()
        return sorted(rows, key=lambda row: (float(relative[row]), self.generated.ids[row]))

    def nearest_row(self, row: int) -> int:
        """The training image that a generated one is nearest to, in the view in which it is nearest."""
        return int(self._nearest_view(row)[1].nearest.rows[row])

    def _nearest_view(self, row: int) -> tuple[str, Seen]:
        return min(self.views.items(), key=lambda one: float(one[1].nearest.scores[row]) / one[1].unit)

    def notes(self) -> list[str]:
        """What a reader must know beside the figures."""
        found = []
        if self.null == "left out":
            found.append(
                "There are no test images, so the thresholds are of training images, each left out in turn: the rate "
                "is then about right, not guaranteed. --test DATA gives images that were never trained on."
            )
        limit = self.threshold
        if not limit.holds:
            found.append(
                f"{limit.images} images that copy nothing are too few for {as_percent(limit.asked)}: "
                f"{as_percent(limit.rate)} is the least they give, {math.ceil(1 / limit.asked - 1)} would do."
            )
        if self.null_dropped:
            found.append(
                f"{self.null_dropped} images were left out of them: near-duplicates of training images, which look "
                "like copies."
            )
        if self.real.size != self.generated.size:
            side = min(self.real.size, self.generated.size)
            found.append(f"Real images have {self.real.size} px, generated {self.generated.size}: compared at {side}.")
        return found

    def record(self) -> dict[str, Any]:
        """JSON data: shares, thresholds, distributions, recall, and all flagged pairs, worst first."""
        flagged, units = self.flagged, self.units
        p = p_values(self.null_relative, self.relative)
        labels = self.generated.labels
        classes = {
            name: asdict(share(flagged[labels == label], None if units is None else units[labels == label]))
            for label, name in enumerate(self.generated.class_names)
            if bool((labels == label).any())
        }
        return {
            "schema": SCHEMA,
            "real": {"name": self.real.name, "images": len(self.real)},
            "generated": {"name": self.generated.name, "images": len(self.generated)},
            "false_positives": self.threshold.asked,
            "rate": self.threshold.rate,
            "rate_at_most": self.threshold.at_most,
            "neighbours": self.neighbours,
            "null": {"kind": self.null, "images": self.threshold.images, "near_duplicates_left_out": self.null_dropped},
            "copies": asdict(self.copies),
            "exceeds_chance": self.exceeds_chance,
            "by_class": classes,
            "by_source": self._by_source(),
            "views": {name: self._view(name) for name in self.views},
            "recall": {
                name: {level: {**asdict(one.found), "right": one.right} for level, one in levels.items()}
                for name, levels in self.recall.items()
            },
            "pairs": [self._pair(row, float(p[row])) for row in self.worst_first()],
            "notes": self.notes(),
        }

    def _by_source(self) -> dict[str, Any] | None:
        """How many sources have a flagged image, how many flagged images show their own, and the sources with most.

        None for how many show their own where no source is named as a real image is.
        """
        if self.sources is None:
            return None
        rows = self.flagged.nonzero()[:, 0].tolist()
        counts: dict[str, int] = {}
        for row in rows:
            counts[self.sources[row]] = counts.get(self.sources[row], 0) + 1
        named = list(dict.fromkeys(self.sources))
        own = sum(self.real.ids[self.nearest_row(row)] == self.sources[row] for row in rows)
        return {
            "sources": asdict(share(torch.tensor([name in counts for name in named]))),
            "of_their_own_source": None if {*named}.isdisjoint(self.real.ids) else own,
            "flagged": dict(sorted(counts.items(), key=lambda one: (-one[1], one[0]))),
        }

    def _view(self, name: str) -> dict[str, Any]:
        seen = self.views[name]
        limit = self.threshold.value * seen.unit
        return {
            "threshold": limit,
            "flagged": int((seen.nearest.scores < limit).sum()),
            "scores": {
                "null": _counts(seen.null),
                "planted": _counts(seen.planted),
                "generated": _counts(seen.nearest.scores),
            },
        }

    def _pair(self, row: int, p: float) -> dict[str, Any]:
        name, seen = self._nearest_view(row)
        return {
            "file": self.generated.ids[row],
            "class": self.generated.class_names[int(self.generated.labels[row])],
            "nearest": self.real.ids[int(seen.nearest.rows[row])],
            "source": None if self.sources is None else self.sources[row],
            "view": name,
            "distance": float(seen.nearest.distances[row]),
            "score": float(seen.nearest.scores[row]),
            "p": p,
        }


def nearest_of(scores: dict[str, Tensor], views: dict[str, Seen]) -> Tensor:
    """The smallest of the scores (N,) of all views, each in its view's unit."""
    return torch.stack([scores[name] / seen.unit for name, seen in views.items()]).amin(0)


def _counts(scores: Tensor) -> list[int]:
    """How many scores lie in each of BINS bins from 0, the last with all above."""
    counts: list[int] = (scores / BIN).long().clamp(0, BINS - 1).bincount(minlength=BINS).tolist()
    return counts
