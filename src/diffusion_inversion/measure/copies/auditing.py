"""The audit: which generated images are nearer to a training image than images that copy nothing come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.images import LabelledImages
from ...data.near_duplicates import NearTo, near_pairs, thumbnail
from ...errors import DataError
from ...randomness import generator_for
from .conformal import Threshold, p_values, threshold
from .nearest import Known, Nearest
from .planted import LEVELS, plant
from .said import as_percent
from .shares import Share, share
from .views import View

SCHEMA = 1
FEWEST = 5  # training images, and images of the null
MOST_NULL = 1000  # of them: enough for a rate of 0.2 %
BINS, BIN = 40, 0.05  # of scores, and how wide one is; the last has all above
ANY = "any view"


@dataclass(frozen=True)
class Recall:
    """Copies made on purpose at one level."""

    found: Share
    right: int  # how many of these are flagged for a picture that they show


@dataclass(frozen=True)
class Seen:
    """What one view saw: distances and scores of all generated images, and the null that makes a score small."""

    nearest: Nearest
    threshold: Threshold
    p: Tensor  # (M,) float64
    null: Tensor  # (m,) scores
    planted: Tensor  # (P,) scores


@dataclass(frozen=True)
class CopyAudit:
    """What an audit found of M generated images.

    - `false_positives`: the rate at which images that copy nothing would be flagged by any view. Each view has an equal
      part of it (Bonferroni).
    - `null`: what the thresholds were taken from: "test" images, or training images "left out" one by one.
    - `flagged`: (M,) bool. `units`: (M,) int64, the same number for images of one source; None: sources are not known.
    - `recall`: by view or ANY, then by level.
    """

    real: LabelledImages
    generated: LabelledImages
    false_positives: float
    neighbours: int
    null: str
    null_images: int
    null_dropped: int  # near-duplicates of training images
    views: dict[str, Seen]
    recall: dict[str, dict[str, Recall]]
    sources: tuple[str, ...] | None

    @property
    def flagged(self) -> Tensor:
        return torch.stack([seen.threshold.flags(seen.nearest.scores) for seen in self.views.values()]).any(0)

    @property
    def units(self) -> Tensor | None:
        if self.sources is None:
            return None
        number = {source: place for place, source in enumerate(dict.fromkeys(self.sources))}
        return torch.tensor([number[source] for source in self.sources])

    @property
    def copies(self) -> Share:
        """Share of the generated images that are flagged."""
        return share(self.flagged, self.units)

    @property
    def rate(self) -> float:
        """The false-positive rate that is guaranteed: more than was asked for where the null is too small for it."""
        return sum(seen.threshold.rate for seen in self.views.values())

    @property
    def exceeds_chance(self) -> bool:
        """Whether more is flagged than of images that copy nothing, beyond the interval."""
        return self.copies.low > self.rate

    def worst_first(self) -> list[int]:
        """Rows of the flagged images, those furthest below a threshold first."""
        below = self._relative().min(0).values
        rows = self.flagged.nonzero()[:, 0].tolist()
        return sorted(rows, key=lambda row: (float(below[row]), self.generated.ids[row]))

    def nearest_row(self, row: int) -> int:
        """The training image that a generated one is nearest to, in the view in which it is nearest."""
        return int(list(self.views.values())[self._view_of(row)].nearest.rows[row])

    def _relative(self) -> Tensor:
        """Scores over the view's threshold, (views, M)."""
        return torch.stack([s.nearest.scores / max(s.threshold.value, 1e-9) for s in self.views.values()])

    def _view_of(self, row: int) -> int:
        return int(self._relative()[:, row].argmin())

    def notes(self) -> list[str]:
        """What a reader must know beside the figures."""
        found = []
        if self.null == "left out":
            found.append(
                "There are no test images, so the thresholds are of training images, each left out in turn: the rate "
                "is then about right, not guaranteed. --test DATA gives images that were never trained on."
            )
        if not all(seen.threshold.holds for seen in self.views.values()):
            needed = -(-len(self.views) // self.false_positives) - 1
            found.append(
                f"{self.null_images} images that copy nothing are too few for {as_percent(self.false_positives)}: "
                f"{as_percent(self.rate)} is the least they give, {needed:.0f} would do."
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
            "false_positives": self.false_positives,
            "rate": self.rate,
            "neighbours": self.neighbours,
            "null": {"kind": self.null, "images": self.null_images, "near_duplicates_left_out": self.null_dropped},
            "copies": asdict(self.copies),
            "exceeds_chance": self.exceeds_chance,
            "by_class": classes,
            "by_source": self._by_source(),
            "views": {name: self._view(name) for name in self.views},
            "recall": {
                name: {level: {**asdict(one.found), "right": one.right} for level, one in levels.items()}
                for name, levels in self.recall.items()
            },
            "pairs": [self._pair(row) for row in self.worst_first()],
            "notes": self.notes(),
        }

    def _by_source(self) -> dict[str, Any] | None:
        """How many sources have a flagged image, how many flagged images show their own, and the sources with most."""
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
            "of_their_own_source": own,
            "flagged": dict(sorted(counts.items(), key=lambda one: (-one[1], one[0]))),
        }

    def _view(self, name: str) -> dict[str, Any]:
        seen = self.views[name]
        limit = seen.threshold
        return {
            "threshold": limit.value,
            "rate": limit.rate,
            "rate_at_most": limit.at_most,
            "flagged": int(limit.flags(seen.nearest.scores).sum()),
            "scores": {
                "null": _counts(seen.null),
                "planted": _counts(seen.planted),
                "generated": _counts(seen.nearest.scores),
            },
        }

    def _pair(self, row: int) -> dict[str, Any]:
        place = self._view_of(row)
        name, seen = list(self.views.items())[place]
        return {
            "file": self.generated.ids[row],
            "class": self.generated.class_names[int(self.generated.labels[row])],
            "nearest": self.real.ids[int(seen.nearest.rows[row])],
            "source": None if self.sources is None else self.sources[row],
            "view": name,
            "distance": float(seen.nearest.distances[row]),
            "score": float(seen.nearest.scores[row]),
            "p": float(seen.p[row]),
        }


def audit_images(
    real: LabelledImages,
    generated: LabelledImages,
    test: LabelledImages | None,
    views: Sequence[View],
    *,
    false_positives: float,
    neighbours: int,
    planted: int,
    seed: int,
    sources: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> CopyAudit:
    """Look for training images among generated ones.

    - `test`: images of the same kind that were never trained on. None: training images, each left out in turn.
    - `planted`: so many training images are copied on purpose at each level, to say how many would be found.
    - `sources`: of each generated image, by the ids of real images where these are among them.
    - `advance` hears how many images were searched for, in each view.

    Raises DataError where there are too few images to say anything.
    """
    if len(real) < FEWEST:
        raise DataError(f"{real.name}: {len(real)} images, too few to tell a copy; give at least {FEWEST}")
    if not len(generated):
        raise DataError(f"{generated.name}: no images to audit; give generated images")
    side = min(real.size, generated.size)
    known, queries = real.resized(side).images, generated.resized(side).images
    stream = generator_for(seed, "audit")
    others, again = (real, _doubles(real)) if test is None else (test, _shown_in(test, real))
    apart = torch.tensor([row for row in range(len(others)) if row not in again], dtype=torch.int64)
    apart = apart[torch.randperm(len(apart), generator=stream)[:MOST_NULL].sort().values]
    if len(apart) < FEWEST:
        raise DataError(
            f"{others.name}: {len(apart)} images that copy nothing, too few for a threshold; give at least {FEWEST} "
            "test images that are no near-duplicates of training images"
        )
    rows = torch.randperm(len(real), generator=stream)[:planted].sort().values
    copies = {level: plant(level, known, rows, seed) for level in LEVELS} if planted else {}

    seen: dict[str, Seen] = {}
    hits: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for view in views:
        memory = Known(view, known, neighbours, apart if test is None else None, advance)
        null = memory.left_out.scores if test is None else memory.search(others.resized(side).images[apart]).scores
        limit = threshold(null, false_positives / len(views))
        found = memory.search(queries)
        returned = {level: memory.search(one.images) for level, one in copies.items()}
        every = torch.cat([one.scores for one in returned.values()]) if copies else torch.empty(0)
        seen[view.name] = Seen(found, limit, p_values(null, found.scores), null, every)
        hits[view.name] = {
            level: _hits(limit.flags(one.scores), one.rows, copies[level].rows) for level, one in returned.items()
        }
    if copies:
        hits[ANY] = {level: _any([hits[view.name][level] for view in views]) for level in copies}
    recall = {
        name: {level: Recall(share(flags), int(right.sum())) for level, (flags, right) in levels.items()}
        for name, levels in hits.items()
    }
    return CopyAudit(
        real=real,
        generated=generated,
        false_positives=false_positives,
        neighbours=neighbours,
        null="left out" if test is None else "test",
        null_images=len(apart),
        null_dropped=len(again),
        views=seen,
        recall=recall if copies else {},
        sources=None if sources is None else tuple(sources),
    )


def images_to_search(real: int, generated: int, test: int | None, planted: int) -> int:
    """How many images are searched for in a view: what `audit_images` tells `advance`, near-duplicates aside."""
    return real + generated + min(test or 0, MOST_NULL) + len(LEVELS) * min(planted, real)


def _doubles(images: LabelledImages) -> set[int]:
    """Rows of the images that show the same picture as another one."""
    times = Counter(images.hashes)
    near = {row for pair in near_pairs(_thumbnails(images)) for row in (pair.first, pair.second)}
    return near | {row for row, content in enumerate(images.hashes) if times[content] > 1}


def _shown_in(images: LabelledImages, others: LabelledImages) -> set[int]:
    """Rows of the images that show the same picture as one of the others."""
    contents = {*others.hashes}
    near = {row for _, row in NearTo(_thumbnails(others)).pairs(_thumbnails(images))}
    return near | {row for row, content in enumerate(images.hashes) if content in contents}


def _thumbnails(images: LabelledImages) -> Tensor:
    """(N, 3, 32, 32) uint8, by which near-duplicates are found."""
    return torch.cat([thumbnail(part) for part in images.images.split(256)])


def _hits(flags: Tensor, nearest: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Which copies (P,) are flagged, and of which that is for a picture they show: rows (P,) among rows (P, 2)."""
    return flags, flags & (nearest[:, None] == shown).any(1)


def _any(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    flags, right = (torch.stack(one).any(0) for one in zip(*found, strict=True))
    return flags, right


def _counts(scores: Tensor) -> list[int]:
    """How many scores lie in each of BINS bins from 0, the last with all above."""
    counts: list[int] = (scores / BIN).long().clamp(0, BINS - 1).bincount(minlength=BINS).tolist()
    return counts
